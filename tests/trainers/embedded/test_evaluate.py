"""The arithmetic of the figures, and the pictures they are read from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from lrdiff.backbones import load
from lrdiff.probe import Probe
from lrdiff.rng import stream
from lrdiff.world.captions import held_out_captions
from lrdiff.world.toys import ATTRIBUTES, PATTERNS
from trainers.embedded import evaluate


def random_probe() -> Probe:
    torch.manual_seed(0)
    return Probe((4, 8), {name: len(values) for name, values in ATTRIBUTES.items()}).eval()


def test_accuracies_are_shares_per_attribute() -> None:
    true = {name: torch.tensor([0, 1, 1, 0]) for name in ATTRIBUTES}
    predicted = {name: torch.tensor([0, 1, 0, 0]) for name in ATTRIBUTES}
    predicted["shape"] = true["shape"]
    reading = evaluate.Reading(predicted, true)
    assert reading.accuracy() == {name: 1.0 if name == "shape" else 0.75 for name in ATTRIBUTES}
    assert reading.mean_accuracy() == pytest.approx(0.8)
    assert reading.worst("place", 1) == {ATTRIBUTES["place"][1]: 0.5}
    assert PATTERNS[0] == "plain"
    assert reading.named_pattern_accuracy() == 0.5


def test_equal_error_rate_of_known_scores() -> None:
    same = torch.tensor([True] * 10 + [False] * 10)
    apart = torch.cat([torch.linspace(0.9, 1, 10), torch.linspace(0, 0.1, 10)])
    assert evaluate.rate_of_equal_errors(apart, same) == 0.0
    assert evaluate.rate_of_equal_errors(-apart, same) == 1.0
    mixed = apart.clone()
    mixed[[0, 10]] = mixed[[10, 0]]
    assert evaluate.rate_of_equal_errors(mixed, same) == pytest.approx(0.1)
    draws = torch.randn(4000, generator=stream(0, "scores"))
    assert evaluate.rate_of_equal_errors(draws, torch.arange(4000) % 3 == 0) == pytest.approx(0.5, abs=0.04)


def test_figures_of_small_models(tiny_model: Path) -> None:
    probe = random_probe()
    backbone = load(tiny_model)
    reading = evaluate.read_generated(backbone, probe, 3, steps=2, batch=2)
    assert all(0 <= rate <= 1 for rate in reading.accuracy().values())
    labels = [label for _, label in held_out_captions(3, evaluate.UNSEEN_SEED)]
    assert reading.true["shape"].tolist() == [label["shape"] for label in labels]
    assert len(evaluate.read_scenes(probe, 2).predicted["colour"]) == 2
    assert 0 < evaluate.autoencoder_psnr(backbone, 2) < 40
    assert 0 <= evaluate.equal_error_rate(probe, 2, 2) <= 1


def test_contact_sheet_shows_different_shapes(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "pictures" / "sheet.png"
    texts = evaluate.contact_sheet(load(tiny_model), path, columns=2, rows=2)
    assert len(set(texts)) == 4
    with Image.open(path) as page:
        assert page.width > 64
        assert page.height > 64
