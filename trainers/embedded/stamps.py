"""Marks that a decoder of convolutions can make: small learned kernels, stamped where the picture has something."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.embedded.marks import contrast, shifted, unit

WIDTH = 16
THRESHOLD = 0.5
"""Of a map, in its own deviations: below it nothing is stamped, so that places are few and distinct."""


class Stamps(nn.Module):
    """Pictures plus one kernel for each bit, stamped wherever learned maps of the picture are high.

    x' = x + a m(x) sum_j K_j(bits) * relu(s_j(x) - 1/2) / |.|,  K_j(bits) = sum_b K_j[b, bit_b]

    with s the maps of a small network, of mean 0 and deviation 1 in every picture, m and a as in `Marks`. A picture's
    decoder cannot make the periodic textures of `Marks`, since its convolutions do not know where they are; this it
    can: find places with one convolution, write there with the next.

    Differs from HiDDeN (arXiv 1807.09937), whose embedder takes the message as constant channels and stays at chance
    for many hundreds of steps: a bit chooses between two kernels, as it does between two textures in `Marks`.
    """

    def __init__(self, bits: int, maps: int, side: int) -> None:
        """Begin with random kernels.

        Args:
            bits: Of a message.
            maps: How many maps say where to stamp.
            side: Of a kernel in pixels, odd.
        """
        super().__init__()
        self.maps = nn.Sequential(
            nn.Conv2d(3, WIDTH, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(WIDTH, maps, 3, padding=1),
        )
        self.kernels = nn.Parameter(torch.randn(2 * bits, 3, maps, side, side))

    def forward(self, images: Tensor, bits: Tensor, psnr: float) -> Tensor:
        """Write bits into images.

        Args:
            images: [B, 3, H, W] in [-1, 1].
            bits: [B, bits], 0 or 1.
            psnr: Of each changed image in dB, before clipping to [-1, 1].
        """
        count, _, height, width = images.shape
        kernels = torch.einsum("bk,kcjhw->bcjhw", torch.cat([1 - bits, bits], dim=1), self.kernels)
        maps = self.maps(images)
        maps = maps - maps.mean((2, 3), keepdim=True)
        maps = maps / (maps.square().mean((2, 3), keepdim=True).sqrt() + 1e-3)
        places = F.relu(maps - THRESHOLD).reshape(1, -1, height, width)
        stamped = F.conv2d(places, kernels.flatten(0, 1), padding=kernels.shape[-1] // 2, groups=count)
        stamped = stamped.reshape(images.shape)
        stamped = stamped - stamped.mean((2, 3), keepdim=True)
        return shifted(images, unit(stamped * contrast(images).sqrt()), psnr)
