"""What is shipped is what the manifest says, loads unchanged, and draws the same picture twice."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline

from lrdiff import backbones
from lrdiff.generate import render
from lrdiff.probe import load_probe
from lrdiff.world.captions import WORDS
from lrdiff.world.toys import ATTRIBUTES
from trainers.embedded import manifest
from trainers.embedded.make import ASSETS


def test_manifest_matches_the_files() -> None:
    entries = manifest.read(ASSETS)
    assert {"toys", "probe-a", "probe-b", "subjects"} <= set(entries)
    assert manifest.problems(ASSETS) == []
    for name, entry in entries.items():
        assert {"command", "seed", "device", "seconds", "made_by"} <= set(entry), name


def test_sizes() -> None:
    files = [path for path in (ASSETS / "models").rglob("*") if path.is_file()]
    assert files
    assert max(path.stat().st_size for path in files) <= 15e6
    assert sum(path.stat().st_size for path in files) <= 45e6


def test_shipped_pipeline_loads_unchanged_and_repeats_itself() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(ASSETS / "models" / "toys")
    pipeline.set_progress_bar_config(disable=True)
    pictures = []
    for _ in range(2):
        rng = torch.Generator().manual_seed(0)
        result = pipeline("a red ball", num_inference_steps=2, generator=rng, output_type="pt")
        pictures.append(result.images)  # pyright: ignore[reportAttributeAccessIssue]
    assert pictures[0].shape == (1, 3, 128, 128)
    assert torch.equal(pictures[0], pictures[1])
    assert float(pictures[0].std()) > 0.02


def test_shipped_model_is_the_default_backbone() -> None:
    backbone = backbones.load("toys")
    first, second = (render(backbone, ["a photo of a blue mug at night"], [4], steps=2) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.isfinite(first).all()
    words = backbone.pipeline().tokenizer(list(WORDS)).input_ids
    assert {len(ids) for ids in words} == {3}


@pytest.mark.parametrize("name", ["probe-a", "probe-b"])
def test_shipped_probes_read_every_attribute(name: str) -> None:
    probe = load_probe(name)
    assert probe.classes == {attribute: len(values) for attribute, values in ATTRIBUTES.items()}
    assert not any(parameter.requires_grad for parameter in probe.parameters())
