"""What pictures are compared with."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lrdiff.errors import ShapeError
from lrdiff.triplane.losses import ssim


def slow_ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Wang's formula, place by place, with weighted sums of deviations: pictures [C, H, W] in [0, 1]."""
    weight = np.array([[math.exp(-(i * i + j * j) / (2 * 1.5**2)) for j in range(-5, 6)] for i in range(-5, 6)])
    weight /= weight.sum()
    values = []
    for channel in range(one.shape[0]):
        for top in range(one.shape[1] - 10):
            for left in range(one.shape[2] - 10):
                a, b = (image[channel, top : top + 11, left : left + 11] for image in (one, other))
                m, n = (weight * a).sum(), (weight * b).sum()
                va, vb = (weight * (a - m) ** 2).sum(), (weight * (b - n) ** 2).sum()
                cov = (weight * (a - m) * (b - n)).sum()
                top_part = (2 * m * n + 1e-4) * (2 * cov + 9e-4)
                values.append(top_part / ((m * m + n * n + 1e-4) * (va + vb + 9e-4)))
    return float(np.mean(values))


def test_ssim_is_wangs_formula() -> None:
    rng = torch.Generator().manual_seed(0)
    one = torch.rand(3, 3, 14, 17, generator=rng, dtype=torch.float64) * 2 - 1
    other = (one + 0.4 * torch.randn(one.shape, generator=rng, dtype=torch.float64)).clamp(-1, 1)
    expected = [slow_ssim(*((image.numpy() + 1) / 2 for image in pair)) for pair in zip(one, other, strict=True)]
    assert ssim(one, other).tolist() == pytest.approx(expected, abs=1e-12)
    assert ssim(one.float(), other.float()).tolist() == pytest.approx(expected, abs=1e-5)


def test_ssim_of_equal_and_of_opposite_pictures() -> None:
    picture = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    assert torch.allclose(ssim(picture, picture), torch.ones(2), atol=1e-6)
    assert float(ssim(picture, -picture).max()) < 0
    assert torch.equal(ssim(picture * 9, picture), ssim((picture * 9).clamp(-1, 1), picture))


def test_ssim_refuses_what_its_window_does_not_fit_into() -> None:
    with pytest.raises(ShapeError, match="11 pixels"):
        ssim(torch.zeros(1, 3, 10, 16), torch.zeros(1, 3, 10, 16))
    with pytest.raises(ShapeError, match="one shape"):
        ssim(torch.zeros(1, 3, 16, 16), torch.zeros(2, 3, 16, 16))
