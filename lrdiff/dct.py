"""The discrete cosine transform of 8 x 8 blocks, as JPEG has it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
"""From red, green and blue to the planes that JPEG transforms (JFIF), without the offset of the colours."""


def dct_matrix(like: Tensor) -> Tensor:
    """Return the orthonormal DCT-II of 8 points, [8, 8], in the dtype and on the device of `like`."""
    number, place = torch.arange(8.0)[:, None], torch.arange(8.0)[None]
    rows = torch.cos(math.pi / 8 * (place + 0.5) * number) / 2
    rows[0] /= math.sqrt(2)
    return rows.to(like)


def blocks_dct(planes: Tensor) -> Tensor:
    """Return the coefficients of planes [B, C, H, W] as [B, C, H // 8, W // 8, 8, 8].

    What does not fill a block at the right and the bottom is left out.
    """
    basis = dct_matrix(planes)
    return basis @ planes.unfold(2, 8, 8).unfold(3, 8, 8) @ basis.T


def blocks_inverse(coefficients: Tensor) -> Tensor:
    """Return the planes [B, C, 8 rows, 8 columns] of coefficients [B, C, rows, columns, 8, 8]."""
    basis = dct_matrix(coefficients)
    planes = basis.T @ coefficients @ basis
    batch, channels, rows, columns = planes.shape[:4]
    return planes.transpose(3, 4).reshape(batch, channels, 8 * rows, 8 * columns)


def whole_blocks(planes: Tensor) -> Tensor:
    """Return planes [B, C, H, W] with the last row and column repeated until every block is whole."""
    height, width = planes.shape[-2:]
    return F.pad(planes, (0, -width % 8, 0, -height % 8), mode="replicate")
