"""A tiny random extractor, whitened and calibrated on smooth random pictures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lrdiff.watermark.extractor import Extractor


def pictures(count: int, seed: int, side: int = 16) -> Tensor:
    """Return random pictures [count, 3, side, side] in [-1, 1] with structure at several scales."""
    rng = torch.Generator().manual_seed(seed)
    parts = [
        F.interpolate(torch.randn(count, 3, cells, cells, generator=rng), (side, side), mode="bilinear")
        for cells in (1, 4, side)
    ]
    return torch.tanh(0.4 * sum(parts, torch.zeros(1)))


def build_extractor() -> Extractor:
    torch.manual_seed(0)
    extractor = Extractor(bits=24, width=32, depth=2)
    extractor.train()
    for seed in range(20):  # running statistics of the normalisation
        extractor.raw(pictures(64, seed))
    extractor.whiten(pictures(500, seed) for seed in range(100, 106))
    extractor.calibrate({"random": [pictures(500, seed) for seed in range(200, 206)]})
    return extractor.requires_grad_(False).eval()


@pytest.fixture(scope="session")
def extractor() -> Extractor:
    """Return a calibrated tiny extractor; read-only by agreement."""
    return build_extractor()
