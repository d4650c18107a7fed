"""The arithmetic of the generator's layers, without state (StyleGAN2, arXiv 1912.04958; EG3D, arXiv 2112.07945)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

LEAK = 0.2


def fir_filter() -> Tensor:
    """Return the separable [1, 3, 3, 1] low pass as a 4 x 4 filter of sum 1."""
    line = (1, 3, 3, 1)
    return torch.tensor([[one * other / sum(line) ** 2 for other in line] for one in line])


def filtered(images: Tensor, taps: Tensor) -> Tensor:
    """Correlate every channel with the same filter, without padding.

    Args:
        images: [B, C, H, W].
        taps: [K, K].

    Returns:
        [B, C, H - K + 1, W - K + 1].
    """
    channels = images.shape[1]
    return functional.conv2d(images, taps.to(images.dtype).expand(channels, 1, *taps.shape), groups=channels)


def zero_insert(images: Tensor) -> Tensor:
    """Put a zero after every pixel of every row and column: [B, C, H, W] -> [B, C, 2H, 2W]."""
    batch, channels, height, width = images.shape
    wide = images.new_zeros(batch, channels, height, 2, width, 2)
    wide[:, :, :, 0, :, 0] = images
    return wide.reshape(batch, channels, 2 * height, 2 * width)


def upsampled(images: Tensor, taps: Tensor) -> Tensor:
    """Double the side: zero-insert, pad 2 left and top and 1 right and bottom, low pass with gain 4.

    Args:
        images: [B, C, H, W].
        taps: [4, 4] of sum 1.

    Returns:
        [B, C, 2H, 2W].
    """
    return filtered(functional.pad(zero_insert(images), (2, 1, 2, 1)), taps * 4)


def leaky(x: Tensor) -> Tensor:
    """Leaky ReLU with slope 0.2 and gain sqrt 2, which keeps the variance of a centred normal about 1."""
    return functional.leaky_relu(x, LEAK) * math.sqrt(2)


def normalised(x: Tensor) -> Tensor:
    """Scale rows to a mean square of 1: x / sqrt(mean x^2 + 1e-8). [B, D] -> [B, D]."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def demodulation(weight: Tensor, style: Tensor) -> Tensor:
    """Return 1 / sqrt(sum over inputs and taps of (W s)^2 + 1e-8).

    Args:
        weight: [O, I, K, K].
        style: [B, I].

    Returns:
        [B, O].
    """
    return (style.square() @ weight.square().sum((2, 3)).T + 1e-8).rsqrt()


def modulated_conv(
    x: Tensor, weight: Tensor, style: Tensor, taps: Tensor, up: bool = False, demodulate: bool = True
) -> Tensor:
    """Convolve with weights that a style scales per input channel and the result's norm per output channel.

    y = conv(x s, W) d, with d of :func:`demodulation`. Scaling the activations instead of the weights lets all samples
    share one convolution. With `up`, the convolution is a transposed one of stride 2 with W as it is (no flip), then
    pad 1 and the low pass with gain 4.

    Args:
        x: [B, I, H, W].
        weight: [O, I, K, K]; K is odd.
        style: [B, I].
        taps: [4, 4] low pass of sum 1.
        up: Double the side (K must be 3).
        demodulate: Multiply by d.

    Returns:
        [B, O, H, W], or [B, O, 2H, 2W].
    """
    if demodulate and x.dtype == torch.float16:
        # d takes any scale out again, so both may be brought near 1 where half precision would overflow.
        weight = weight / weight.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
        style = style / style.abs().amax(1, keepdim=True).clamp_min(1e-12)
    factor = demodulation(weight, style) if demodulate else None
    x = x * style.to(x.dtype)[:, :, None, None]
    if up:
        x = functional.conv_transpose2d(x, weight.to(x.dtype).transpose(0, 1), stride=2)
        x = filtered(functional.pad(x, (1, 1, 1, 1)), taps * 4)
    else:
        x = functional.conv2d(x, weight.to(x.dtype), padding=weight.shape[-1] // 2)
    return x if factor is None else x * factor.to(x.dtype)[:, :, None, None]
