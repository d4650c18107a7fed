"""The marks an extractor learns with: two learned textures for each bit, one for 0 and one for 1."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrdiff.watermark import distortions

WINDOW = 7
FLOOR = 0.03
"""Local contrast that a picture has at least, so that even ground carries some of the mark."""


class Marks(nn.Module):
    """Pictures plus the sum of one texture for each bit, stronger where the picture is busy.

    x' = x + a m(x) sum_b T[b, bit_b] / |.|, with tiles T of mean 0 that repeat from a random place, m the square root
    of the local contrast, and a the amplitude of the PSNR asked for.

    A bit chooses between two textures and not the sign of one: a texture and its negative have the same energy at every
    frequency, and a network with a global mean needs hundreds of steps to find any difference at all (measured: 0.64
    of the bits after 1,100 steps with signs, 0.67 after 600 with two textures).
    """

    def __init__(self, bits: int, tile: int, smooth: float) -> None:
        """Begin with random textures.

        Args:
            bits: Of a message.
            tile: Side of a texture in pixels.
            smooth: Standard deviation in pixels of the Gaussian that textures are smoothed with.
        """
        super().__init__()
        self.tile, self.smooth = tile, smooth
        self.textures = nn.Parameter(torch.randn(2 * bits, 3, tile, tile))

    def tiles(self) -> Tensor:
        """Return the textures [2 bits, 3, tile, tile]: smooth, of mean 0 in each colour, of mean square 1."""
        found = self.textures
        if self.smooth > 0:
            wide = F.pad(found, (self.tile // 2,) * 4, mode="circular")
            wide = distortions.blur(wide, torch.full((len(wide),), self.smooth, device=wide.device))
            found = wide[:, :, self.tile // 2 :, self.tile // 2 :][:, :, : self.tile, : self.tile]
        return unit(found - found.mean((2, 3), keepdim=True))

    def forward(self, images: Tensor, bits: Tensor, psnr: float, rng: torch.Generator) -> Tensor:
        """Write bits into images.

        Args:
            images: [B, 3, H, W] in [-1, 1].
            bits: [B, bits], 0 or 1.
            psnr: Of each changed image in dB, before clipping to [-1, 1].
            rng: On the CPU, of the place where the tiles begin.
        """
        height, width = images.shape[-2:]
        summed = torch.einsum("bk,kchw->bchw", torch.cat([1 - bits, bits], dim=1), self.tiles())
        wide = summed.repeat(1, 1, math.ceil(height / self.tile) + 1, math.ceil(width / self.tile) + 1)
        starts = torch.randint(0, self.tile, (len(images), 2), generator=rng).tolist()
        cut = [mark[:, y : y + height, x : x + width] for mark, (y, x) in zip(wide, starts, strict=True)]
        return shifted(images, unit(torch.stack(cut) * contrast(images).sqrt()), psnr)


def contrast(images: Tensor) -> Tensor:
    """Return the local standard deviation [B, 1, H, W] of the grey image, at least `FLOOR`."""
    grey = F.pad(images.mean(1, keepdim=True), (WINDOW // 2,) * 4, mode="reflect")
    mean = F.avg_pool2d(grey, WINDOW, 1)
    variance = F.avg_pool2d(grey.square(), WINDOW, 1) - mean.square()
    return (variance.clamp_min(0.0) + FLOOR**2).sqrt()


def shifted(images: Tensor, change: Tensor, psnr: float) -> Tensor:
    """Add a change of mean square 1 to images in [-1, 1], at a PSNR in dB before they are clipped to [-1, 1]."""
    return (images + 2.0 * 10.0 ** (-psnr / 20.0) * change).clamp(-1.0, 1.0)


def unit(images: Tensor) -> Tensor:
    """Scale every image to a mean square of 1."""
    return images / images.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
