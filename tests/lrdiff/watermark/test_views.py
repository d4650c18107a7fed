"""Views of a picture: each undoes one way in which it may have been turned or resized."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lrdiff.watermark.views import DEGREES, PLAIN, SCALES, SEARCH, View, rotate


def smooth(height: int = 60, width: int = 80) -> Tensor:
    coarse = torch.rand(2, 3, 6, 8, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(-0.95, 0.95)


def test_a_search_tries_every_turn_and_every_tilt_in_every_size_once() -> None:
    assert SEARCH[0] == View() == PLAIN[0]
    assert len(set(SEARCH)) == len(SEARCH) == 8 + len(DEGREES) * len(SCALES) - 1 == 49
    assert len(set(map(str, SEARCH))) == 49
    # Neighbours lie so near that what lies between them is read: 12 degrees and a fifth cost a tenth of the bits.
    assert max(b - a for a, b in itertools.pairwise(sorted(DEGREES))) <= 10
    assert max(b / a for a, b in itertools.pairwise(sorted(SCALES))) <= 1.26


def test_the_plain_view_is_the_picture_itself() -> None:
    images = smooth()
    assert View()(images, 1024) is images
    assert str(View()) == "as it came"


@pytest.mark.parametrize("view", SEARCH[:8], ids=str)
def test_turns_are_exact(view: View) -> None:
    images = smooth()
    expected = images.flip(3) if view.mirrored else images
    assert torch.equal(view(images, 1024), torch.rot90(expected, view.quarters, (2, 3)))


@pytest.mark.parametrize("degrees", [-30, 10])
def test_a_tilt_is_undone_by_the_opposite_one(degrees: float) -> None:
    images = smooth()
    back = View(degrees=degrees)(View(degrees=-degrees)(images, 1024), 1024)
    middle = (slice(None), slice(None), slice(20, 40), slice(30, 50))
    assert float((back[middle] - images[middle]).abs().mean()) < 0.02
    assert float((View(degrees=degrees)(images, 1024)[middle] - images[middle]).abs().mean()) > 0.05


@pytest.mark.parametrize("scale", [0.64, 1.9])
def test_a_resize_is_undone_by_the_opposite_one(scale: float) -> None:
    images = smooth()
    resized = F.interpolate(images, scale_factor=1 / scale, mode="bicubic", antialias=True)
    back = View(scale=scale)(resized, 1024)
    assert [abs(a - b) <= 1 for a, b in zip(back.shape, images.shape, strict=True)] == [True] * 4
    back = F.interpolate(back, images.shape[-2:], mode="bicubic")
    assert float((back - images).abs().mean()) < 0.03
    assert back.abs().max() <= 1.05


def test_of_what_would_be_too_large_the_middle_is_taken() -> None:
    images = torch.zeros(1, 3, 100, 40)
    images[:, :, 45:55] = 1.0
    seen = View(scale=2.0)(images, 90)
    assert seen.shape == (1, 3, 90, 80)
    assert float(seen.mean()) == pytest.approx(10 * 2 / 90, abs=0.01)
    assert View(scale=0.01)(images, 90).shape == (1, 3, 1, 1)


def test_rotating_by_a_quarter_is_exact_and_the_corners_of_a_tilt_are_black() -> None:
    pixels = (smooth(40, 40) + 1) / 2
    quarter = rotate(pixels, torch.tensor([90.0, 90.0]))
    torch.testing.assert_close(quarter, torch.rot90(pixels, 1, (2, 3)), atol=1e-4, rtol=0)
    tilted = rotate(pixels, torch.tensor([30.0, 0.0]))
    assert float(tilted[0, :, 0, 0].abs().max()) == 0.0
    torch.testing.assert_close(tilted[1], pixels[1], atol=1e-5, rtol=0)
