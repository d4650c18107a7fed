"""Marks that a decoder can write: each bit chooses one of two filters of what the decoder's last block sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.embedded.marks import contrast, shifted, unit

FRAME = 8
"""Pixels at each border that are not used: a decoder's zero padding tells it where the border is, and what it writes
there is lost with the first crop. The last block and the layers after it see five."""
MAPS = 40
"""Principal components of the activations; in `toys`, about 98 % of the variance."""
SIDE = 5
"""Of a filter, at half of the picture's resolution: marks then have low frequencies, which JPEG and resizing leave.
With 3, filters have fewer directions to differ in: after 1,200 steps 0.72 of the bits were read, with 5 0.76."""
BASIS = 256
"""Pictures that the components are found in."""


@dataclass(frozen=True)
class Drawn:
    """Pictures of a decoder, and what its last block saw when it made them.

    Attributes:
        pictures: Bytes [N, 3, H, W].
        maps: Components [N, MAPS, H / 2, W / 2] of the activations, half precision, of mean 0 in each picture.
    """

    pictures: Tensor
    maps: Tensor

    def cut(self, chosen: Tensor, top: int, left: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return pictures [B, 3, height, width] in [-1, 1] and their maps with two more to each side.

        Args:
            chosen: Which ones.
            top: First row, even and at least 4.
            left: First column, likewise.
            height: Even.
            width: Even.
        """
        reach = SIDE // 2
        rows, columns = (
            slice(first // 2 - reach, (first + n) // 2 + reach) for first, n in ((top, height), (left, width))
        )
        pictures = self.pictures[chosen, :, top : top + height, left : left + width]
        return pictures.float() / 127.5 - 1.0, self.maps[chosen, :, rows, columns].float()

    def inner(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Return pictures without their frame, and their maps; see `cut`."""
        height, width = (n - 2 * FRAME for n in self.pictures.shape[-2:])
        return self.cut(chosen, FRAME, FRAME, height, width)


class Keyed(nn.Module):
    """Pictures plus filters of the decoder's own activations, one for each bit.

    x' = x + a m(x) U(sum_b K[b, bit_b] * z) / |.|,  z the maps of `Drawn`, U doubles the resolution, m and a as in
    `Marks`, all K of one size.

    That is, to first order, what a change of the last block's weights does to a picture. A bit chooses between two
    filters and not the sign of one, for the reason given in `Marks`. A filter that could grow would drown the others,
    whose bits are then never read.

    It stands for the last block itself with weights of its own for every message, which takes five times as long a
    picture, reading included. What is learned so carries over to a decoder's weights: from an extractor that read
    0.79 of the bits from these marks, with filters of 3, at 22 dB, a LoRA of rank 4 on `toys` learned in 150 steps to
    write 0.78 of a key's bits at 26 dB away from the border, and 0.77 in a tenth of the area; from one of textures
    and stamps 0.55 and 0.45.
    """

    def __init__(self, maps: int, bits: int) -> None:
        """Begin with random filters.

        Args:
            maps: Of the activations.
            bits: Of a message.
        """
        super().__init__()
        self.maps = maps
        self.filters = nn.Parameter(torch.randn(2 * bits, 3 * maps * SIDE**2))

    def forward(
        self, pictures: Tensor, maps: Tensor, bits: Tensor, psnr: float, carried: Tensor | None = None
    ) -> Tensor:
        """Write bits into pictures.

        Args:
            pictures: [B, 3, H, W] in [-1, 1].
            maps: [B, maps, H / 2 + 4, W / 2 + 4].
            bits: [B, bits], 0 or 1.
            psnr: Of each changed picture in dB, before clipping to [-1, 1].
            carried: [B, bits], 0 for bits that are left out; none leaves out none.
        """
        chosen = torch.cat([1 - bits, bits], dim=1)
        if carried is not None:
            chosen = chosen * carried.repeat(1, 2)
        count = len(maps)
        filters = chosen @ (self.filters / self.filters.norm(dim=1, keepdim=True))
        weights = filters.view(3 * count, self.maps, SIDE, SIDE)
        change = F.conv2d(maps.reshape(1, -1, *maps.shape[-2:]), weights, groups=count)
        change = change.view(count, 3, *change.shape[-2:])
        change = F.interpolate(change, scale_factor=2, mode="bilinear", align_corners=False)
        change = change - change.mean((2, 3), keepdim=True)
        return shifted(pictures, unit(change * contrast(pictures).sqrt()), psnr)


@torch.no_grad()
def draw(vae: Any, pictures: Callable[[int], Tensor], count: int, chunk: int = 8) -> Drawn:
    """Encode pictures, decode them, and keep what comes out and what the last block's residual blocks see.

    Args:
        vae: Of diffusers' AutoencoderKL layout.
        pictures: Gives n pictures [n, 3, H, W] in [-1, 1], of even sides.
        count: How many.
        chunk: How many at once.
    """
    seen: list[Tensor] = []
    convolutions = [resnet.conv1 for resnet in vae.decoder.up_blocks[-1].resnets]
    handles = [
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(F.avg_pool2d(inputs[0], 2).half().cpu()))
        for layer in convolutions
    ]
    place = next(vae.parameters())
    decoded, activations = [], []
    try:
        for first in range(0, count, chunk):
            images = pictures(min(chunk, count - first)).to(place.device, place.dtype)
            out = vae.decode(vae.encode(images).latent_dist.mean).sample
            decoded.append(((out.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8).cpu())
            activations.append(torch.cat(seen, dim=1))
            seen.clear()
    finally:
        for handle in handles:
            handle.remove()
    basis = _basis(torch.cat(activations[: -(-BASIS // chunk)]))
    maps = [torch.einsum("bchw,ck->bkhw", _centred(part), basis).half() for part in activations]
    return Drawn(torch.cat(decoded), torch.cat(maps))


def _centred(activations: Tensor) -> Tensor:
    found = activations.float()
    return found - found.mean((2, 3), keepdim=True)


def _basis(activations: Tensor) -> Tensor:
    """Return directions [C, at most MAPS] of the largest variance, scaled so that components have variance 1."""
    found = _centred(activations).transpose(0, 1).flatten(1).double()
    values, vectors = torch.linalg.eigh(found @ found.T / found.shape[1])
    values, vectors = values.flip(0)[:MAPS], vectors.flip(1)[:, :MAPS]
    kept = values > 1e-6 * values[0]
    return (vectors[:, kept] * values[kept].rsqrt()).float()
