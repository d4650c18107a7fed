"""Everything is made from a seed, goes on after an interruption, and is listed with its checksums."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from lrdiff import backbones
from lrdiff.artifact import Artifact
from lrdiff.assets import MODELS
from lrdiff.errors import BackendError, ConfigError, RunError
from lrdiff.generate import render
from lrdiff.probe import load_probe
from lrdiff.watermark.extractor import load as load_extractor
from tests.trainers.embedded.conftest import SCENES, micro_budget
from trainers.config import OptimConfig
from trainers.embedded import make as recipes
from trainers.embedded import manifest
from trainers.embedded.budgets import BUDGETS
from trainers.embedded.export import replacing_folder
from trainers.embedded.make import make
from trainers.embedded.shards import Shards
from trainers.embedded.toys_unet import SCHEDULER, ToysUnet, ToysUnetConfig
from trainers.embedded.training import train
from trainers.method import Batch
from trainers.rundir import open_run


@pytest.fixture(scope="module")
def made(scenes: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `assets` and `cache` in which a micro `toys` was made."""
    root = tmp_path_factory.mktemp("made")
    (root / "cache" / "micro").mkdir(parents=True)
    (root / "cache" / "micro" / "scenes").symlink_to(scenes.path)
    path = make("toys", budget=micro_budget(), assets=root / "assets", cache=root / "cache", processes=1)
    assert path == root / "assets" / "models" / "toys"
    return root


def test_made_model_loads_unchanged_in_diffusers_and_here(made: Path) -> None:
    folder = made / "assets" / "models" / "toys"
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    assert pipeline.safety_checker is None
    assert pipeline.scheduler.config.prediction_type == SCHEDULER["prediction_type"]
    backbone = backbones.load(folder)
    assert backbone.resolution == 128
    assert torch.isfinite(render(backbone, ["a red ball"], [0], steps=2)).all()


def test_manifest_lists_every_file(made: Path) -> None:
    assets = made / "assets"
    assert manifest.problems(assets) == []
    entry = tomllib.loads((assets / "MANIFEST.toml").read_text())["toys"]
    assert entry["command"] == "lrdiff embedded make toys --budget micro --seed 1"
    assert entry["seconds"] > 0
    assert len(entry["files"]) == len([path for path in assets.rglob("*") if path.is_file()]) - 1
    assert all(len(file["sha256"]) == 64 for file in entry["files"])


def test_no_path_of_this_machine_is_shipped(made: Path) -> None:
    for path in made.joinpath("assets").rglob("*"):
        if path.is_file():
            assert str(made).encode() not in path.read_bytes(), path


