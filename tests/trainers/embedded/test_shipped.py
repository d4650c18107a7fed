"""What is shipped is what the manifest says, loads unchanged, and draws the same picture twice."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline

from lrdiff import backbones
from lrdiff.alignprop.prompt_match import named
from lrdiff.generate import render
from lrdiff.probe import load_probe
from lrdiff.prompts import read_prompts
from lrdiff.rng import stream
from lrdiff.triplane.store import find as find_heads
from lrdiff.triplane.store import load as load_heads
from lrdiff.watermark.extractor import load as load_extractor
from lrdiff.world.captions import WORDS
from lrdiff.world.heads import LATENT, heads
from lrdiff.world.heads_render import orbit as photograph
from lrdiff.world.toys import ATTRIBUTES, sample_scenes
from lrdiff.world.toys import render as scenes
from trainers.embedded import manifest
from trainers.embedded.heads import compare
from trainers.embedded.make import ASSETS
from trainers.embedded.toys_vae import psnr


def test_manifest_matches_the_files() -> None:
    entries = manifest.read(ASSETS)
    assert {"toys", "probe-a", "probe-b", "extractor", "prompts", "subjects"} <= set(entries)
    assert manifest.problems(ASSETS) == []
    for name, entry in entries.items():
        # No command made the prompts.
        how = {"made_by"} if name == "prompts" else {"command", "seed", "device", "seconds", "made_by"}
        assert how <= set(entry), name


def test_held_out_prompts_name_nothing_that_is_trained_on() -> None:
    """Of the two lists of prompts no noun is in both: a reward that rises on the second is no memory of the first."""
    nouns = [
        {named(prompt)["shape"] for prompt in read_prompts(ASSETS / "prompts" / name, name)}
        for name in ("toys-train.txt", "toys-held-out.txt")
    ]
    assert all(nouns)
    assert not set.intersection(*nouns)


def test_sizes() -> None:
    files = [path for path in (ASSETS / "models").rglob("*") if path.is_file()]
    assert files
    assert max(path.stat().st_size for path in files) <= 15e6
    base = [path for path in files if path.relative_to(ASSETS / "models").parts[0] in ("toys", "probe-a", "probe-b")]
    assert sum(path.stat().st_size for path in base) <= 45e6


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


def test_a_latent_drawn_from_the_posterior_is_as_good_as_its_mean() -> None:
    """Adapters learn from drawn latents: a spread that the autoencoder never decodes teaches them grain."""
    backbone = backbones.load("toys")
    images = scenes(sample_scenes(2, range(4))).images
    mean, std = backbone.encode_moments(images)
    assert float(std.max()) < 0.1 * float(mean.std())
    with torch.no_grad():
        of_mean, drawn = (
            backbone.decode(z) for z in (mean, mean + std * torch.randn(mean.shape, generator=stream(0, "latents")))
        )
    assert psnr(images, drawn) > psnr(images, of_mean) - 1.0


def test_shipped_extractor_is_fair_enough_for_the_binomial_test() -> None:
    extractor = load_extractor(ASSETS / "models" / "extractor")
    assert extractor.bits == 48
    assert extractor.directions() >= 47  # one is weak, see DECISION 35
    assert extractor.calibration is not None
    assert extractor.calibration.unfair() is None
    assert set(extractor.calibration.images) == {"world", "textures", "outputs", "photos"}


@pytest.mark.parametrize("name", ["probe-a", "probe-b"])
def test_shipped_probes_read_every_attribute(name: str) -> None:
    probe = load_probe(name)
    assert probe.classes == {attribute: len(values) for attribute, values in ATTRIBUTES.items()}
    assert not any(parameter.requires_grad for parameter in probe.parameters())


def test_heads_draws_unseen_heads() -> None:
    generator = load_heads(find_heads("heads"))
    rng = stream(5, "shipped heads")
    z, angles = torch.randn(4, LATENT, generator=rng), torch.rand(4, 2, generator=rng) - 0.5
    meant = photograph(heads(z), angles[:, 0], angles[:, 1], generator.config.render.side)
    found = compare(generator, z, angles, meant)
    assert found["psnr_unseen"] > 19.0, found
    assert found["depth_unseen"] < 0.03, found
