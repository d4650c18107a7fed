"""Promises about training and its result, kept by every method."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from lrdiff import backbones
from lrdiff.adapters import adapted, read_adapter
from lrdiff.artifact import Artifact
from lrdiff.errors import ArtifactError, ConfigError, TargetError
from lrdiff.generate_config import AdapterSpec
from lrdiff.inject import attach, inject, set_weights
from lrdiff.rng import stream
from lrdiff.sla import saved as sla
from lrdiff.triplane import store as heads
from lrdiff.triplane.cameras import frontal
from lrdiff.triplane.personal import wear
from tests.contract.conftest import World, observe
from trainers import registry
from trainers.denoise.config import DenoiseSettings
from trainers.engine import Engine
from trainers.loop import fit
from trainers.method import Method
from trainers.registry import METHODS, config_class, method_class, run_config_class
from trainers.run import build, execute
from trainers.rundir import RunDir

DENOISE = [name for name in METHODS if issubclass(config_class(name), DenoiseSettings)]
"""The methods whose adapter goes into the denoiser."""
IN_DENOISER = [*DENOISE, "alignprop", "sla"]
"""The methods that change the denoiser."""
UNSCALED = ("dora", "oft", "boft")
"""Those whose adapter multiplies the weight, so that it has no strength."""


def base_model(method: str, world: World, other: bool = False) -> Any:
    """Return the base model without adapter."""
    if method == "my3dgen":
        return heads.load(world.other_heads if other else world.heads)
    return backbones.load(world.other_model if other else world.model)


def adapted_model(trainer: Any, method: str) -> Any:
    """Return the base model with the adapter of a trainer."""
    return trainer.generator if method == "my3dgen" else trainer.backbone


def network(owner: Any, method: str) -> Any:
    """Return the network that a method adapts, of a base model or of a trainer."""
    if method == "my3dgen":
        return getattr(owner, "generator", owner)
    return owner.denoiser if method in IN_DENOISER else owner.vae


def output(model: Any, method: str) -> Tensor:
    """Return what the adapted network makes of fixed inputs."""
    if method in IN_DENOISER:
        return predict(model)
    with torch.no_grad():
        if method == "my3dgen":
            ws = torch.randn(2, model.config.w, generator=stream(0, "x"))
            return model.view(ws, frontal(model.config, 2)).image
        return model.decode(torch.randn((2, *model.latent_shape), generator=stream(0, "x")))


def predict(backbone: Any) -> Tensor:
    """Return the denoiser's output on fixed inputs."""
    x = torch.randn((2, *backbone.latent_shape), generator=stream(0, "x"))
    with torch.no_grad():
        return backbone.predict(x, torch.tensor([100, 700]), backbone.condition(["a photo of sks", "a red cube"]))


def prepared(method: str, world: World, **changes: Any) -> tuple[Any, Any, Engine]:
    config = run_config_class(method).model_validate(world.settings(method, **changes))
    engine = Engine(config.precision)
    return build(method, config, engine), config, engine


def test_the_registry_is_consistent(method: str) -> None:
    assert issubclass(method_class(method), Method)
    assert config_class(method).__doc__
    assert 10 < len(METHODS[method].summary) < 120
    assert run_config_class(method).model_fields["method"].annotation is config_class(method)


def test_an_unknown_method_lists_the_known_ones() -> None:
    for act in (registry.entry, registry.config_class, registry.method_class, registry.run_config_class):
        with pytest.raises(ConfigError, match=f"'nope'; known methods: {', '.join(METHODS)}"):
            act("nope")


