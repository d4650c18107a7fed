"""Rewards that need no downloaded weights: how much a picture has of something one can compute.

Every reward takes images [B, 3, H, W] in [0, 1] and returns one score per image, larger is more. All are differentiable
but `jpeg`, which only measures.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lrdiff.dct import YCBCR, blocks_dct
from lrdiff.errors import ShapeError

Reward = Callable[[Tensor], Tensor]

LUMA = YCBCR[0]
# Tables K.1 and K.2 of ITU-T T.81, for quality 50
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *[(99,) * 8] * 4,
)


def jpeg_bits(images: Tensor, quality: float = 95.0) -> Tensor:
    """Return about how many bits per pixel JPEG needs: sum log2(1 + |DCT of 8 x 8 blocks / Q|) / (H W).

    Rounding has no gradient; the logarithm of a coefficient in steps of its quantiser is about what coding it costs.
    JPEG files keep colour at half the size, so each of the two colour planes counts for a quarter.

    Args:
        images: Sides divisible by 8.
        quality: 1 to 100, scales the standard tables as libjpeg does.
    """
    _check(images)
    height, width = images.shape[-2:]
    if height % 8 or width % 8:
        raise ShapeError(f"images of {width} x {height} pixels: jpeg_bits takes sides divisible by 8")
    if not 1 <= quality <= 100:
        raise ShapeError(f"quality {quality} of JPEG is outside 1 to 100")
    planes = torch.einsum("kc,bchw->bkhw", images.new_tensor(YCBCR), 255.0 * images)
    spectrum = blocks_dct(planes)
    percent = 5000.0 / quality if quality < 50 else 200.0 - 2.0 * quality
    tables = images.new_tensor([LUMINANCE, CHROMINANCE, CHROMINANCE])
    steps = ((tables * percent + 50.0) / 100.0).floor().clamp(1.0, 255.0)[:, None, None]
    bits = torch.log2(1.0 + (spectrum / steps).abs()).sum((2, 3, 4, 5))
    return bits @ bits.new_tensor([1.0, 0.25, 0.25]) / (height * width)


def compressibility(images: Tensor) -> Tensor:
    """Return minus the bits per pixel of JPEG at quality 95: plain pictures score high."""
    return -jpeg_bits(images)


def incompressibility(images: Tensor) -> Tensor:
    """Return the bits per pixel of JPEG at quality 95: busy pictures score high."""
    return jpeg_bits(images)


def jpeg(images: Tensor) -> Tensor:
    """Return minus the bits per pixel of the real JPEG file at quality 95; a number without gradient."""
    _check(images)
    pixels = (255.0 * images.detach().clamp(0.0, 1.0)).round().to("cpu", torch.uint8).permute(0, 2, 3, 1)
    sizes = []
    for picture in pixels:
        file = io.BytesIO()
        Image.fromarray(picture.contiguous().numpy()).save(file, "JPEG", quality=95)
        sizes.append(8.0 * file.tell() / (images.shape[2] * images.shape[3]))
    return -images.new_tensor(sizes)


def brightness(images: Tensor) -> Tensor:
    """Return the mean luma, 0 to 1."""
    return luma(images).mean((1, 2))


def contrast(images: Tensor) -> Tensor:
    """Return the standard deviation of the luma, 0 to 0.5."""
    return (luma(images).var((1, 2), correction=0) + 1e-8).sqrt()


def colourfulness(images: Tensor) -> Tensor:
    """Return Hasler and Suesstrunk's measure (2003): the spread of two opponent colours plus 0.3 x their mean.

    With rg = R - G, yb = (R + G) / 2 - B: sqrt(var rg + var yb) + 0.3 sqrt(mean rg^2 + mean yb^2), where "mean" is
    each picture's own. Grey pictures have 0; the paper's scale is 255 times this one.
    """
    _check(images)
    red, green, blue = images.unbind(1)
    opponents = torch.stack([red - green, (red + green) / 2 - blue], dim=1)
    spread = (opponents.var((2, 3), correction=0).sum(1) + 1e-8).sqrt()
    return spread + 0.3 * (opponents.mean((2, 3)).square().sum(1) + 1e-8).sqrt()


def sharpness(images: Tensor) -> Tensor:
    """Return the variance of the luma's Laplacian, in its inside."""
    kernel = images.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    return F.conv2d(luma(images)[:, None], kernel[None, None]).var((1, 2, 3), correction=0)


def symmetry(images: Tensor) -> Tensor:
    """Return minus the mean absolute difference from the mirrored picture; 0 is perfect."""
    _check(images)
    return -(images - images.flip(-1)).abs().mean((1, 2, 3))


def likeness(target: Tensor) -> Reward:
    """Return a reward for being like a picture [3, H, W]: minus the squared error, at the target's size."""

    def reward(images: Tensor) -> Tensor:
        _check(images)
        resized = F.interpolate(images, target.shape[-2:], mode="bilinear", antialias=True, align_corners=False)
        return -(resized - target.to(images)).square().mean((1, 2, 3))

    return reward


def palette(colours: Tensor) -> Reward:
    """Return a reward for pixels near one of some colours [N, 3] in [0, 1]: minus the distance to the nearest."""

    def reward(images: Tensor) -> Tensor:
        _check(images)
        pixels = images.flatten(2).transpose(1, 2)
        return -torch.cdist(pixels, colours.to(images).expand(len(images), -1, -1)).amin(2).mean(1)

    return reward


SIMPLE: dict[str, Reward] = {
    "brightness": brightness,
    "colourfulness": colourfulness,
    "compressibility": compressibility,
    "contrast": contrast,
    "incompressibility": incompressibility,
    "jpeg": jpeg,
    "sharpness": sharpness,
    "symmetry": symmetry,
}
"""Rewards that take nothing but images, by name."""


def luma(images: Tensor) -> Tensor:
    """Return the brightness of every pixel, [B, H, W] in [0, 1] (ITU-R BT.601)."""
    _check(images)
    return torch.einsum("c,bchw->bhw", images.new_tensor(LUMA), images)


def _check(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ShapeError(f"a reward takes images [B, 3, H, W] in [0, 1], not {list(images.shape)}")
