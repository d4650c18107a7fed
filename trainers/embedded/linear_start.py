"""A start for small autoencoders: the 8 x 8 block means, exactly, plus small random features.

From the usual random start a small `AutoencoderKL` spends its first hundreds of steps on learning to carry colours
through its normalisations. Here the weights are set so that the untrained network already is a linear autoencoder:
means of blocks in, tent interpolation out. Measured on 64 px crops, AdamW 1e-3, batch 8, mean PSNR of steps 76 to 100:
13.6 dB from the default start, 17.5 dB from this one.

Three facts make it work:
- SiLU(x) - SiLU(-x) = x, so a pair of channels (x, -x) passes a SiLU unharmed.
- A group norm over all channels (one group) only divides by one number, since the pairs cancel its mean; a pair of
  channels with the constants K and -K, large against the image, makes that number almost constant,
  K sqrt(2 / channels).
- Residual branches start small, shortcuts start as the identity, and resampling convolutions as block mean and tent.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from diffusers import AutoencoderKL
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

CONSTANT = 4.0
"""K: large against images in [-1, 1], small enough to leave the random features room."""
BRANCH = 0.2
"""Share of the default scale that residual branches start with."""


@torch.no_grad()
def linear_start(vae: AutoencoderKL) -> None:
    """Set the weights of a fresh autoencoder in place.

    Args:
        vae: With `norm_num_groups=1`, without attention, at least 3 latent channels.

    Raises:
        ValueError: The autoencoder normalises in several groups.
    """
    if vae.config["norm_num_groups"] != 1:
        raise ValueError("linear_start needs norm_num_groups=1")
    mean = torch.zeros(3, 3)
    mean[:2, :2] = 0.25
    tent = torch.outer(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 2.0, 1.0])) / 16
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            module.conv2.weight.mul_(BRANCH)
            nn.init.zeros_(module.conv2.bias)  # pyright: ignore[reportArgumentType]
            if module.conv_shortcut is not None:
                _identity(module.conv_shortcut, torch.ones(1, 1))  # pyright: ignore[reportArgumentType]
        elif isinstance(module, Downsample2D):
            _identity(module.conv, mean)  # pyright: ignore[reportArgumentType]
        elif isinstance(module, Upsample2D):
            _identity(module.conv, tent)  # pyright: ignore[reportArgumentType]
    for half in (vae.encoder, vae.decoder):
        _pairs_in(half.conv_in)
        _pairs_out(half.conv_out, cast(int, half.conv_norm_out.num_channels))
    latents = int(vae.config["latent_channels"])
    log_variance = slice(latents, 2 * latents)
    vae.encoder.conv_out.weight[log_variance] *= 0.1
    assert vae.encoder.conv_out.bias is not None
    vae.encoder.conv_out.bias[log_variance] = -4.0
    for projection in (vae.quant_conv, vae.post_quant_conv):
        _identity(projection, torch.ones(1, 1))  # pyright: ignore[reportArgumentType]


def _identity(conv: nn.Conv2d, kernel: Tensor) -> None:
    """Let channel c pass to channel c through `kernel`; further outputs keep their random weights."""
    for channel in range(min(conv.weight.shape[:2])):
        conv.weight[channel] = 0.0
        conv.weight[channel, channel] = kernel
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def _pairs_in(conv: nn.Conv2d) -> None:
    """Make the first channels x, -x of the first three inputs, then K, -K; the rest stays random at half scale."""
    nn.init.zeros_(conv.bias)  # pyright: ignore[reportArgumentType]
    conv.weight[:8] = 0.0
    conv.weight[8:] *= 0.5
    for channel in range(3):
        conv.weight[channel, channel, 1, 1] = 1.0
        conv.weight[channel + 3, channel, 1, 1] = -1.0
    assert conv.bias is not None
    conv.bias[6], conv.bias[7] = CONSTANT, -CONSTANT


def _pairs_out(conv: nn.Conv2d, channels: int) -> None:
    """Undo the norm's division and join the pairs to the first three outputs; the rest starts small."""
    scale = CONSTANT * math.sqrt(2.0 / channels)
    conv.weight *= 0.2
    nn.init.zeros_(conv.bias)  # pyright: ignore[reportArgumentType]
    conv.weight[:3] = 0.0
    for channel in range(3):
        conv.weight[channel, channel, 1, 1] = scale
        conv.weight[channel, channel + 3, 1, 1] = -scale