def test_only_the_adapter_learns_and_the_base_stays_bit_identical(method: str, world: World) -> None:
    trainer, config, engine = prepared(method, world, optim__weight_decay=0.1)
    fresh = network(base_model(method, world), method)
    base = {name: value.clone() for name, value in fresh.state_dict().items()}
    declared = {id(p) for group in trainer.param_groups() for p in group.params}
    assert declared == {id(p) for p in trainer.parameters() if p.requires_grad}
    before = {id(p): p.detach().clone() for p in trainer.parameters() if id(p) in declared}
    batch = trainer.batch(0, stream(0, "batch", 0))
    trainer(batch, stream(0, "forward", 0))[0].backward()
    assert {id(p) for p in trainer.parameters() if p.grad is not None} == declared
    trainer.zero_grad()
    fit(trainer, config.optim, engine=engine, seed=0)
    assert all(not torch.equal(p, before[id(p)]) for p in trainer.parameters() if id(p) in before)
    if method == "my3dgen":  # which also trains biases of the base, and puts them back
        trainer.personal.remove()
    found = {
        name.replace(".base_layer", ""): value
        for name, value in network(trainer, method).state_dict().items()
        if ".default" not in name and ".processor." not in name
    }
    released = {name for name in base if method == "watermark" and name.startswith(("encoder.", "quant_conv."))}
    assert found.keys() == base.keys() - released
    assert all(torch.equal(found[name], base[name]) for name in found)


def test_the_groups_are_those_of_the_layers(method: str, world: World) -> None:
    """Weight decay must not pull a transform away from the identity or a share to 0, and must reach the rest."""
    trainer, _, _ = prepared(method, world)
    groups = {group.name: group for group in trainer.param_groups() if group.params}
    names = {
        "tensor-lora": {"transform", "residual"}, "watermark": {"lora"}, "my3dgen": {"lora", "whole"},
        "sla": {"projections", "shares", "weights"}, "alignprop": {"adapter"},
    }.get(method, {"residual"})  # fmt: skip
    assert set(groups) == names
    assert all(group.decay == (name not in ("transform", "whole", "shares")) for name, group in groups.items())
    if "transform" in groups:
        assert len(groups["transform"].params) == len(trainer.report.targets)


def test_the_start_changes_nothing(method: str, world: World) -> None:
    # Sparse attention is another function from the start, unless every block is critical.
    trainer, _, _ = prepared(method, world, **({"method__topk": 1.0} if method == "sla" else {}))
    fresh = base_model(method, world)
    if method not in IN_DENOISER:
        assert torch.equal(output(adapted_model(trainer, method), method), output(fresh, method))
        return
    cond = fresh.condition(["a photo of sks", "a red cube"])
    x = torch.randn((2, *fresh.latent_shape), generator=stream(0, "x"))
    with torch.no_grad():
        out = trainer.backbone.predict(x, torch.tensor([100, 700]), cond)
        assert torch.allclose(out, fresh.predict(x, torch.tensor([100, 700]), cond), atol=1e-5)


def test_the_saved_adapter_on_a_fresh_base_is_what_was_trained(method: str, world: World, tmp_path: Path) -> None:
    trainer, config, engine = prepared(method, world, optim__lr=0.05)
    fit(trainer, config.optim, engine=engine, seed=0)
    trainer.eval()
    trainer.artifact().save(tmp_path / "a.safetensors")
    fresh = base_model(method, world)
    base = output(fresh, method)
    if method == "my3dgen":
        personal, _ = wear(fresh, trainer.base, Artifact.load(tmp_path / "a.safetensors"))
        assert personal.targets == trainer.personal.targets
        assert torch.equal(output(fresh, method), output(trainer.generator, method))
        assert float((output(fresh, method) - base).abs().max()) > 1e-3
        personal.remove()
        assert torch.equal(output(fresh, method), base)
        return
    if method == "sla":
        trainer.backbone.condition = fresh.condition
        with sla.attached(fresh.denoiser, Artifact.load(tmp_path / "a.safetensors"), "loaded"):
            assert torch.equal(output(fresh, method), output(trainer.backbone, method))
            assert float((output(fresh, method) - base).abs().max()) > 1e-3
        assert torch.equal(output(fresh, method), base)
        return
    found = attach(network(fresh, method), Artifact.load(tmp_path / "a.safetensors"), "loaded")
    assert found.targets == trainer.report.targets
    assert found.parameters == trainer.report.parameters
    if method in IN_DENOISER:  # the trainer's own text encoder was released
        trainer.backbone.condition = fresh.condition
    loaded = output(fresh, method)
    assert torch.equal(loaded, output(trainer.backbone, method))
    assert float((loaded - base).abs().max()) > 1e-3
    if method in UNSCALED:
        with pytest.raises(TargetError, match="cannot be scaled; use weight 1"):
            set_weights(network(fresh, method), {"loaded": 0.0})
        return
    set_weights(network(fresh, method), {"loaded": 0.0})
    assert torch.equal(output(fresh, method), base)


