"""Mixtures of a person's anchors: bounds, edits that end at the edge, photos that are filled in and enlarged."""

from __future__ import annotations

import pytest
import torch

from lrdiff.errors import ConfigError
from lrdiff.rng import stream
from lrdiff.triplane.hull import directions, explain, hiding, mixed, mixture, moved, sample, shrinking
from lrdiff.triplane.losses import psnr
from lrdiff.triplane.personal import orbit
from tests.lrdiff.triplane.tiny import MINI, tiny


def test_shares_sum_to_one_and_keep_the_bound() -> None:
    free = 20 * torch.randn(50, 6, generator=stream(0, "free"))
    for beta in (0.0, 0.02, 0.5):
        shares = mixture(free, beta)
        torch.testing.assert_close(shares.sum(1), torch.ones(50))
        assert float(shares.min()) >= -beta - 1e-6
    assert float(mixture(free, 0.5).min()) == pytest.approx(-0.5, abs=1e-3), "the bound can be reached"
    torch.testing.assert_close(mixture(torch.zeros(4)), torch.full((4,), 0.25))


def test_samples_are_inside_and_among_few() -> None:
    shares = sample(200, 10, stream(0, "sample"))
    torch.testing.assert_close(shares.sum(1), torch.ones(200))
    assert float(shares.min()) == 0
    assert set((shares > 0).sum(1).tolist()) == {3}
    assert bool((shares > 0).any(0).all()), "every anchor is used"
    assert sample(2, 1, stream(0, "one")).tolist() == [[1.0], [1.0]]


def test_an_edit_goes_where_it_should_and_ends_at_the_edge() -> None:
    anchors = torch.randn(5, 1, 8, generator=stream(0, "anchors"))
    start = torch.full((5,), 0.2)
    direction = (anchors[1] - anchors[0])[0]
    shares, whole = moved(anchors, start, direction, 0.1)
    assert whole
    torch.testing.assert_close(shares, start + 0.1 * torch.tensor([-1.0, 1.0, 0.0, 0.0, 0.0]), atol=1e-4, rtol=0)
    change = mixed(anchors, shares[None]) - mixed(anchors, start[None])
    torch.testing.assert_close(change[0, 0], 0.1 * direction, atol=1e-4, rtol=0)
    far, whole = moved(anchors, start, direction, 5.0)
    assert not whole
    assert float(far.min()) == pytest.approx(-0.02, abs=1e-5)
    assert float(far.sum()) == pytest.approx(1.0, abs=1e-5)


def test_hidden_parts_are_filled_in_and_small_pictures_enlarged() -> None:
    generator = tiny(config=MINI).requires_grad_(False)
    with torch.no_grad():
        generator.decoder.net[2].weight *= 3.0
    anchors = generator.mapping(torch.randn(3, 24, generator=stream(1, "z")))[:, :1]
    true = mixed(anchors, torch.tensor([[0.8, 0.15, 0.05]])).expand(-1, MINI.latents, -1)
    photo = generator.view(true, orbit(generator, torch.tensor([[0.36, 0.0]]))).image
    mask = torch.ones(1, 1, 32, 32)
    mask[..., 8:24, 12:20] = 0
    start = generator.view(
        mixed(anchors, torch.full((1, 3), 1 / 3)).expand_as(true), orbit(generator, torch.zeros(1, 2))
    )
    for degrade in (hiding(mask), shrinking(8)):
        found = explain(generator, anchors, degrade(photo), degrade, steps=40, lr=0.2)
        made = generator.view(found.ws.expand_as(true), found.camera).image
        assert float(psnr(made, photo)) > float(psnr(start.image, photo)) + 3
        assert float(found.shares.argmax()) == 0
    with pytest.raises(ConfigError, match="the photo is"):
        explain(generator, anchors, photo, shrinking(8), steps=1)


def test_directions_change_their_trait_only() -> None:
    generator = tiny(config=MINI)
    generator.requires_grad_(False)
    first = generator.mapping(torch.zeros(1, 24))[0, 0]
    found = directions(generator, lambda z: {"a": z[:, 0], "b": z[:, 1] + 0.5 * z[:, 0]}, count=500)
    assert {name: tuple(value.shape) for name, value in found.items()} == {"a": first.shape, "b": first.shape}
    z = torch.randn(2000, 24, generator=stream(3, "z"))
    step = generator.mapping(z)[:, 0] - generator.mapping(z)[:, 0].mean(0)
    along = step @ found["b"] / found["b"].square().sum()
    correlation = torch.corrcoef(torch.stack([along, z[:, 1], z[:, 2]]))
    assert float(correlation[0, 1]) > 0.5 > 5 * abs(float(correlation[0, 2]))
    with pytest.raises(ConfigError, match="trait a is the same"):
        directions(generator, lambda z: {"a": 0 * z[:, 0]}, count=10)
