"""Adapters go in, say what matched, work by strength, and come out without a trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, OFTConfig
from torch import Tensor, nn

from lrdiff.artifact import Artifact, Header
from lrdiff.errors import ArtifactError, LrdiffError, TargetError
from lrdiff.inject import attach, eject, inject, peft_config, report, set_weights, state, tuner_layers
from lrdiff.tensor_lora import TensorLoraConfig

LINEAR = ["first", "blocks.0.to_q", "blocks.0.to_out.0", "blocks.1.to_q", "blocks.1.to_out.0"]


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Dropout(0.0)])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.to_out[1](self.to_out[0](torch.tanh(self.to_q(x))))


class Net(nn.Module):
    """A small network with linear layers, a convolution and a layer that no adapter takes."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, width, 3, padding=1)
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, width)
        self.blocks = nn.ModuleList([Block(width), Block(width)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x).mean((2, 3)))
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


def net(seed: int = 0, width: int = 12) -> Net:
    torch.manual_seed(seed)
    return Net(width).eval()


def inputs() -> Tensor:
    return torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(5))


def lora(targets: list[str] | str = "all", **options: Any) -> LoraConfig:
    names = LINEAR if targets == "all" else targets
    return LoraConfig(target_modules=names, r=2, lora_alpha=2, **options)


def ring(targets: list[str] | str = "all", **options: Any) -> TensorLoraConfig:
    return TensorLoraConfig(target_modules=LINEAR if targets == "all" else targets, r=2, **options)


KINDS: dict[str, Callable[..., Any]] = {"lora": lora, "tensor_lora": ring}


def randomise(model: nn.Module, name: str, seed: int) -> None:
    """Move an adapter away from its start, where it changes nothing."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in state(model, name).values():
            tensor += 0.2 * torch.randn(tensor.shape, generator=rng)


def trained(config: Any, seed: int = 1, kind: str = "") -> Artifact:
    """Return an adapter for `net()` that changes its output."""
    model = net()
    inject(model, config, "default")
    randomise(model, "default", seed)
    tensors = {key: value.detach().clone() for key, value in state(model, "default").items()}
    kind = kind or str(config.peft_type.value).lower()
    return Artifact(tensors, Header("test", kind, config.to_dict(), "net", "f"))


def adapters(model: Any) -> dict[str, Any]:
    return model.peft_config


class Trace:
    """Everything that could differ between a model and itself before: modules, attributes, flags, values, outputs."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = dict(model.named_modules())
        self.attributes = set(vars(model))
        self.flags = {name: p.requires_grad for name, p in model.named_parameters()}
        self.values = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.output = model(inputs()).detach()

    def check(self) -> None:
        modules = dict(self.model.named_modules())
        assert modules.keys() == self.modules.keys()
        assert all(modules[name] is module for name, module in self.modules.items())
        assert set(vars(self.model)) == self.attributes
        assert {name: p.requires_grad for name, p in self.model.named_parameters()} == self.flags
        assert all(torch.equal(p, self.values[name]) for name, p in self.model.named_parameters())
        assert torch.equal(self.model(inputs()), self.output)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_changes_nothing_and_is_all_that_is_trainable(kind: str) -> None:
    model = net()
    before = model(inputs())
    found = inject(model, KINDS[kind](), "default")
    assert found.name == "default"
    assert list(found.targets) == LINEAR, "in model order"
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trainable.values()) == found.parameters > 0
    assert all(".default" in name for name in trainable)
    assert torch.allclose(model(inputs()), before, atol=1e-5)
    assert report(model, "default") == found


@pytest.mark.parametrize("kind", KINDS)
def test_eject_restores_the_very_modules_and_the_output_bit_by_bit(kind: str) -> None:
    model = net().requires_grad_(False)
    trace = Trace(model)
    inject(model, KINDS[kind](), "default")
    randomise(model, "default", 3)
    assert not torch.allclose(model(inputs()), trace.output, atol=1e-3)
    eject(model, "default")
    trace.check()


