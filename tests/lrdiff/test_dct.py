"""The DCT of blocks: orthonormal, reversible, and the one of the definition."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from lrdiff.dct import blocks_dct, blocks_inverse, dct_matrix, whole_blocks


def pictures(count: int = 2, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_it_is_orthonormal_and_its_first_coefficient_the_mean() -> None:
    images = pictures()
    coefficients = blocks_dct(images)
    assert coefficients.shape == (2, 3, 2, 3, 8, 8)
    torch.testing.assert_close(coefficients.square().sum(), images.square().sum())
    torch.testing.assert_close(coefficients[..., 0, 0], 8 * F.avg_pool2d(images, 8))


def test_one_coefficient_is_the_cosine_of_the_definition() -> None:
    coefficients = torch.zeros(1, 1, 1, 1, 8, 8, dtype=torch.float64)
    coefficients[..., 2, 3] = 1.0
    rows, columns = (
        torch.tensor([math.cos(math.pi * (2 * place + 1) * number / 16) / 2 for place in range(8)], dtype=torch.float64)
        for number in (2, 3)
    )
    torch.testing.assert_close(blocks_inverse(coefficients)[0, 0], rows[:, None] * columns)
    assert dct_matrix(coefficients).dtype == torch.float64


def test_the_inverse_gives_whole_blocks_back() -> None:
    images = pictures(height=13, width=17)
    filled = whole_blocks(images)
    assert filled.shape == (2, 3, 16, 24)
    torch.testing.assert_close(blocks_inverse(blocks_dct(filled)), filled)
    torch.testing.assert_close(filled[:, :, 13:, :17], images[:, :, -1:].expand(-1, -1, 3, -1))
    assert torch.equal(whole_blocks(filled), filled)


def test_what_fills_no_block_is_left_out() -> None:
    images = pictures(height=13, width=17)
    torch.testing.assert_close(blocks_dct(images), blocks_dct(images[..., :8, :16]))
