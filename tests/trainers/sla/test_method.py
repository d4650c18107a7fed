"""Fine-tuning of sparse-linear attention: its teacher, its ramp, what learns, resume, and use in generation."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from lrdiff import backbones
from lrdiff.adapters import adapted, read_adapter
from lrdiff.artifact import Artifact
from lrdiff.backbones import Backbone
from lrdiff.errors import ArtifactError, ConfigError, TargetError
from lrdiff.generate import generate, render
from lrdiff.generate_config import AdapterSpec, GenerateConfig
from lrdiff.rng import stream
from lrdiff.sla.models import processors
from tests.lrdiff.backbones.families import build_pixart
from tests.trainers.conftest import save_pictures
from trainers.engine import Engine
from trainers.loop import fit
from trainers.registry import run_config_class
from trainers.run import build, execute
from trainers.rundir import RunDir, create
from trainers.sla.config import SlaSettings
from trainers.sla.method import Sla


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny PixArt: 64 tokens at 32 px, four blocks of keys."""
    return build_pixart(tmp_path_factory.mktemp("pixart") / "dit")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("pictures") / "images", 3)


def settings(model: Path, images: Path, **changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "model": str(model),
        "data": {"images": str(images), "batch_size": 2},
        "method": {"topk": 0.25, "block_q": 16, "block_k": 16},
        "optim": {"steps": 4, "warmup": 0, "lr": 0.01},
        "watch": {"checkpoint_every": 2, "evaluate_every": 0, "preview_every": 0, "log_every": 1},
    }
    for name, value in changes.items():
        section, last = name.split("__")
        base[section][last] = value
    return base


def trainer(model: Path, images: Path, **changes: Any) -> tuple[Sla, Any, Engine]:
    config = run_config_class("sla").model_validate(settings(model, images, **changes))
    engine = Engine(config.precision)
    method = build("sla", config, engine)
    assert isinstance(method, Sla)
    return method, config, engine


def run(path: Path, model: Path, images: Path, **changes: Any) -> RunDir:
    config = run_config_class("sla").model_validate(settings(model, images, **changes))
    made = create(path, "sla", config.model_dump(mode="json"))
    execute(made)
    return made


def predict(backbone: Backbone, cond: dict[str, torch.Tensor]) -> torch.Tensor:
    x = torch.randn((2, *backbone.latent_shape), generator=stream(0, "x"))
    with torch.no_grad():
        return backbone.predict(x, torch.tensor([100, 700]), cond)


@torch.no_grad()
def measured(method: Sla) -> float:
    return method.evaluate(stream(0, "evaluate"))["loss_fixed"]


TRAIN = ["projections", "lora", "all"]


@pytest.mark.parametrize("train", TRAIN)
def test_the_teacher_stays_the_untouched_model(model: Path, images: Path, train: str) -> None:
    fresh = backbones.load(model)
    cond = fresh.condition(["a photo of sks", "a red cube"])
    method, config, engine = trainer(model, images, method__train=train)
    before = predict(method.backbone, cond)
    fit(method, config.optim, engine=engine, seed=0)
    assert not torch.allclose(predict(method.backbone, cond), before)
    with method._teaching():
        torch.testing.assert_close(predict(method.backbone, cond), predict(fresh, cond))
    learns = {id(p) for group in method.param_groups() for p in group.params}
    assert learns == {id(p) for p in method.parameters() if p.requires_grad}


def test_distillation_brings_the_student_closer(model: Path, images: Path) -> None:
    method, config, engine = trainer(model, images, optim__steps=12, method__train="projections")
    before = measured(method)
    fit(method, config.optim, engine=engine, seed=0)
    assert 0 < measured(method) < 0.9 * before


def test_the_losses_differ_and_everything_critical_is_the_teacher(model: Path, images: Path) -> None:
    found = {}
    for loss in ("velocity", "denoise"):
        method, _, _ = trainer(model, images, method__loss=loss, method__topk=1.0)
        found[loss] = measured(method)
    assert found["velocity"] < 1e-9
    assert found["denoise"] > 0.1


def test_the_share_of_critical_blocks_falls_along_its_ramp(model: Path, images: Path, tmp_path: Path) -> None:
    ramp = {"method__ramp": 2, "method__ramp_from": 0.75}
    made = run(tmp_path / "run", model, images, **ramp)
    shares = [row["topk"] for row in made.metrics() if "topk" in row]
    assert shares == pytest.approx([0.75, 0.5, 0.25, 0.25])
    method, _, _ = trainer(model, images, optim__accumulate=3, **ramp)
    assert [method.batch(index, stream(0, "batch"))["topk"] for index in (0, 2, 3, 5, 6)] == [
        0.75,
        0.75,
        0.5,
        0.5,
        0.25,
    ]
    method(method.batch(0, stream(0, "batch")), stream(0, "forward"))
    assert {processor.settings.topk for _, processor in processors(method.denoiser)} == {0.75}
    measured(method)
    assert {processor.settings.topk for _, processor in processors(method.denoiser)} == {0.25}


