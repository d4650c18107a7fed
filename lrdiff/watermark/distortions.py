"""What happens to pictures on their way: random, differentiable distortions between a mark and its reader.

Geometry comes first, then colours, blur, noise and erasing, and JPEG last, as when a picture is edited and saved.
"""

from __future__ import annotations

import math

import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor, nn
from torch.nn import functional as F

from lrdiff.errors import ShapeError
from lrdiff.watermark.distortion_config import DistortionConfig
from lrdiff.watermark.jpeg import jpeg
from lrdiff.watermark.views import rotate

LUMA = (0.299, 0.587, 0.114)
# RGB to YIQ: hue is the angle in the plane of the last two.
YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


class Distortions(nn.Module):
    """A random chain of distortions, the same for the same generator.

    Gradients pass all of them, also JPEG; see `jpeg.py`.
    """

    def __init__(self, config: DistortionConfig | None = None) -> None:
        super().__init__()
        self.config = DistortionConfig() if config is None else config

    def forward(self, images: Tensor, rng: torch.Generator, strength: float = 1.0) -> Tensor:
        """Distort images.

        Args:
            images: [B, 3, H, W] in [-1, 1].
            rng: On the CPU; all randomness comes from it.
            strength: In [0, 1], for a slow start: scales how often every distortion comes and how far it goes.

        Returns:
            Images [B, 3, H', W'] in [-1, 1]; float32 also under autocast, where half of the numbers would be too coarse
            for the places that a turned picture is read from.

        Raises:
            ShapeError: The images have other axes, or `strength` is out of its range.
        """
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise ShapeError(f"distortions take images [B, 3, H, W], not {list(images.shape)}")
        if not 0.0 <= strength <= 1.0:
            raise ShapeError(f"strength {strength} of distortions is not within 0 to 1")
        draw = _Draw(rng, strength, len(images), images.device)
        if strength == 0.0 or draw.batch(self.config.clean / strength):
            return images
        with torch.autocast(images.device.type, enabled=False):
            pixels = (images.float() + 1.0) / 2.0
            pixels = self._geometry(pixels, draw)
            pixels = self._colours(pixels, draw)
            pixels = self._damage(pixels, draw)
            return 2.0 * pixels.clamp(0.0, 1.0) - 1.0

    def _geometry(self, x: Tensor, draw: _Draw) -> Tensor:
        c = self.config
        x = torch.where(draw.mask(c.flip), x.flip(-1), x)
        x = torch.where(draw.mask(c.upside_down), x.flip(-2), x)
        turned, angles = draw.mask(c.rotate), draw.between(-c.degrees, c.degrees, 0.0)
        if turned.any():
            x = rotate(x, torch.where(turned.flatten(), angles.flatten(), 0.0))
        if draw.batch(c.crop):
            x = self._crop(x, draw)
        if draw.batch(c.resize):
            sides = self._sides(x, draw.number(*c.resize_area, 1.0))
            x = F.interpolate(x, sides, mode="bilinear", align_corners=False, antialias=True)
        return x

    def _crop(self, x: Tensor, draw: _Draw) -> Tensor:
        height, width = self._sides(x, draw.number(*self.config.crop_area, 1.0))
        tops = draw.integers(x.shape[-2] - height + 1)
        lefts = draw.integers(x.shape[-1] - width + 1)
        cut = [image[:, t : t + height, s : s + width] for image, t, s in zip(x, tops, lefts, strict=True)]
        return torch.stack(cut)

    def _sides(self, x: Tensor, area: float) -> tuple[int, int]:
        """Return height and width of a part of the area, not below the smallest side unless already there."""
        height, width = (max(round(n * math.sqrt(area)), min(n, self.config.min_side)) for n in x.shape[-2:])
        return height, width

    def _colours(self, x: Tensor, draw: _Draw) -> Tensor:
        c = self.config
        changes = (
            (lambda y: torch.zeros_like(y), c.brightness),
            (lambda y: _grey(y).mean((2, 3), keepdim=True), c.contrast),
            (_grey, c.saturation),
            (_smooth, c.sharpness),
        )
        for neutral, largest in changes:
            chosen, factor = draw.mask(c.colour), draw.factor(largest)
            if chosen.any():
                x = torch.where(chosen, adjust(x, neutral(x), factor), x)
        chosen, angle = draw.mask(c.colour), draw.between(-c.hue, c.hue, 0.0)
        if chosen.any():
            x = torch.where(chosen, turn_hue(x, angle.flatten()), x)
        return x

    def _damage(self, x: Tensor, draw: _Draw) -> Tensor:
        c = self.config
        chosen, sigma = draw.mask(c.blur), draw.between(0.0, c.blur_sigma, 0.0)
        if chosen.any():
            x = torch.where(chosen, blur(x, sigma.flatten()), x)
        chosen, std = draw.mask(c.noise), draw.between(0.0, c.noise_std, 0.0)
        if chosen.any():
            grain = torch.randn(x.shape, generator=draw.rng).to(x)
            x = torch.where(chosen, (x + std * grain).clamp(0.0, 1.0), x)
        chosen, hole, paint = draw.mask(c.erase), self._hole(x, draw), draw.uniform(3)
        if chosen.any():
            x = torch.where(chosen & hole, paint[..., None, None], x)
        chosen, quality = draw.mask(c.jpeg).flatten(), draw.between(*c.jpeg_quality, 100.0).flatten()
        if chosen.any():
            x = x.clone().index_put((chosen.nonzero().flatten(),), jpeg(x[chosen], quality[chosen]))
        return x

    def _hole(self, x: Tensor, draw: _Draw) -> Tensor:
        """Return a mask [B, 1, H, W] of one rectangle in each image, of any shape and place."""
        area, ratio = draw.between(*self.config.erase_area, 0.0), (draw.uniform(1) - 0.5).exp()[..., None, None]
        place = draw.uniform(2)[..., None, None]
        inside = []
        for axis, part in ((0, area.sqrt() * ratio), (1, area.sqrt() / ratio)):
            shape = [1, 1, -1, 1] if axis == 0 else [1, 1, 1, -1]
            steps = torch.linspace(0.0, 1.0, x.shape[2 + axis], device=x.device).view(shape)
            first = place[:, axis : axis + 1] * (1.0 - part).clamp_min(0.0)
            inside.append((steps >= first) & (steps <= first + part))
        return inside[0] & inside[1]


