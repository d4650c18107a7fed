"""Losses between pictures that need no downloaded weights, and the symmetry of heads."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from lrdiff.errors import ShapeError

LEVELS = 3
POOL = 4
WINDOW, SIGMA = 11, 1.5
"""Of the Gaussian window of SSIM, in pixels."""
STEADY = (0.01**2, 0.03**2)
"""SSIM's constants c1 and c2 for pixels in [0, 1]."""


def pyramid(one: Tensor, other: Tensor, levels: int = LEVELS) -> Tensor:
    """Return the mean absolute difference of each picture at several scales.

    Args:
        one: [B, C, H, W].
        other: The same shape.
        levels: Scales: 1, 1/2, 1/4, ... The coarse ones tell the optimiser where things are that do not overlap yet.

    Returns:
        [B].
    """
    total = one.new_zeros(len(one))
    for level in range(levels):
        a, b = (functional.avg_pool2d(x, 2**level) for x in (one, other))
        total = total + (a - b).abs().mean((1, 2, 3))
    return total / levels


def reconstruction(one: Tensor, other: Tensor, perceived: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
    """Return mean squared error plus a perceived difference of each picture, [B].

    Args:
        one: [B, 3, H, W] in [-1, 1].
        other: The same shape.
        perceived: LPIPS, as published; None takes :func:`pyramid`.

    Differs from the paper: without weights of the user's own, the pyramid takes the place of LPIPS.
    """
    return (one - other).square().mean((1, 2, 3)) + (perceived or pyramid)(one, other)


def identity_distance(embed: Callable[[Tensor], Tensor], one: Tensor, photos: Tensor) -> Tensor:
    """Return 1 - mean cosine between features of what is made and of the photos (My3DGen's optional regulariser).

    Args:
        embed: An identity network, [B, 3, H, W] -> [B, D].
        one: Made, [B, 3, H, W].
        photos: [B, 3, H, W].
    """
    return 1 - functional.cosine_similarity(embed(one), embed(photos).detach()).mean()


def identity_symmetry(embed: Callable[[Tensor], Tensor], one: Tensor, other: Tensor) -> Tensor:
    """Return 1 - mean cosine between features of a view and of the flipped view from the mirrored side (My3DGen).

    Args:
        embed: An identity network, [B, 3, H, W] -> [B, D].
        one: Views [B, 3, H, W].
        other: Views of the same heads with the opposite yaw.
    """
    return 1 - functional.cosine_similarity(embed(one), embed(other.flip(3))).mean()


def pixel_symmetry(one: Tensor, other: Tensor, temperature: float = 0.25) -> Tensor:
    """Return how much a view differs from the flipped view from the mirrored side, where they could agree.

    Both are pooled by 4. Each place counts by its confidence exp(-|difference| / temperature), without gradient: what
    differs strongly (a scar, a parting, a shadow) is taken for real and left alone.

    Args:
        one: Views [B, 3, H, W] in [-1, 1].
        other: Views of the same heads with the opposite yaw.
        temperature: Differences well above it are left alone.
    """
    difference = (functional.avg_pool2d(one, POOL) - functional.avg_pool2d(other, POOL).flip(3)).abs()
    confidence = torch.exp(-difference.detach().mean(1, keepdim=True) / temperature)
    return (confidence * difference).mean()


def psnr(one: Tensor, other: Tensor) -> Tensor:
    """Return the PSNR in dB of each of a batch of pictures in [-1, 1], [B]; infinite for equal pictures."""
    error = (one.clamp(-1, 1) - other.clamp(-1, 1)).square().mean((1, 2, 3))
    return -10 * torch.log10(error / 4)


def ssim(one: Tensor, other: Tensor) -> Tensor:
    """Return the structural similarity (Wang et al. 2004) of each of a batch of pictures, [B]; 1 for equal pictures.

        (2 m n + c1) (2 cov + c2) / ((m^2 + n^2 + c1) (var + var' + c2))

    over Gaussian windows that lie wholly in the picture, averaged over places and colour channels.

    Args:
        one: [B, C, H, W] in [-1, 1], at least 11 pixels on a side; values beyond are clipped.
        other: The same shape.

    Raises:
        ShapeError: The shapes differ, or a side is shorter than the window.
    """
    if one.shape != other.shape or min(one.shape[-2:]) < WINDOW:
        raise ShapeError(
            f"SSIM compares pictures of one shape, {WINDOW} pixels or more on a side, not {list(one.shape)} with "
            f"{list(other.shape)}; enlarge them or compare others"
        )
    x, y = ((image.clamp(-1, 1) + 1) / 2 for image in (one, other))
    distance = torch.arange(WINDOW, device=one.device, dtype=one.dtype) - WINDOW // 2
    line = torch.exp(-0.5 * (distance / SIGMA).square())
    line = line / line.sum()
    kernel = torch.outer(line, line).expand(one.shape[1], 1, -1, -1)

    def mean(image: Tensor) -> Tensor:
        return functional.conv2d(image, kernel, groups=one.shape[1])

    m, n = mean(x), mean(y)
    variance, other_variance, covariance = mean(x * x) - m * m, mean(y * y) - n * n, mean(x * y) - m * n
    c1, c2 = STEADY
    luminance = (2 * m * n + c1) / (m * m + n * n + c1)
    structure = (2 * covariance + c2) / (variance + other_variance + c2)
    return (luminance * structure).mean((1, 2, 3))