@pytest.mark.parametrize(
    "targets",
    [["absent"], ["blocks.2.to_q"], ["norm.weight"], "no.such.layer.*"],
    ids=["name", "index", "weight", "regex"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_zero_matches_is_an_error_and_leaves_the_model_alone(kind: str, targets: list[str] | str) -> None:
    model = net()
    trace = Trace(model)
    with pytest.raises(TargetError):
        inject(model, KINDS[kind](targets), "default")
    trace.check()


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_that_cannot_be_adapted_leaves_the_model_alone(kind: str) -> None:
    model = net()
    trace = Trace(model)
    with pytest.raises(LrdiffError):
        inject(model, KINDS[kind](["first", "blocks.1.to_q", "norm", "blocks.1"]), "default")
    trace.check()


def test_names_that_are_taken_or_misleading_are_refused() -> None:
    model = net()
    inject(model, lora(), "default")
    output = model(inputs())
    for name, message in {
        "default": "already in the model",
        "to_q": "name of a part",
        "0": "name of a part",
        "lora_A": "name of a part",
        "a.b": "dot",
    }.items():
        with pytest.raises(TargetError, match=message):
            inject(model, ring(), name)
    assert torch.equal(model(inputs()), output)
    assert list(adapters(model)) == ["default"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_adapter_acts_as_when_it_was_trained(kind: str, tmp_path: Path) -> None:
    model = net()
    config = KINDS[kind]()
    inject(model, config, "default")
    randomise(model, "default", 1)
    expected = model(inputs())
    artifact = trained(KINDS[kind]())
    artifact.save(tmp_path / "a.safetensors")
    fresh = net()
    found = attach(fresh, Artifact.load(tmp_path / "a.safetensors"), "other")
    assert torch.equal(fresh(inputs()), expected)
    assert list(found.targets) == LINEAR
    assert not any(p.requires_grad for name, p in fresh.named_parameters() if ".other" in name)
    assert all(torch.equal(state(fresh, "other")[key], value) for key, value in artifact.tensors.items())


@pytest.mark.parametrize("kind", KINDS)
def test_strength_is_linear_in_a_linear_layer(kind: str) -> None:
    artifact = trained(KINDS[kind](["first"]))
    model = net()
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(2))
    base = model.first(x)
    attach(model, artifact, "a", weight=0.0)
    assert torch.equal(model.first(x), base)
    outputs = {}
    for weight in (0.0, 0.5, 1.0, 2.0, -1.0):
        set_weights(model, {"a": weight})
        outputs[weight] = model.first(x)
    change = outputs[1.0] - base
    assert float(change.detach().abs().max()) > 0.05
    for weight, output in outputs.items():
        assert torch.allclose(output - base, weight * change, atol=1e-5)
    assert torch.equal(outputs[0.0], base)


def test_weight_of_attach_is_the_weight_of_set_weights() -> None:
    artifact = trained(lora())
    one, other = net(), net()
    attach(one, artifact, "a", weight=0.3)
    attach(other, artifact, "a")
    set_weights(other, {"a": 0.3})
    assert torch.equal(one(inputs()), other(inputs()))


def broken(artifact: Artifact, case: str) -> Artifact:
    tensors, header = dict(artifact.tensors), artifact.header
    first = next(iter(tensors))
    if case == "missing":
        del tensors[first]
    elif case == "unexpected":
        tensors["blocks.7.to_q.lora_A.weight"] = torch.zeros(2, 12)
    elif case == "shape":
        tensors[first] = torch.zeros(1, 3)
    elif case == "empty":
        tensors = {}
    elif case == "renamed":
        tensors = {f"unet.{key}": value for key, value in tensors.items()}
    elif case == "kind":
        header = Header("test", "no_such_kind", header.config, "net", "f")
    elif case == "config":
        header = Header("test", header.adapter, header.config | {"no_such_option": 1}, "net", "f")
    elif case == "rank":
        header = Header("test", header.adapter, header.config | {"r": 5}, "net", "f")
    return Artifact(tensors, header)


@pytest.mark.parametrize("case", ["missing", "unexpected", "shape", "empty", "renamed", "kind", "config", "rank"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_that_does_not_fit_leaves_the_model_alone(kind: str, case: str) -> None:
    artifact = broken(trained(KINDS[kind]()), case)
    model = net()
    trace = Trace(model)
    with pytest.raises(ArtifactError):
        attach(model, artifact, "a")
    trace.check()


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_for_another_width_or_other_layers_is_refused(kind: str) -> None:
    artifact = trained(KINDS[kind]())
    wider = net(width=24)
    trace = Trace(wider)
    with pytest.raises(ArtifactError, match=r"of another shape .*base model it was trained on"):
        attach(wider, artifact, "a")
    trace.check()
    other = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(TargetError):
        attach(other, artifact, "a")
    assert type(other[0]) is nn.Linear


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", KINDS)
def test_strengths_must_be_numbers(kind: str, weight: float) -> None:
    artifact = trained(KINDS[kind]())
    model = net()
    trace = Trace(model)
    with pytest.raises(TargetError, match="finite"):
        attach(model, artifact, "a", weight)
    trace.check()
    attach(model, artifact, "a")
    output = model(inputs())
    with pytest.raises(TargetError, match="finite"):
        set_weights(model, {"a": weight})
    assert torch.equal(model(inputs()), output)


def test_absent_adapters_are_named() -> None:
    model = net()
    attach(model, trained(lora()), "a")
    output = model(inputs())
    for act in (
        lambda: set_weights(model, {"a": 0.5, "b": 1.0}),
        lambda: eject(model, "b"),
        lambda: state(model, "b"),
        lambda: report(model, "b"),
    ):
        with pytest.raises(TargetError, match="'b'"):
            act()
    assert torch.equal(model(inputs()), output)


def test_a_kind_without_strengths_says_so() -> None:
    config = OFTConfig(target_modules=["first"], oft_block_size=4)
    artifact = trained(config, kind="oft")
    model = net()
    trace = Trace(model)
    del artifact.tensors["first.oft_R.weight"]
    with pytest.raises(ArtifactError):
        attach(model, artifact, "a")
    trace.check()


def pair(first: Any, second: Any) -> tuple[Artifact, Artifact]:
    return trained(first, seed=1), trained(second, seed=2)


def change(artifact: Artifact, layer: str, weight: float = 1.0) -> Callable[[Tensor], Tensor]:
    """Return what an adapter adds to a layer's output, measured alone."""
    model = net()
    base = model.get_submodule(layer)
    attach(model, artifact, "alone", weight)
    adapted = model.get_submodule(layer)
    return lambda x: adapted(x) - base(x)


COMBINATIONS = {
    "two loras": (lora, lora),
    "two rings": (ring, ring),
    "lora around ring": (ring, lora),
}


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_adapters_on_the_same_layer_add(combination: str) -> None:
    first, second = pair(*(make(["first"]) for make in COMBINATIONS[combination]))
    model = net()
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(2))
    base = model.first(x)
    attach(model, first, "a", 0.7)
    attach(model, second, "b", -0.4)
    expected = base + change(first, "first", 0.7)(x) + change(second, "first", -0.4)(x)
    assert torch.allclose(model.first(x), expected, atol=1e-5), "both are active after attaching"
    for weights in ({"a": 1.0, "b": 1.0}, {"a": 0.0, "b": 2.0}, {"b": 1.0}, {"a": 1.0}, {}):
        set_weights(model, weights)
        parts = [
            change(artifact, "first", weights.get(name, 0.0))(x) for name, artifact in (("a", first), ("b", second))
        ]
        assert torch.allclose(model.first(x), base + parts[0] + parts[1], atol=1e-5), weights


@pytest.mark.parametrize("order", ["ab", "ba"])
@pytest.mark.parametrize("combination", COMBINATIONS)
def test_removing_one_of_two_leaves_the_other_as_it_was(combination: str, order: str) -> None:
    first, second = pair(*(make() for make in COMBINATIONS[combination]))
    artifacts = {"a": first, "b": second}
    model = net().requires_grad_(False)
    trace = Trace(model)
    attach(model, first, "a", 0.7)
    attach(model, second, "b", 1.3)
    gone, kept = order
    eject(model, gone)
    alone = net()
    attach(alone, artifacts[kept], kept, {"a": 0.7, "b": 1.3}[kept])
    assert torch.allclose(model(inputs()), alone(inputs()), atol=1e-6)
    assert not any(p.requires_grad for p in model.parameters())
    assert state(model, kept).keys() == artifacts[kept].tensors.keys()
    eject(model, kept)
    trace.check()


def test_removing_an_active_adapter_does_not_wake_another() -> None:
    first, second = pair(lora(), lora())
    model = net()
    base = model(inputs())
    attach(model, first, "a")
    attach(model, second, "b")
    set_weights(model, {"b": 1.0})
    eject(model, "b")
    assert torch.equal(model(inputs()), base)
    set_weights(model, {"a": 1.0})
    assert not torch.allclose(model(inputs()), base, atol=1e-3)


def test_adapters_of_different_kinds_on_different_layers() -> None:
    first, second = pair(ring(["first", "conv"]), lora(["blocks.0.to_q", "blocks.1.to_out.0"]))
    model = net()
    trace = Trace(model.requires_grad_(False))
    attach(model, first, "a")
    attach(model, second, "b")
    assert {path for path, _ in tuner_layers(model, "a")} == {"first", "conv"}
    assert {path for path, _ in tuner_layers(model, "b")} == {"blocks.0.to_q", "blocks.1.to_out.0"}
    outputs = []
    for weights in ({"a": 1.0}, {"b": 1.0}, {"a": 1.0, "b": 1.0}, {}):
        set_weights(model, weights)
        outputs.append(model(inputs()))
    assert all(not torch.allclose(x, y, atol=1e-3) for i, x in enumerate(outputs) for y in outputs[:i])
    assert torch.equal(outputs[-1], trace.output)
    eject(model, "a")
    eject(model, "b")
    trace.check()


def test_tensor_lora_around_lora_is_refused_and_leaves_the_model_alone() -> None:
    model = net()
    attach(model, trained(lora()), "a")
    trace = Trace(model)
    with pytest.raises(TargetError, match="already carries an adapter"):
        attach(model, trained(ring()), "b")
    trace.check()
    assert list(adapters(model)) == ["a"]


def test_training_one_adapter_over_another_that_is_only_used() -> None:
    model = net()
    attach(model, trained(ring()), "subject", 0.8)
    before = model(inputs())
    inject(model, lora(), "reward")
    assert torch.allclose(model(inputs()), before, atol=1e-6), "the subject stays active"
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert names
    assert all("lora_A.reward" in name or "lora_B.reward" in name for name in names)
    model(inputs()).square().sum().backward()
    assert all(p.grad is None for name, p in model.named_parameters() if ".reward" not in name)
    saved = state(model, "reward")
    assert all("base_layer" not in key and "tensor_lora" not in key for key in saved)


def test_a_second_adapter_of_the_same_kind_can_be_trained() -> None:
    model = net()
    attach(model, trained(lora()), "old")
    inject(model, lora(), "new")
    assert {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad} == {"new"}


def test_the_base_keeps_its_number_format_and_the_adapter_its_precision() -> None:
    model = net().to(torch.bfloat16)
    artifact = trained(lora())
    attach(model, artifact, "a")
    assert model.first.weight.dtype == torch.bfloat16
    assert model(inputs().bfloat16()).dtype == torch.bfloat16
    assert all(value.dtype == torch.float32 for value in state(model, "a").values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_adapter_is_not_removed(kind: str) -> None:
    model = net()
    attach(model, trained(KINDS[kind]()), "a")
    layer: Any = model.first
    layer.merge()
    output = model(inputs())
    with pytest.raises(TargetError, match="merged"):
        eject(model, "a")
    assert torch.equal(model(inputs()), output)
    layer.unmerge()
    eject(model, "a")
    assert type(model.first) is nn.Linear


def test_the_config_of_a_file_is_complete() -> None:
    for config in (lora(lora_dropout=0.25), ring(transform_rank=1, alpha=3.0)):
        rebuilt = peft_config(trained(config))
        assert rebuilt.to_dict() == {**config.to_dict(), "inference_mode": rebuilt.inference_mode}
