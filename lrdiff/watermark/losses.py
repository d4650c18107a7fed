"""What a mark costs and what it must reach: the difference to the unmarked picture, and the bits.

None of the default losses needs downloaded weights. All take pictures in [-1, 1] and compare with what the unmarked
decoder makes of the same latents, never with a photo.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lrdiff.dct import blocks_dct
from lrdiff.errors import ConfigError, ShapeError
from lrdiff.lpips import SUPPLY, load_lpips

ImageLoss = Literal["masked", "watson", "lpips"]
Compare = Callable[[Tensor, Tensor], Tensor]

# ITU-R BT.601, for pixels in any range that is symmetric about 0
YCBCR = ((0.299, 0.587, 0.114), (-0.1687, -0.3313, 0.5), (0.5, -0.4187, -0.0813))

VISIBLE = 0.04
"""Error, with pixels in [-1, 1], at which `masked` gives 1 on a flat picture: an even error of it is 34 dB."""
CONTRAST = 8.0
"""A neighbourhood of standard deviation s (pixels in [-1, 1]) hides errors 1 + CONTRAST s times as large."""
CHROMA = 0.5
"""Errors of the two colour channels count this much of an equal one in brightness: the eye resolves them less."""
WINDOW, STRIDE = 16, 8
"""Windows, in pixels, in which `masked` looks for the worst place."""
WORST = 0.25
"""Weight of the worst window."""

# Contrast sensitivity of 8 x 8 DCT coefficients, 8-bit scale, for a viewing distance of about 4 picture heights.
WATSON = (
    (1.40, 1.01, 1.16, 1.66, 2.40, 3.43, 4.79, 6.56),
    (1.01, 1.45, 1.32, 1.52, 2.00, 2.71, 3.67, 4.93),
    (1.16, 1.32, 2.24, 2.59, 2.98, 3.64, 4.60, 5.88),
    (1.66, 1.52, 2.59, 3.77, 4.55, 5.30, 6.28, 7.60),
    (2.40, 2.00, 2.98, 4.55, 6.15, 7.46, 8.71, 10.17),
    (3.43, 2.71, 3.64, 5.30, 7.46, 9.62, 11.58, 13.51),
    (4.79, 3.67, 4.60, 6.28, 8.71, 11.58, 14.50, 17.29),
    (6.56, 4.93, 5.88, 7.60, 10.17, 13.51, 17.29, 21.15),
)
LUMINANCE, MASKING, POOLING = 0.649, 0.7, 4.0
"""Watson's exponents of luminance masking, of contrast masking and of the pooling over coefficients."""


def bit_loss(logits: Tensor, key: Tensor, gain: float = 1.0, focus: float = 0.0) -> Tensor:
    """Binary cross-entropy of `gain` x logit with the key's bits, averaged over pictures, then over bits.

        L = sum_b w_b L_b,    w_b = L_b^focus / sum_c L_c^focus,    L_b the mean over pictures, w_b held fixed

    Alike for all bits (`focus` 0, as in the papers), a bit that costs more of the picture than the others is given up:
    it pays less to turn it than to make others safer.

    Args:
        logits: Of the frozen extractor, [B, bits].
        key: Zeros and ones, [bits].
        gain: A larger one lets a bit count as safe at a smaller logit.
        focus: How much more the bits count that are read worst; at least 0.

    Raises:
        ShapeError: The key has another length.
    """
    if logits.ndim != 2 or key.shape != logits.shape[1:]:
        raise ShapeError(f"logits {list(logits.shape)} need a key of as many bits, not {list(key.shape)}")
    target = key.to(logits).expand_as(logits)
    losses = F.binary_cross_entropy_with_logits(gain * logits, target, reduction="none").mean(0)
    if focus == 0:
        return losses.mean()
    tiny = torch.finfo(losses.dtype).tiny  # where every bit is perfect, none is the worst
    weights = ((losses.detach() + tiny) / (losses.detach().max() + tiny)) ** focus
    return (weights * losses).sum() / weights.sum()


def bit_accuracy(logits: Tensor, key: Tensor) -> Tensor:
    """Return the share of bits that are read right, a scalar. A bit is 1 where its logit is above 0."""
    return ((logits > 0) == key.to(logits.device).bool()).float().mean()


def psnr(marked: Tensor, clean: Tensor) -> Tensor:
    """Return 10 log10(1 / mean squared error) over the batch with pixels in [0, 1]; infinite where they are equal.

    Args:
        marked: [B, 3, H, W] in [-1, 1]; values beyond it count as clipped, as they are when a file is written.
        clean: The same pictures from the unmarked decoder.
    """
    error = ((marked.float().clamp(-1, 1) - clean.float().clamp(-1, 1)) / 2).square().mean()
    return -10 * torch.log10(error)


def image_loss(kind: ImageLoss, weights: Path | None = None) -> Compare:
    """Return the loss of this name, a function of (marked, clean), both [B, 3, H, W] in [-1, 1].

    Args:
        kind: Its name.
        weights: File of the user's, which lpips needs.

    Raises:
        ConfigError: There is no such loss, or lpips has no usable weights.
    """
    if kind == "masked":
        return masked
    if kind == "watson":
        return watson
    if kind == "lpips":
        if weights is None:
            raise ConfigError(f"image loss lpips has no weights, and none are shipped; give {SUPPLY}, or use masked")
        return _lpips(weights)
    raise ConfigError(f"image loss {kind!r} is unknown; known: masked, watson, lpips")


