"""How different the pictures of one prompt are: what falls when a model collapses onto a reward."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lrdiff.errors import ShapeError

SIDE = 16


def diversity(images: Tensor) -> float:
    """Return the mean over prompts of the mean pairwise distance of a prompt's pictures.

    The distance is the root mean square difference of both pictures at 16 x 16 pixels: layout and colour count, noise
    and texture do not. No network reads them, so no training can fool one.

    Args:
        images: [prompts, pictures per prompt (at least 2), 3, H, W] in [0, 1].

    Returns:
        0 for equal pictures; black against white is 1.
    """
    if images.ndim != 5 or images.shape[1] < 2:
        raise ShapeError(f"diversity takes [prompts, at least 2, 3, H, W], not {list(images.shape)}")
    small = F.interpolate(images.flatten(0, 1).float(), (SIDE, SIDE), mode="area").unflatten(0, images.shape[:2])
    pairs = torch.combinations(torch.arange(images.shape[1]), 2)
    squared = (small[:, pairs[:, 0]] - small[:, pairs[:, 1]]).square().mean((2, 3, 4))
    return float(squared.sqrt().mean())
