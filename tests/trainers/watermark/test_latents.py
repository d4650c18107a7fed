"""Generated latents: the same from the cache, made anew where they must be."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from lrdiff import backbones
from lrdiff.backbones import Backbone
from trainers.inputs import model_files
from trainers.watermark.latents import cache_folder, generated, world_prompts

PROMPTS = ["a red cube", "a blue ball", "a green ring"]


@pytest.fixture
def backbone(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backbone:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return backbones.load(tiny_model)


def make(backbone: Backbone, prompts: list[str] = PROMPTS, name: str = "generated", seed: int = 0, steps: int = 2):
    return generated(backbone, model_files(backbone.path), prompts, name=name, seed=seed, steps=steps, guidance=3.0)


def test_the_cache_gives_what_was_made(backbone: Backbone, tmp_path: Path) -> None:
    first = make(backbone)
    assert first.shape == (3, *backbone.latent_shape)
    (file,) = (tmp_path / "lrdiff" / "latents").iterdir()
    assert torch.equal(make(backbone), first)
    file.unlink()
    assert torch.equal(make(backbone), first), "and making it again gives the same"


def test_everything_that_decides_them_has_a_file_of_its_own(backbone: Backbone, tmp_path: Path) -> None:
    base = make(backbone)
    others = [make(backbone, PROMPTS[::-1]), make(backbone, name="held out"), make(backbone, seed=1)]
    others.append(make(backbone, steps=3))
    assert all(not torch.equal(other, base) for other in others)
    assert len(list((tmp_path / "lrdiff" / "latents").iterdir())) == 5


@pytest.mark.parametrize("damage", [b"", b"not safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_damaged_file_is_made_again_and_said(
    backbone: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    first = make(backbone)
    (file,) = (tmp_path / "lrdiff" / "latents").iterdir()
    file.write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(make(backbone), first)
    assert "generated again" in caplog.text
    assert torch.equal(make(backbone), first)


def test_a_cache_that_cannot_be_written_only_warns(
    backbone: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "lrdiff").write_text("a file in the way")
    with caplog.at_level(logging.WARNING):
        assert make(backbone).shape == (3, *backbone.latent_shape)
    assert "not kept" in caplog.text


def test_a_relative_cache_folder_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert cache_folder() == Path.home() / ".cache" / "lrdiff"


def test_captions_of_the_world_differ_by_seed_and_use(backbone: Backbone) -> None:
    texts = world_prompts(6, 0, "generated")
    assert texts == world_prompts(6, 0, "generated")
    assert len(set(texts)) > 3
    assert texts != world_prompts(6, 0, "held out")
    assert texts != world_prompts(6, 1, "generated")