class _Draw:
    """Random choices for one batch, all from one generator on the CPU.

    Every call draws the same number of values whatever comes of them, so one setting does not change another's luck.
    """

    def __init__(self, rng: torch.Generator, strength: float, count: int, device: torch.device) -> None:
        self.rng, self.strength, self.count, self.device = rng, strength, count, device

    def batch(self, share: float) -> bool:
        return float(torch.rand((), generator=self.rng)) < share * self.strength

    def number(self, low: float, high: float, neutral: float) -> float:
        drawn = low + (high - low) * float(torch.rand((), generator=self.rng))
        return neutral + self.strength * (drawn - neutral)

    def integers(self, limit: int) -> list[int]:
        return torch.randint(0, limit, (self.count,), generator=self.rng).tolist()

    def uniform(self, columns: int) -> Tensor:
        return torch.rand(self.count, columns, generator=self.rng).to(self.device)

    def mask(self, share: float) -> Tensor:
        return self.uniform(1)[..., None, None] < share * self.strength

    def between(self, low: float, high: float, neutral: float) -> Tensor:
        drawn = low + (high - low) * self.uniform(1)[..., None, None]
        return neutral + self.strength * (drawn - neutral)

    def factor(self, largest: float) -> Tensor:
        """Return factors between 1 / largest and largest, even in their logarithm."""
        return self.between(-math.log(largest), math.log(largest), 0.0).exp()


def adjust(x: Tensor, neutral: Tensor, factor: Tensor | float) -> Tensor:
    """Move images in [0, 1] away from a neutral one (factor > 1) or towards it, and clip.

    Brightness has black as its neutral image, contrast the mean grey, saturation the grey image, sharpness a smoothed
    one: the definitions of Pillow's `ImageEnhance`.
    """
    return (neutral + factor * (x - neutral)).clamp(0.0, 1.0)


def turn_hue(x: Tensor, degrees: Tensor) -> Tensor:
    """Turn the hues of images [B, 3, H, W] in [0, 1] by angles [B], about the grey axis in YIQ; brightness stays."""
    basis = torch.tensor(YIQ, device=x.device, dtype=x.dtype)
    cos, sin = torch.deg2rad(degrees).cos(), torch.deg2rad(degrees).sin()
    turn = torch.zeros(len(x), 3, 3, device=x.device, dtype=x.dtype)
    turn[:, 0, 0] = 1.0
    turn[:, 1, 1], turn[:, 1, 2], turn[:, 2, 1], turn[:, 2, 2] = cos, -sin, sin, cos
    return torch.einsum("bij,bjhw->bihw", torch.linalg.inv(basis) @ turn @ basis, x).clamp(0.0, 1.0)


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur images [B, 3, H, W] by Gaussians of standard deviations [B] in pixels; 0 leaves an image as it is."""
    side = 2 * math.ceil(3.0 * float(sigma.max())) + 1
    side = min(side, 2 * (min(x.shape[-2:]) - 1) + 1)  # reflection at the border needs that many pixels
    if side < 3:
        return x
    return gaussian_blur2d(x, (side, side), sigma.clamp_min(1e-2)[:, None].expand(-1, 2).to(x))


def _grey(x: Tensor) -> Tensor:
    return (x * torch.tensor(LUMA, device=x.device, dtype=x.dtype).view(3, 1, 1)).sum(1, keepdim=True)


def _smooth(x: Tensor) -> Tensor:
    """Smooth by Pillow's kernel: ones around a five."""
    kernel = torch.ones(3, 3, device=x.device, dtype=x.dtype)
    kernel[1, 1] = 5.0
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, (kernel / kernel.sum()).expand(3, 1, 3, 3), groups=3)
