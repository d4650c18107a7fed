"""Rewards learned from ratings: they recover what decided the ratings, and say what is wrong with a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lrdiff.alignprop.build import build
from lrdiff.alignprop.ratings import Ratings, bradley_terry, ridge, train
from lrdiff.alignprop.specs import parse
from lrdiff.errors import DataError, ModelError
from lrdiff.images import save_png
from lrdiff.rng import stream
from trainers.alignprop import rate

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of flat pictures from dark to bright, with a little noise, and ratings by their brightness."""
    path = tmp_path_factory.mktemp("rated")
    rng, levels = stream(0, "r"), torch.linspace(-0.8, 0.8, 24)
    for number, level in enumerate(levels):
        save_png((level + 0.2 * torch.randn(3, 32, 32, generator=rng)).clamp(-1, 1), path / f"{number:02d}.png")
    rows = [f"{number:02d}.png,{10 * float(level)}" for number, level in enumerate(levels)]
    (path / "scores.csv").write_text("\n".join(["file,score", *rows]))
    order = torch.randperm(24, generator=rng).tolist()
    pairs = [f"{max(a, b):02d}.png,{min(a, b):02d}.png" for a, b in zip(order, order[1:] + order[:1], strict=True)]
    (path / "pairs.csv").write_text("\n".join(["better,worse", *pairs]))
    return path


@pytest.mark.parametrize("kind", ["scores", "pairs"])
def test_a_head_learns_what_was_rated(folder: Path, tmp_path: Path, kind: str) -> None:
    train(folder / f"{kind}.csv", "probe-a").save(tmp_path / "head.safetensors")
    reward = build(parse(f"ratings={tmp_path / 'head.safetensors'}"), CPU)
    levels = torch.linspace(0.15, 0.85, 6)
    noise = 0.1 * torch.randn(6, 3, 48, 48, generator=stream(1, "r"))
    images = (levels[:, None, None, None] + noise).clamp(0, 1).requires_grad_()
    scores = reward(images, ["anything"] * 6)
    assert scores.argsort().tolist() == list(range(6))
    scores.sum().backward()
    assert images.grad is not None
    assert float(images.grad.abs().sum()) > 0


def test_ridge_and_pairs_find_the_direction() -> None:
    rng = stream(2, "r")
    features = torch.randn(200, 3, generator=rng, dtype=torch.float64)
    features = features - features.mean(0)
    truth = torch.tensor([2.0, -1.0, 0.0], dtype=torch.float64)
    weight, bias = ridge(features, features @ truth + 5.0, 1e-6)
    assert torch.allclose(weight, truth, atol=1e-5)
    assert float(bias) == pytest.approx(5.0)
    found = bradley_terry(features * (features @ truth).sign()[:, None], 0.1)
    assert float(torch.cosine_similarity(found, truth, dim=0)) > 0.97


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("file,score\n00.png,1\n", "at least two rows"),
        ("name,stars\na,1\nb,2\n", "columns file,score or better,worse"),
        ("file,score\n00.png,good\n01.png,2\n", "a score is no number"),
        ("file,score\n00.png,nan\n01.png,2\n", "NaN"),
        ("file,score\nno.png,1\n01.png,2\n", r"no\.png cannot be read as a picture"),
        ("", "at least two rows"),
    ],
)
def test_bad_ratings_are_told(folder: Path, text: str, problem: str) -> None:
    file = folder / "bad.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=problem):
        train(file, "probe-a")


def test_a_file_that_is_no_head_is_refused(tmp_path: Path) -> None:
    (tmp_path / "head").write_text("no head")
    with pytest.raises(ModelError, match="cannot be read as a head of ratings"):
        Ratings.load(tmp_path / "head", CPU)


def test_the_command_writes_a_head_or_says_why_not(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = tmp_path / "head.safetensors"
    assert rate.main([str(folder / "scores.csv"), str(head)]) == 0
    assert Ratings.load(head, CPU).name == "probe-a"
    assert rate.main([str(folder / "scores.csv"), str(head), "--features", "probe-z"]) == 2
    assert "no probe 'probe-z'" in capsys.readouterr().err