def test_the_result_of_a_run_works_on_its_base_and_on_no_other(method: str, world: World, reference: RunDir) -> None:
    adapter = read_adapter(AdapterSpec(path=reference.path, weight=1.0))
    backbone = backbones.load(world.model)
    if method not in IN_DENOISER:
        place = {"watermark": "vae", "my3dgen": "triplane"}[method]
        with pytest.raises(ArtifactError, match=f"goes into the {place}"), adapted(backbone, [adapter]):
            pass
        return
    base = predict(backbone)
    with adapted(backbone, [adapter]):
        assert not torch.equal(predict(backbone), base)
    assert torch.equal(predict(backbone), base)
    other = backbones.load(world.other_model)
    with pytest.raises(ArtifactError, match=r"made for base model 'tiny'.*'other'"), adapted(other, [adapter]):
        pass


@pytest.mark.parametrize("damage", ["truncated", "flipped header", "empty", "text"])
def test_a_damaged_result_is_refused(method: str, reference: RunDir, tmp_path: Path, damage: str) -> None:
    data = bytearray(reference.artifact_path.read_bytes())
    data = {
        "truncated": data[: len(data) // 2],
        "flipped header": data[:8] + bytes(b ^ 0x55 for b in data[8:200]) + data[200:],
        "empty": b"",
        "text": b"not an adapter",
    }[damage]
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"adapter\.safetensors"):
        read_adapter(AdapterSpec(path=path, weight=1.0))


@pytest.mark.parametrize("method", DENOISE)
def test_unknown_targets_are_refused(method: str, world: World) -> None:
    backbone = backbones.load(world.model)
    settings = run_config_class(method).model_validate(world.settings(method)).method
    with pytest.raises(TargetError):
        inject(backbone.denoiser, settings.peft(["no.such.layer"]), "default")


@pytest.mark.parametrize("method", DENOISE)
@pytest.mark.parametrize("group", ["attention", "attention+ff", "attention+ff+conv"])
def test_exactly_the_asked_layers_are_adapted(method: str, world: World, group: str) -> None:
    backbone = backbones.load(world.model)
    layers = backbone.target_layers(group)  # pyright: ignore[reportArgumentType]
    if method == "oft" and group.endswith("conv"):
        with pytest.raises(ValidationError, match="targets"):
            run_config_class(method).model_validate(world.settings(method, method__targets=group))
        return
    config = run_config_class(method).model_validate(world.settings(method, method__targets=group))
    assert list(inject(backbone.denoiser, config.method.peft(layers), "default").targets) == layers


def test_a_resumed_run_equals_an_unbroken_one(method: str, reference: RunDir, tmp_path: Path) -> None:
    """What a kill right after the checkpoint of step 2 leaves behind."""
    run = RunDir(tmp_path / "run")
    shutil.copytree(reference.path, run.path)
    shutil.rmtree(run.checkpoint(4))
    shutil.rmtree(run.previews / "000004")
    for path in (run.artifact_path, run.path / "report.html"):
        path.unlink()
    lines = run.metrics_path.read_text().splitlines(keepends=True)
    run.metrics_path.write_text("".join(lines[:-1]) + lines[-1][:10])
    run.update(state="running", process={"pid": 2**22 - 1, "started": "1"})
    assert execute(run, resume=True) == "finished"
    assert observe(run) == observe(reference)
    for name in ("weights", "optimizer"):
        made, expected = (load_file(r.checkpoint(4) / f"{name}.safetensors") for r in (run, reference))
        assert made.keys() == expected.keys()
        assert all(torch.equal(made[key], expected[key]) for key in expected)


def test_bf16_trains_adapters_in_fp32(method: str, world: World) -> None:
    trainer, config, engine = prepared(method, world, precision__dtype="bf16")
    state = fit(trainer, config.optim, engine=engine, seed=0)
    if method != "my3dgen":  # whose generator is small, and stays fp32 under autocast
        assert trainer.backbone.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for group in state.groups for p in group.params)
    assert all(t.dtype == torch.float32 for t in trainer.artifact().tensors.values())
    assert state.step == config.optim.steps