def test_exported_weights_are_the_averages(made: Path) -> None:
    from safetensors.torch import load_file

    run = open_run(made / "cache" / "micro" / "unet-1")
    stored = load_file(run.checkpoint(run.checkpoint_steps()[-1]) / "weights.safetensors")
    shipped = load_file(made / "assets/models/toys/unet/diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in shipped.values()} == {torch.float16}
    for name, value in shipped.items():
        assert torch.equal(value, stored[f"own.unet.{name}"].half()), name


def test_the_second_training_of_the_autoencoder_leaves_its_latents_alone(made: Path) -> None:
    from safetensors.torch import load_file

    name = "diffusion_pytorch_model.safetensors"
    first = load_file(made / "cache" / "micro" / "vae-1-final" / name)
    shipped = load_file(made / "assets/models/toys/vae" / name)
    same = {name for name, value in shipped.items() if torch.equal(value, first[name].half())}
    ours = {name for name in shipped if name.startswith(("encoder.", "quant_conv."))}
    assert ours
    assert ours <= same
    assert "decoder.conv_out.weight" not in same


def test_making_again_gives_the_same_bytes_and_trains_nothing(made: Path, tmp_path: Path) -> None:
    metrics = (made / "cache" / "micro" / "unet-1" / "metrics.jsonl").read_bytes()
    out = make("toys", budget=micro_budget(), out=tmp_path / "toys", assets=made / "assets", cache=made / "cache")
    names = [path.relative_to(out) for path in sorted(out.rglob("*")) if path.is_file()]
    assert names
    for name in names:
        assert (out / name).read_bytes() == (made / "assets/models/toys" / name).read_bytes(), name
    assert (made / "cache" / "micro" / "unet-1" / "metrics.jsonl").read_bytes() == metrics


class Interrupted(ToysUnet):
    """Is interrupted in the middle of step 3."""

    def batch(self, index: int, rng: torch.Generator) -> Batch:
        if index == 2:
            raise KeyboardInterrupt
        return super().batch(index, rng)


def test_interrupted_training_goes_on_and_ends_the_same(made: Path, tmp_path: Path) -> None:
    whole = open_run(made / "cache" / "micro" / "unet-1")
    config = ToysUnetConfig.model_validate(whole.read()["config"]["method"])
    budget = micro_budget()
    path = tmp_path / "unet"
    with pytest.raises(KeyboardInterrupt):
        train(path, "unet", Interrupted, config, budget.unet, budget.precision, 1)
    assert open_run(path).checkpoint_steps() == [2]
    seconds = train(path, "unet", ToysUnet, config, budget.unet, budget.precision, 1)
    assert seconds > 0
    run = open_run(path)
    assert run.read()["state"] == "finished"
    assert [row["step"] for row in run.metrics()] == [3]
    first, second = (r.checkpoint(3) / "weights.safetensors" for r in (run, whole))
    assert first.read_bytes() == second.read_bytes()


def test_a_run_of_other_figures_is_refused(made: Path, tmp_path: Path) -> None:
    other = micro_budget()
    other = replace(other, unet=replace(other.unet, optim=OptimConfig(steps=4, lr=1e-3, warmup=1)))
    with pytest.raises(RunError, match="other figures"):
        make("toys", budget=other, out=tmp_path / "toys", cache=made / "cache", processes=1)
    assert not (tmp_path / "toys").exists()


def test_probe_is_made_from_pictures(noise: Path, tmp_path: Path) -> None:
    cache, assets = tmp_path / "cache" / "micro", tmp_path / "assets"
    cache.mkdir(parents=True)
    (cache / "scenes").symlink_to(noise / "scenes")
    (cache / "subjects").symlink_to(noise / "subjects")
    make("probe-a", budget=micro_budget(400), seed=5, assets=assets, cache=tmp_path / "cache", processes=1)
    probe = load_probe("probe-a", assets / "models")
    images = Shards.open(cache / "scenes").images(torch.arange(2))
    assert set(probe.attributes(images)) == {"shape", "colour", "pattern", "material", "place"}
    assert torch.allclose(probe.identity(images).norm(dim=1), torch.ones(2))
    assert manifest.problems(assets) == []
    manifest.set_quality(assets, "probe-a", {"attribute_accuracy": 0.5})
    assert manifest.read(assets)["probe-a"]["quality"] == {"attribute_accuracy": 0.5}
    (assets / "models" / "probe-a" / "config.json").write_text("{}")
    (assets / "models" / "probe-a" / "model.safetensors").unlink()
    (assets / "models" / "probe-a" / "extra").write_text("")
    assert [line.split(": ")[1] for line in manifest.problems(assets)] == ["not in the manifest", "changed", "absent"]


def test_manifest_keeps_other_entries_and_odd_characters(tmp_path: Path) -> None:
    for name in ("one", "two"):
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text(name)
        manifest.record(tmp_path, name, folder, {"command": 'say "ü" \\ \n', "seed": 3, "seconds": 1.5})
    entries = manifest.read(tmp_path)
    assert set(entries) == {"one", "two"}
    assert entries["one"]["command"] == 'say "ü" \\ \n'
    assert entries["two"]["files"][0]["path"] == "models/two/a.txt"
    with pytest.raises(KeyError):
        manifest.set_quality(tmp_path, "three", {})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_budget_for_a_gpu_is_refused_at_once_without_one(tmp_path: Path) -> None:
    with pytest.raises(BackendError):
        make("toys", budget="gpu", cache=tmp_path, out=tmp_path / "toys")
    assert list(tmp_path.iterdir()) == []


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="no model 'toy'"):
        make("toy")
    with pytest.raises(ConfigError, match="budget 'huge'"):
        make("toys", budget="huge")
    with pytest.raises(ConfigError, match="data set"):
        make("scenes", seed=7)


def test_presets_fit_their_methods() -> None:
    from trainers.embedded.probe import ProbeConfig
    from trainers.embedded.toys_unet import ToysUnetConfig
    from trainers.embedded.toys_vae import ToysVaeConfig

    assert set(recipes.SEEDS) == set(recipes.RECIPES)
    for budget in BUDGETS.values():
        assert budget.scenes % budget.shard == 0
        assert ToysVaeConfig(scenes=Path("x"), **budget.vae.method).channels == ToysVaeConfig().channels
        assert ToysUnetConfig(latents=Path("x"), **budget.unet.method).batch_size >= 32
        widths = [ProbeConfig(scenes=Path("x"), subjects=Path("x"), **p.method).widths for p in budget.probes.values()]
        assert len(set(widths)) == len(widths) == 2
    assert micro_budget().scenes == SCENES


def test_replacing_a_folder_is_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("old")

    def fail() -> None:
        with replacing_folder(target) as folder:
            (folder / "new").write_text("new")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert [path.name for path in target.iterdir()] == ["old"]
    with replacing_folder(target) as folder:
        (folder / "new").write_text("new")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_example_mark_is_trained_with_public_bits_and_goes_on_where_it_was(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "latents"))
    assets, cache = tmp_path / "assets", tmp_path / "cache"
    (assets / "models").mkdir(parents=True)
    (assets / "models" / "toys").symlink_to(made / "assets" / "models" / "toys")
    (assets / "models" / "extractor").symlink_to(MODELS / "extractor")
    places: dict[str, Any] = {"assets": assets, "cache": cache}
    folder = make("mark", budget=micro_budget(), **places)
    assert folder == assets / "mark"
    bits = (folder / "bits.txt").read_text().strip()
    header = Artifact.load(folder / "adapter.safetensors").header
    assert len(bits) == 48
    assert header.extra["extractor"] == load_extractor(MODELS / "extractor").sha256()
    assert bits not in (folder / "adapter.safetensors").read_bytes().decode("latin-1")
    assert {file["path"] for file in manifest.read(assets)["mark"]["files"]} == {
        "mark/adapter.safetensors",
        "mark/bits.txt",
    }
    steps = open_run(cache / "micro" / "mark-0").metrics()
    make("mark", budget=micro_budget(), **places)
    assert open_run(cache / "micro" / "mark-0").metrics() == steps
    with pytest.raises(RunError, match="begun with other figures"):
        make("mark", budget=replace(micro_budget(), mark={}), **places)