def test_checkpointing_gives_the_same_gradients_during_the_ramp(model: Path, images: Path) -> None:
    found = []
    for checkpointing in (False, True):
        method, _, _ = trainer(
            model, images, method__checkpointing=checkpointing, method__ramp=2, method__ramp_from=0.75
        )
        method.train()
        method(method.batch(0, stream(0, "batch")), stream(0, "forward"))[0].backward()
        found.append([p.grad for group in method.param_groups() for p in group.params])
    assert all(a is not None and torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("train", TRAIN)
def test_projections_learn_slowly_only_beside_other_weights(model: Path, images: Path, train: str) -> None:
    method, config, engine = trainer(model, images, optim__steps=1, optim__warmup=0, method__train=train)
    before = {name: p.detach().clone() for name, p in method.denoiser.named_parameters() if p.requires_grad}
    fit(method, config.optim, engine=engine, seed=0)
    # AdamW's first step moves every parameter that has a gradient by its own rate.
    moved = {
        name: float((p.detach() - before[name]).abs().max())
        for name, p in method.denoiser.named_parameters()
        if name in before
    }
    projections = [move for name, move in moved.items() if ".processor.proj." in name]
    shares = [move for name, move in moved.items() if name.endswith(".processor.mix")]
    others = [move for name, move in moved.items() if ".processor." not in name]
    pace = 1.0 if train == "projections" else 0.1
    assert max(projections) == pytest.approx(pace * config.optim.lr, rel=1e-3)
    assert len(shares) == 2
    assert max(shares) == pytest.approx(config.optim.lr, rel=1e-3)
    assert bool(others) == (train != "projections")
    assert not others or max(others) == pytest.approx(config.optim.lr, rel=1e-3)


@pytest.mark.parametrize("train", TRAIN)
def test_a_resumed_run_equals_an_unbroken_one(model: Path, images: Path, tmp_path: Path, train: str) -> None:
    whole = run(tmp_path / "whole", model, images, method__train=train, method__ramp=3)
    again = RunDir(tmp_path / "again")
    shutil.copytree(whole.path, again.path)
    shutil.rmtree(again.checkpoint(4))
    again.artifact_path.unlink()
    again.update(state="stopped", process=None)
    assert execute(again, resume=True) == "finished"
    assert again.artifact_path.read_bytes() == whole.artifact_path.read_bytes()


@pytest.mark.parametrize("train", TRAIN)
def test_the_result_loads_into_a_fresh_model_and_generates(
    model: Path, images: Path, tmp_path: Path, train: str
) -> None:
    made = run(tmp_path / "run", model, images, method__train=train)
    fresh = backbones.load(model)
    base = render(fresh, ["a red cube"], [0], steps=2)
    adapter = read_adapter(AdapterSpec(path=made.path, weight=1.0))
    with adapted(fresh, [adapter]):
        assert len(list(processors(fresh.denoiser))) == 2
        sparse = render(fresh, ["a red cube"], [0], steps=2)
    assert not torch.equal(sparse, base)
    assert torch.equal(render(fresh, ["a red cube"], [0], steps=2), base)
    config = GenerateConfig(
        model=str(model), prompt=("a red cube",), adapter=(str(made.path),), out=tmp_path / "out", steps=2, count=2
    )
    assert len(generate(config)) == 2


def test_it_has_no_strength_and_goes_with_a_lora(model: Path, images: Path, tmp_path: Path) -> None:
    made = run(tmp_path / "run", model, images)
    config = run_config_class("lora").model_validate({**settings(model, images), "method": {}})
    subject = create(tmp_path / "subject", "lora", config.model_dump(mode="json"))
    execute(subject)
    fresh = backbones.load(model)
    sparse, lora = (read_adapter(AdapterSpec(path=item.path, weight=1.0)) for item in (made, subject))
    with adapted(fresh, [sparse, lora]) as active:
        assert len(active.weights) == 2
        together = render(fresh, ["a red cube"], [0], steps=2)
    with adapted(fresh, [sparse]):
        assert not torch.equal(render(fresh, ["a red cube"], [0], steps=2), together)
    half = read_adapter(AdapterSpec(path=made.path, weight=0.5))
    for adapters, scales in (([half], (1.0,)), ([sparse], (0.5, 1.0))):
        with pytest.raises(ArtifactError, match="has no strength; use weight 1"), adapted(fresh, adapters, scales):
            pass
    late = read_adapter(AdapterSpec(path=made.path, weight=1.0, begin=0.5))
    with pytest.raises(ArtifactError, match="leave out @FROM-TO"), adapted(fresh, [late]):
        pass
    with pytest.raises(TargetError, match="already"), adapted(fresh, [sparse, sparse]):
        pass
    assert not list(processors(fresh.denoiser))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [("projection", "projections and shares of sparse-linear attention are missing"), ("settings", "cannot be used"),
     ("layers", "trained on the attention of 1 layers"), ("lora", "not its configuration"), ("shape", "another shape")],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused_and_leaves_the_model(
    model: Path, images: Path, tmp_path: Path, damage: str, reason: str
) -> None:
    method, _, _ = trainer(model, images)
    made = method.artifact()
    name = next(iter(made.tensors))
    if damage == "projection":
        del made.tensors[name]
    elif damage == "shape":
        made.tensors[name] = torch.zeros(3, 3)
    elif damage == "settings":
        made.header.config["settings"]["topk"] = 7
    elif damage == "layers":
        made.header.config["layers"].pop()
    else:
        made.header.config["lora"] = None
    made.save(tmp_path / "adapter.safetensors")
    fresh = backbones.load(model)
    adapter = read_adapter(AdapterSpec(path=tmp_path / "adapter.safetensors", weight=1.0))
    with pytest.raises(ArtifactError, match=reason), adapted(fresh, [adapter]):
        pass
    assert not list(processors(fresh.denoiser))


def test_blocks_that_leave_nothing_sparse_are_refused(model: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing would be sparse: 64 tokens are .*choose smaller blocks"):
        run(tmp_path / "run", model, images, method__block_k=64)
    made = run(tmp_path / "again", model, images)
    assert "64 tokens 75% sparse" in made.read()["preflight"][2]


def test_few_large_blocks_are_told(model: Path, images: Path, caplog: pytest.LogCaptureFixture) -> None:
    for block, told in ((32, True), (16, False)):
        caplog.clear()
        method, _, _ = trainer(model, images, method__topk=0.5, method__block_k=block)
        method(method.batch(0, stream(0, "batch")), stream(0, "forward"))
        method.describe()
        assert ("64 tokens are 2 blocks of method.block_k=32" in caplog.text) == told


def test_the_header_says_what_the_function_is(model: Path, images: Path, tmp_path: Path) -> None:
    made = run(tmp_path / "run", model, images, method__scope="all", method__feature_map="elu")
    header = Artifact.load(made.artifact_path).header
    assert (header.adapter, header.component) == ("sla", "transformer")
    assert header.config["settings"] == {
        "topk": 0.25, "skip": 0.1, "block_q": 16, "block_k": 16, "scope": "all", "feature_map": "elu", "mix": 0.5
    }  # fmt: skip
    stored = load_file(made.artifact_path)
    assert "transformer.processors.transformer_blocks.0.attn1.mix" in stored
    assert all(value.dtype == torch.float32 for value in stored.values())
    assert "transformer.processors.transformer_blocks.0.attn1.weight" in stored


def test_a_file_from_before_there_were_shares_is_the_papers_function(model: Path, images: Path, tmp_path: Path) -> None:
    paper = run(tmp_path / "paper", model, images, method__mix=0.0)
    artifact = Artifact.load(paper.artifact_path)
    assert not any(name.endswith(".mix") for name in artifact.tensors)
    del artifact.header.config["settings"]["mix"]
    artifact.save(tmp_path / "old.safetensors")
    fresh, found = backbones.load(model), []
    for path in (paper.path, tmp_path / "old.safetensors"):
        with adapted(fresh, [read_adapter(AdapterSpec(path=path, weight=1.0))]):
            assert all(processor.mix is None for _, processor in processors(fresh.denoiser))
            found.append(render(fresh, ["a red cube"], [0], steps=2))
    assert torch.equal(*found)


def test_a_block_size_may_come_as_text_from_a_flag() -> None:
    assert SlaSettings.model_validate({"block_q": "16"}).block_q == 16


@pytest.mark.parametrize(
    "change",
    [{"topk": 0.0}, {"topk": 1.5}, {"skip": 1.0}, {"topk": 0.95}, {"block_q": 8}, {"block_k": 256}, {"scope": "some"},
     {"feature_map": "tanh"}, {"scope": "all", "skip": 0.2}, {"ramp_from": 0.7}, {"ramp": 2, "ramp_from": 0.05},
     {"ramp": 2, "ramp_from": 0.95}, {"train": "all", "r": 4}, {"train": "projections", "targets": "attention+ff"},
     {"train": "projections", "projection_lr": 1.0}, {"mix": 1.5}, {"mix": -0.1}],
    ids=str,
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SlaSettings(**change)