def masked(marked: Tensor, clean: Tensor, levels: int = 3) -> Tensor:
    """Contrast-masked error at several scales, plus the worst window.

        sum over scales of mean ((e / tau)^2) / levels + WORST max over windows of mean (e_luma / VISIBLE)^2
        tau = VISIBLE (1 + CONTRAST sigma)

    where sigma is the local standard deviation of the clean picture's brightness, so an error hides in texture and
    shows on what is smooth; lower scales see only errors that stay when the eye is farther away. The second term keeps
    the mark from being put into one place. Ours; its idea of a maximum over windows is PRVL's of arXiv 2405.11135.

    Args:
        marked: [B, 3, H, W].
        clean: Of the same shape.
        levels: Scales, each half as large as the one before; fewer where the picture is too small.
    """
    error, luma = _opponent(marked - clean), _opponent(clean)[:, :1]
    worst = _worst_window(error[:, :1])
    error = error * torch.tensor([1.0, CHROMA, CHROMA], device=error.device).view(3, 1, 1)
    total = torch.zeros((), device=error.device)
    used = min(levels, max(1, int(math.log2(min(error.shape[-2:])))))
    for level in range(used):
        if level:
            error, luma = F.avg_pool2d(error, 2), F.avg_pool2d(luma, 2)
        total = total + (error / (VISIBLE * (1 + CONTRAST * _local_std(luma)))).square().sum(1).mean()
    return total / used + WORST * worst


def watson(marked: Tensor, clean: Tensor) -> Tensor:
    """Watson's model of visibility on 8 x 8 DCT blocks (SPIE 1913, 1993), on Y, Cb and Cr.

        t_L = t (C00 / mean C00)^0.649,   s = max(t_L, |C|^0.7 t_L^0.3),   D^2 = (mean ((dC / s)^4))^(2/4)

    with C the coefficients of the clean picture. Squared, so that it falls smoothly to zero.

    Differs from Watson-DFT (arXiv 2006.15057): that one compares Fourier amplitudes and phases with learned
    sensitivities, which are a download; here the published DCT sensitivities of 1993 are used. The ratio of
    luminances is bounded below by 0.1, since a black block would hide nothing.

    Args:
        marked: [B, 3, H, W], at least 8 pixels on a side; what does not fill a block at the right and the bottom is
            left out.
        clean: Of the same shape.

    Raises:
        ShapeError: A side is below 8 pixels.
    """
    if min(marked.shape[-2:]) < 8:
        raise ShapeError(f"Watson's loss works on blocks of 8 x 8 pixels, not on {list(marked.shape)}")
    offset = torch.tensor([127.5, 0.0, 0.0], device=marked.device).view(3, 1, 1)
    mine, theirs = (blocks_dct(_opponent(images) * 127.5 + offset) for images in (marked, clean))
    table = torch.tensor(WATSON, device=marked.device)
    dc = theirs[:, :1, :, :, :1, :1]
    ratio = (dc / dc.mean((2, 3), keepdim=True).clamp_min(1e-6)).clamp_min(0.1)
    threshold = table * ratio**LUMINANCE
    slack = torch.maximum(threshold, theirs.abs() ** MASKING * threshold ** (1 - MASKING))
    tiny = 1e-6  # the root has no derivative at zero
    pooled = ((mine - theirs) / slack).abs().pow(POOLING).mean((1, 2, 3, 4, 5))
    return ((pooled + tiny).pow(2 / POOLING) - tiny ** (2 / POOLING)).mean()


def _opponent(images: Tensor) -> Tensor:
    """Return brightness and two colour differences, float32."""
    matrix = torch.tensor(YCBCR, device=images.device)
    return torch.einsum("ij,bjhw->bihw", matrix, images.float())


def _local_std(luma: Tensor, size: int = 5) -> Tensor:
    """Return the standard deviation within size x size pixels."""
    average = lambda x: F.avg_pool2d(x, size, stride=1, padding=size // 2, count_include_pad=False)  # noqa: E731
    # Rounding can make a variance of zero slightly negative.
    return (average(luma.square()) - average(luma).square()).clamp_min(0).sqrt()


def _worst_window(luma_error: Tensor) -> Tensor:
    """Return the largest mean squared error of a window, in units of what is just visible, averaged over the batch."""
    side = min(WINDOW, *luma_error.shape[-2:])
    means = F.avg_pool2d((luma_error / VISIBLE).square(), side, stride=min(STRIDE, side))
    return means.flatten(1).max(1).values.mean()


def _lpips(weights: Path) -> Compare:
    """Return LPIPS (arXiv 1801.03924), averaged over the batch."""
    network = load_lpips(weights)

    def compare(marked: Tensor, clean: Tensor) -> Tensor:
        return network.to(marked.device)(marked, clean).mean()

    return compare
