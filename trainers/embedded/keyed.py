"""Marks as a decoder writes them: each bit chooses between two changes of the last block's convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.embedded.marks import contrast, shifted, unit

FRAME = 8
"""Pixels at each border that are not used: a decoder's zero padding tells it where the border is, and what it writes
there is lost with the first crop. The last block and the layers after it see five."""
SIZE = 0.5
"""Of all changes together, relative to the layer's own weights."""


class KeyedConv(nn.Module):
    """A convolution with weights of its own for every message: W + sum_b C[b, bit_b], all C of the same size.

    A bit that is not carried adds nothing. That is what tuning a decoder for one key does to its weights. A bit chooses
    between two changes and not the sign of one, for the reason given in `Marks`. A change that could grow would drown
    the others, whose bits are then never read: with free sizes a third of the bits was at chance when others were read
    from every picture.
    """

    def __init__(self, base: nn.Conv2d, bits: int) -> None:
        """Begin with random changes around a frozen convolution.

        Args:
            base: The convolution; not changed.
            bits: Of a message.
        """
        super().__init__()
        self.base = base.requires_grad_(False)
        self.size = SIZE * float(base.weight.norm()) / bits**0.5
        self.changes = nn.Parameter(torch.randn(2 * bits, base.weight.numel()))
        self.chosen: Tensor | None = None

    def weights(self, chosen: Tensor) -> Tensor:
        """Return the weights [B, out, in, h, w] with the changes [B, 2 bits] that are chosen, of 0 and 1."""
        changes = self.size * self.changes / self.changes.norm(dim=1, keepdim=True)
        return self.base.weight + (chosen @ changes).view(-1, *self.base.weight.shape)

    def forward(self, features: Tensor) -> Tensor:
        """Return the convolution's output with the changes in `chosen` [B, 2 bits], or without any."""
        if self.chosen is None:
            return self.base(features)
        padding: Any = self.base.padding
        pairs = zip(features.split(1), self.weights(self.chosen), strict=True)
        return torch.cat([F.conv2d(one, weight, self.base.bias, padding=padding) for one, weight in pairs])


class Keyed(nn.Module):
    """The end of a decoder, whose pictures carry bits.

    x' = x + a m(x) (D(h; bits) - D(h)) / |.|,  with D the last block and the layers after it, h what comes into them,
    m and a as in `Marks`.
    """

    def __init__(self, vae: Any, bits: int) -> None:
        """Take the end of an autoencoder's decoder.

        Args:
            vae: Of diffusers' AutoencoderKL layout. Its last block's convolutions are replaced.
            bits: Of a message.
        """
        super().__init__()
        decoder = vae.decoder.requires_grad_(False).eval()
        for resnet in decoder.up_blocks[-1].resnets:
            resnet.conv1 = KeyedConv(resnet.conv1, bits)
            resnet.conv2 = KeyedConv(resnet.conv2, bits)
        self.tail = nn.ModuleList([decoder.up_blocks[-1], decoder.conv_norm_out, decoder.conv_act, decoder.conv_out])

    def decode(self, features: Tensor, chosen: Tensor | None) -> Tensor:
        """Return pictures [B, 3, H, W] of features [B, C, H, W], with changes chosen by [B, 2 bits], or without any."""
        for module in self.modules():
            if isinstance(module, KeyedConv):
                module.chosen = chosen
        for layer in self.tail:
            features = layer(features)
        return features

    def forward(self, features: Tensor, bits: Tensor, psnr: float, carried: Tensor | None = None) -> Tensor:
        """Return marked pictures [B, 3, H - 2 FRAME, W - 2 FRAME].

        Args:
            features: [B, C, H, W], what comes into the last block.
            bits: [B, bits], 0 or 1.
            psnr: Of each changed picture in dB, before clipping to [-1, 1].
            carried: [B, bits], 0 for bits that are left out; none leaves out none.
        """
        chosen = torch.cat([1 - bits, bits], dim=1)
        if carried is not None:
            chosen = chosen * carried.repeat(1, 2)
        with torch.no_grad():
            plain = _inner(self.decode(features, None)).clamp(-1.0, 1.0)
        change = _inner(self.decode(features, chosen)) - plain
        return shifted(plain, unit(change * contrast(plain).sqrt()), psnr)


@torch.no_grad()
def features_of(vae: Any, pictures: Callable[[int], Tensor], count: int, chunk: int = 8) -> Tensor:
    """Return what comes into the last block of a decoder when it decodes encoded pictures, in half precision.

    Args:
        vae: Of diffusers' AutoencoderKL layout.
        pictures: Gives n pictures [n, 3, H, W] in [-1, 1].
        count: How many.
        chunk: How many at once.

    Returns:
        Features [count, C, H, W] on the CPU.
    """
    found: list[Tensor] = []
    block = vae.decoder.up_blocks[-1]
    handle = block.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].half().cpu()))
    place = next(vae.parameters())
    try:
        for first in range(0, count, chunk):
            images = pictures(min(chunk, count - first)).to(place.device, place.dtype)
            vae.decode(vae.encode(images).latent_dist.mean)
    finally:
        handle.remove()
    return torch.cat(found)


def _inner(images: Tensor) -> Tensor:
    return images[..., FRAME:-FRAME, FRAME:-FRAME]
