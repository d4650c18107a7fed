"""The diffusion transformer of the toy world: its stages, its start, and the folder that is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import PixArtAlphaPipeline

from lrdiff import backbones
from lrdiff.generate import render
from lrdiff.rng import stream
from lrdiff.world.captions import WORDS
from tests.trainers.embedded.conftest import STAGES, TINY_DIT, micro_budget
from trainers.embedded.make import make
from trainers.embedded.shards import Shards
from trainers.embedded.toys_dit import ToysDit, ToysDitConfig, draw_times
from trainers.embedded.toys_dit_parts import build_tokenizer
from trainers.embedded.toys_vae import build_vae
from trainers.loop import checked_groups
from trainers.rundir import open_run


@pytest.fixture(scope="module")
def made(scenes: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `assets` and `cache` in which a micro `toys-dit` was made."""
    root = tmp_path_factory.mktemp("dit")
    (root / "cache" / "micro").mkdir(parents=True)
    (root / "cache" / "micro" / "scenes").symlink_to(scenes.path)
    torch.manual_seed(0)
    build_vae((8, 8, 8, 16), 4, 128).save_pretrained(root / "assets" / "models" / "toys" / "vae")
    make("toys-dit", budget=micro_budget(), assets=root / "assets", cache=root / "cache", processes=1)
    return root


@pytest.fixture(scope="module")
def method(made: Path) -> ToysDit:
    torch.manual_seed(0)
    return ToysDit(ToysDitConfig(latents=made / "cache/micro/latents-dit-1", stages=STAGES, **TINY_DIT))  # pyright: ignore


def test_the_folder_loads_here_and_in_diffusers(made: Path) -> None:
    folder = made / "assets" / "models" / "toys-dit"
    backbone = backbones.load(folder)
    assert (backbone.resolution, backbone.latent_shape, backbone.schedule.prediction) == (256, (4, 32, 32), "flow")
    assert backbone.schedule.shift == 3.0
    assert torch.isfinite(render(backbone, ["a red ball"], [0], steps=2)).all()
    pipeline = PixArtAlphaPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    result = pipeline("a red ball", num_inference_steps=2, output_type="pt", clean_caption=False)
    assert result.images.shape == (1, 3, 256, 256)  # pyright: ignore[reportAttributeAccessIssue]


def test_it_is_trained_in_stages_and_goes_on_from_them(made: Path, method: ToysDit) -> None:
    shapes = [tuple(method.batch(index, stream(0, "batch", index))["latents"].shape) for index in range(4)]
    assert shapes == [(3, 4, 8, 8), (3, 4, 8, 8), (2, 4, 16, 16), (2, 4, 16, 16)]
    run = open_run(made / "cache" / "micro" / "dit-1")
    assert run.read()["state"] == "finished"
    assert run.checkpoint_steps() == [2, 3]


def test_it_starts_at_zero_and_everything_learns(method: ToysDit) -> None:
    batch = method.batch(0, stream(0, "batch", 0))
    loss, _ = method(batch, stream(0, "forward", 0))
    # eps - x0 of unit noise and latents: an output of zero errs by 1 + the latents' own square
    assert loss.item() == pytest.approx(1 + float(batch["latents"].square().mean()), rel=0.2)
    groups = {group.name: group for group in checked_groups(method)}
    assert groups["blocks"].orthogonal
    assert all(p.ndim == 2 for p in groups["blocks"].params)
    trained = [p for group in groups.values() for p in group.params]
    assert len(trained) == len(list(method.parameters()))


def test_times_cover_the_schedule_evenly_and_are_shifted() -> None:
    times = draw_times(100, 1.0, 1000, stream(0, "times"))
    assert torch.equal((100 - times / 10).floor().long().clamp(0, 99), torch.arange(100))
    assert 0 < float(times.min()) <= float(times.max()) <= 1000
    shifted = draw_times(100, 3.0, 1000, stream(0, "times"))
    s = times / 1000
    torch.testing.assert_close(shifted / 1000, 3 * s / (1 + 2 * s))


def test_every_word_is_one_token_and_others_are_spelled() -> None:
    tokenizer = build_tokenizer(WORDS)
    assert {len(ids) for ids in tokenizer(list(WORDS)).input_ids} == {2}
    spelled = tokenizer("zork").input_ids
    assert len(spelled) == 6
    assert tokenizer.unk_token_id not in spelled
