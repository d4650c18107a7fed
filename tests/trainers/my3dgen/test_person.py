"""Photos of two people are noticed before anything is learned from them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lrdiff.images import save_png
from lrdiff.rng import stream
from lrdiff.triplane.people import two_groups
from lrdiff.world.heads import IDENTITY, LATENT, heads
from lrdiff.world.heads_render import orbit
from tests.networks import arcface_state, write
from tests.trainers.my3dgen.conftest import Studio
from trainers.my3dgen.identity import check_person, knows, load_identity

NAMES = [f"{number}.png" for number in range(10)]


@pytest.fixture(scope="module")
def people() -> Tensor:
    """Ten photos each of two people with changing expression, light and side, [2, 10, 3, 64, 64]."""
    rng = stream(5, "two people")
    z = torch.randn(2, 10, LATENT, generator=rng)
    z[..., :IDENTITY] = z[:, :1, :IDENTITY]
    angles = (torch.rand(20, 2, generator=rng) * 2 - 1) * torch.tensor([0.9, 0.25])
    return orbit(heads(z.flatten(0, 1)), angles[:, 0], angles[:, 1], 64, smooth=1).image.view(2, 10, 3, 64, 64)


def test_one_person_causes_no_warning(people: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    network = load_identity(None, torch.device("cpu"))
    for photos in people:
        assert "all photos seem to show one person" in check_person(photos, NAMES, network)
    assert not caplog.records


@pytest.mark.parametrize("strangers", [(1, 3, 4, 8), (6,)], ids=["four", "one"])
def test_the_photos_of_another_person_are_named(
    strangers: tuple[int, ...], people: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    photos = people[0].clone()
    photos[list(strangers)] = people[1][list(strangers)]
    said = check_person(photos, NAMES, load_identity(None, torch.device("cpu")))
    files = ", ".join(f"{number}.png" for number in strangers)
    assert f"two people: {files} differ from the other {10 - len(strangers)} " in said
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert files in caplog.text
    assert "take out one person" in caplog.text


def test_groups_of_vectors_that_are_known() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.6, 0.8]])
    group, alike = two_groups(vectors)
    assert group == [1, 4]
    assert alike == pytest.approx(0.3)
    assert two_groups(torch.tensor([[1.0, 0.0]] * 4))[1] == pytest.approx(1.0), "equal photos are one group"
    assert two_groups(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))[1] == 0.0


def test_five_hundred_photos_are_compared_at_once() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(500, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    assert 1 <= len(two_groups(vectors)[0]) <= 250


def test_what_was_not_checked_is_said(studio: Studio, people: Tensor, tmp_path: Path) -> None:
    assert not knows(None, studio.model), "nobody knows what a generator of the user's draws"
    trainer, _, _ = studio.method()
    assert [line for line in trainer.describe() if "not checked that all photos show one person" in line]
    (tmp_path / "photos").mkdir()
    for number, photo in enumerate(people[0, :2]):
        save_png(photo, tmp_path / "photos" / f"{number}.png")
    arcface = write(tmp_path / "arcface.pth", arcface_state())
    trainer, _, _ = studio.method(method__arcface=str(arcface), data__images=str(tmp_path / "photos"))
    assert [line for line in trainer.describe() if line.startswith("people: ") and "arcface.pth" in line]
    one = check_person(people[0, :1], NAMES[:1], load_identity(None, torch.device("cpu")))
    assert one == "people: one photo, nothing to compare"


def test_photos_for_the_shipped_generator_are_checked(
    studio: Studio, people: Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(4):
        save_png(people[number // 3, number], tmp_path / f"{number}.png")
    trainer, _, _ = studio.method(
        model="heads", data__images=str(tmp_path), method__anchor_steps=1, method__anchor_side=16
    )
    assert [line for line in trainer.describe() if "two people: 3.png differ from the other 3" in line]
    assert "two people: 3.png" in caplog.text
