"""Losses: zero on equals, right scale, and what they are meant to notice."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lrdiff.errors import ConfigError, ShapeError
from lrdiff.watermark.losses import bit_accuracy, bit_loss, image_loss, masked, psnr, watson
from tests.lrdiff.watermark.conftest import pictures
from tests.networks import lpips_state, write

BOTH = pytest.mark.parametrize("kind", ["masked", "watson"])


def noise(like: Tensor, rms: float, seed: int = 3) -> Tensor:
    return rms * torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


@BOTH
def test_equal_pictures_cost_nothing_and_have_a_finite_gradient(kind: str) -> None:
    clean = pictures(2, 0, side=32)
    marked = clean.clone().requires_grad_(True)
    loss = image_loss(kind)(marked, clean)  # pyright: ignore[reportArgumentType]
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    loss.backward()
    assert marked.grad is not None
    assert bool(marked.grad.isfinite().all())


@BOTH
def test_a_larger_error_costs_more_and_the_gradient_points_back(kind: str) -> None:
    clean = pictures(2, 0, side=32)
    compare = image_loss(kind)  # pyright: ignore[reportArgumentType]
    small, large = (float(compare(clean + noise(clean, rms), clean)) for rms in (0.02, 0.04))
    assert 0 < small < large
    marked = (clean + noise(clean, 0.04)).requires_grad_(True)
    compare(marked, clean).backward()
    assert marked.grad is not None
    assert float((marked.grad * (marked.detach() - clean)).sum()) > 0


@BOTH
def test_texture_hides_what_a_smooth_place_shows(kind: str) -> None:
    compare = image_loss(kind)  # pyright: ignore[reportArgumentType]
    smooth = torch.zeros(1, 3, 64, 64)
    textured = 0.4 * torch.sign(pictures(1, 5, side=64))
    error = noise(smooth, 0.03)
    assert float(compare(smooth + error, smooth)) > 2 * float(compare(textured + error, textured))


def test_one_is_an_even_error_of_34_db_on_a_flat_picture() -> None:
    flat = torch.zeros(1, 3, 64, 64)
    marked = flat + 0.04
    assert float(psnr(marked, flat)) == pytest.approx(34.0, abs=0.05)
    assert float(masked(marked, flat)) == pytest.approx(1.0 + 0.25, rel=1e-4)


def test_the_worst_window_makes_a_gathered_error_dearer_than_a_spread_one() -> None:
    flat = torch.zeros(1, 3, 64, 64)
    spread, gathered = flat + 0.02, flat.clone()
    gathered[..., :16, :16] = 0.08
    assert float(psnr(spread, flat)) == pytest.approx(float(psnr(gathered, flat)), abs=1e-3)
    assert float(masked(gathered, flat)) > 3 * float(masked(spread, flat))


def test_small_and_odd_pictures_have_a_loss() -> None:
    for side in (1, 7, 33):
        clean = torch.zeros(2, 3, side, side + 2)
        assert math.isfinite(float(masked(clean + 0.1, clean)))
    with pytest.raises(ShapeError, match="8 x 8"):
        watson(torch.zeros(1, 3, 7, 9), torch.zeros(1, 3, 7, 9))


def test_the_bit_loss_is_the_cross_entropy_of_scaled_logits() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])
    key = torch.tensor([1.0, 0.0, 1.0])
    signs = 2 * key - 1
    for gain in (1.0, 10.0):
        expected = torch.log1p(torch.exp(-gain * signs * logits)).mean()
        assert float(bit_loss(logits, key, gain)) == pytest.approx(float(expected), rel=1e-5)
    assert float(bit_accuracy(logits, key)) == pytest.approx(3 / 6)


@pytest.mark.parametrize("focus", [0.5, 1.0, 3.0])
def test_focus_weighs_every_bit_by_its_own_loss(focus: float) -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]], dtype=torch.float64, requires_grad=True)
    key = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    signs = 2 * key - 1
    each = torch.log1p(torch.exp(-signs * logits.detach())).mean(0)
    weights = each**focus / (each**focus).sum()
    loss = bit_loss(logits, key, focus=focus)
    assert float(loss.detach()) == pytest.approx(float((weights * each).sum()), rel=1e-9)
    # The weights are no part of what is differentiated.
    loss.backward()
    expected = -weights * signs * torch.sigmoid(-signs * logits.detach()) / len(logits)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, expected)


def test_focus_leaves_perfect_bits_alone_and_stays_finite() -> None:
    perfect = torch.full((2, 4), 1e4, requires_grad=True)
    loss = bit_loss(perfect, torch.ones(4), focus=2.0)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert perfect.grad is not None
    assert bool(perfect.grad.isfinite().all())


@pytest.mark.parametrize("bits", [48, 64, 100])
def test_the_bit_loss_is_finite_for_any_number_of_bits_and_large_gains(bits: int) -> None:
    logits = (1e4 * torch.randn(2, bits, generator=torch.Generator().manual_seed(0))).requires_grad_(True)
    loss = bit_loss(logits, torch.ones(bits), gain=10.0)
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


def test_psnr_is_taken_with_pixels_in_zero_to_one_and_clipped() -> None:
    clean = torch.zeros(1, 3, 4, 4)
    assert float(psnr(clean + 0.2, clean)) == pytest.approx(20.0, abs=1e-4)
    assert math.isinf(float(psnr(clean, clean)))
    assert math.isinf(float(psnr(clean + 5.0, clean + 1.0))), "both are white in a file"


def test_unusable_losses_and_keys_are_refused() -> None:
    with pytest.raises(ConfigError, match="known: masked"):
        image_loss("vgg")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ShapeError, match="as many bits"):
        bit_loss(torch.zeros(2, 4), torch.zeros(5))


def test_lpips_takes_the_users_weights(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="use masked"):
        image_loss("lpips")
    compare = image_loss("lpips", write(tmp_path / "lpips.pth", lpips_state()))
    clean = torch.rand(2, 3, 48, 48) * 2 - 1
    marked = (clean + 0.1 * torch.randn(clean.shape)).requires_grad_(True)
    loss = compare(marked, clean)
    assert loss.shape == ()
    loss.backward()
    assert marked.grad is not None
    assert float(marked.grad.abs().max()) > 0
    assert float(compare(clean, clean)) == 0
