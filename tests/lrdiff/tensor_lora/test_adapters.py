"""Several adapters by name: adding, choosing, disabling, deleting, training, and what may not be mixed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, LoraModel, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from torch import nn

from lrdiff.errors import LrdiffError, ShapeError, TargetError
from lrdiff.tensor_lora import TensorLoraConfig, TensorLoraModel, check_nesting
from tests.lrdiff.tensor_lora.models import base_weights, conv_net, draw, layers, mlp, settings


def trainable(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def train(model: nn.Module, steps: int = 3, lr: float = 0.5) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    for step in range(steps):
        optimizer.zero_grad()
        (model(draw(6, 12, seed=step)) - 1).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("residual", ["ring", "lora", "none"])
def test_only_and_all_adapter_parameters_are_trained(residual: str) -> None:
    """Three steps: at the first some slices still have a zero gradient, see README."""
    model = get_peft_model(mlp(), TensorLoraConfig(target_modules=["lin0", "lin1"], residual=residual))  # pyright: ignore[reportArgumentType]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert trainable(model) == {name for name in before if "tensor_lora_" in name}
    train(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != ("tensor_lora_" in name), name


def test_training_lowers_the_loss() -> None:
    model = get_peft_model(mlp(), TensorLoraConfig(target_modules=["lin0", "lin1"]))
    x, target = draw(16, 12), draw(16, 3, seed=9)
    first = (model(x) - target).square().mean()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.6 * first


def test_names_attributes_and_repr() -> None:
    model = get_peft_model(mlp(), settings(), adapter_name="mine")
    assert isinstance(model.base_model, TensorLoraModel)
    assert model.active_adapter == "mine"
    assert model.base_model.targeted_module_names == ["lin0", "lin1"]
    assert "tensor_lora.Linear" in repr(model)
    assert model.base_model.model.lin0.active_adapters == ["mine"]
    assert set(model.base_model.model.lin0.r) == {"mine"}


def test_all_linear_excluded_and_indexed_layers() -> None:
    assert len(list(layers(get_peft_model(mlp(), settings("all-linear", modes={3: (3,)}))))) == 3
    assert len(list(layers(get_peft_model(mlp(), settings(["lin0", "lin1"], exclude_modules=["lin1"]))))) == 1
    nested = nn.ModuleDict({"blocks": nn.ModuleList([nn.ModuleDict({"lin": nn.Linear(12, 12)}) for _ in range(4)])})
    config = TensorLoraConfig(target_modules=["lin"], layers_to_transform=[1, 3], layers_pattern="blocks")
    adapted = inject_adapter_in_model(config, nn.ModuleDict({"net": nested}))
    assert [name for name, module in adapted.named_modules() if module in set(layers(adapted))] == [
        "net.blocks.1.lin",
        "net.blocks.3.lin",
    ]


def test_modules_to_save_are_trained_and_kept_whole() -> None:
    model = get_peft_model(mlp(), settings(modules_to_save=["head"]))
    assert any("modules_to_save" in name for name in trainable(model))
    train(model)
    state = get_peft_model_state_dict(model)
    assert "base_model.model.head.weight" in state
    assert not torch.equal(state["base_model.model.head.weight"], mlp().head.weight)


def test_the_first_adapter_stays_as_it_was_when_a_second_comes() -> None:
    model, x = get_peft_model(mlp(), settings()), draw(4, 12)
    one = model(x)
    model.add_adapter("two", settings(["lin0"]))
    assert torch.equal(model(x), one)
    assert all(".two" not in name for name in trainable(model))
    model.set_adapter("two")
    assert trainable(model) == {f"base_model.model.lin0.tensor_lora_{kind}.two" for kind in ("transform", "residual")}
    assert not torch.equal(model(x), one)
    model.set_adapter("default")
    assert torch.equal(model(x), one)


def test_a_taken_name_is_refused_without_a_change() -> None:
    model, x = get_peft_model(mlp(), settings()), draw(4, 12)
    before, out = {n: p.clone() for n, p in model.named_parameters()}, model(x)
    with pytest.raises(ValueError, match="already exists"):
        model.add_adapter("default", settings(r=1))
    assert before.keys() == dict(model.named_parameters()).keys()
    assert torch.equal(model(x), out)


def test_disabling_is_the_base_and_ends_with_the_context() -> None:
    model, x = get_peft_model(mlp(), settings()), draw(4, 12)
    out = model(x)
    with model.disable_adapter():
        assert torch.equal(model(x), mlp()(x))
    assert torch.equal(model(x), out)
    model.disable_adapter_layers()
    assert torch.equal(model(x), mlp()(x))
    assert not trainable(model)
    model.enable_adapter_layers()
    assert torch.equal(model(x), out)


def test_deleting_cleans_every_dictionary() -> None:
    model, x = get_peft_model(mlp(), settings()), draw(4, 12)
    model.add_adapter("two", settings())
    out = model(x)
    model.delete_adapter("two")
    assert torch.equal(model(x), out)
    for layer in layers(model):
        for attribute in (*layer.adapter_layer_names, *layer.other_param_names):
            assert set(getattr(layer, attribute)) == {"default"}
    model.add_adapter("two", settings())
    with pytest.warns(UserWarning, match="was active which is now deleted"):
        model.delete_adapter("default")
    assert model.active_adapters == ["two"]
    model.delete_adapter("two")
    assert torch.equal(model.base_model.model(x), mlp()(x))
    with pytest.raises(ValueError, match="does not exist"):
        model.delete_adapter("three")


def test_a_merged_adapter_cannot_be_deleted() -> None:
    model = get_peft_model(mlp(), settings())
    model.merge_adapter()
    with pytest.raises(ValueError, match="while they are merged"):
        model.delete_adapter("default")
    with pytest.raises(TargetError, match="unmerge it"):
        next(layers(model)).delete_adapter("default")


def test_gradients_can_be_switched_by_name() -> None:
    model = get_peft_model(mlp(), settings())
    model.base_model.set_requires_grad("default", False)
    assert not trainable(model)
    model.base_model.set_requires_grad("default")
    assert len(trainable(model)) == 4


def test_strengths() -> None:
    model, x = get_peft_model(mlp(), settings(["lin0"])), draw(4, 12)
    (layer,) = layers(model)
    full = model(x)
    layer.set_scale("default", 0.0)
    assert torch.equal(model(x), mlp()(x))
    layer.set_scale("default", 1.0)
    layer.scale_layer(0.5)
    layer.scale_layer(0.5)
    assert layer.strength["default"] == 0.25
    layer.unscale_layer(0.5)
    assert layer.strength["default"] == 0.5
    layer.unscale_layer()
    assert torch.equal(model(x), full)
    layer.set_scale("absent", 3.0)
    assert set(layer.strength) == {"default"}
    with pytest.raises(ValueError, match="finite"):
        layer.set_scale("default", float("nan"))
    with pytest.raises(ValueError, match="set_scale"):
        layer.unscale_layer(0)


def test_targets_that_cannot_be_adapted_are_named_before_anything_changes() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.good = nn.Linear(12, 12)
            self.prime = nn.Linear(13, 12)
            self.grouped = nn.Conv2d(8, 8, 3, groups=2)
            self.norm = nn.LayerNorm(12)
            self.attention = nn.MultiheadAttention(12, 2)

    cases: dict[str, tuple[type[LrdiffError], str]] = {
        "prime": (ShapeError, "layer 'prime': layer width 13 is prime.*exclude_modules"),
        "grouped": (TargetError, "layer 'grouped': a convolution with groups=2"),
        "norm": (TargetError, "layer 'norm': a LayerNorm cannot be adapted"),
        "attention.out_proj": (TargetError, "read, not called"),
    }
    for target, (kind, message) in cases.items():
        net = Net()
        with pytest.raises(kind, match=message):
            inject_adapter_in_model(TensorLoraConfig(target_modules=["good", target]), net)
        assert not list(layers(net))
    assert len(list(layers(inject_adapter_in_model(plain_lora_on_primes(), Net())))) == 2


def plain_lora_on_primes() -> TensorLoraConfig:
    return TensorLoraConfig(target_modules=["good", "prime"], transform_rank=0, residual="lora", r=2)


def test_no_match_raises() -> None:
    with pytest.raises(ValueError, match="not found in the base model"):
        get_peft_model(mlp(), settings(["nothing"]))


def test_lora_on_other_layers_keeps_to_itself() -> None:
    for first, second in ((True, False), (False, True)):
        model, x = mlp(), draw(4, 12)
        for ours in (first, second):
            config: Any = (
                settings(["lin0"]) if ours else LoraConfig(r=2, target_modules=["lin1"], init_lora_weights=False)
            )
            inject_adapter_in_model(config, model, "ours" if ours else "theirs")
        check_nesting(model)
        states = {name: get_peft_model_state_dict(model, adapter_name=name) for name in ("ours", "theirs")}
        assert set(states["ours"]) == {"lin0.tensor_lora_transform", "lin0.tensor_lora_residual"}
        assert set(states["theirs"]) == {"lin1.lora_A.weight", "lin1.lora_B.weight"}
        assert bool(torch.isfinite(model(x)).all())


def test_lora_on_the_same_layer_is_refused_in_either_order() -> None:
    below = inject_adapter_in_model(LoraConfig(r=2, target_modules=["lin0"]), mlp(), "theirs")
    before = base_weights(below)
    with pytest.raises(TargetError, match=r"layer 'lin0' already carries an adapter of type peft\.tuners\.lora"):
        inject_adapter_in_model(settings(), below, "ours")
    assert not list(layers(below))
    assert set(below.peft_config) == {"theirs"}  # pyright: ignore[reportArgumentType]
    assert before.keys() == base_weights(below).keys()
    above = inject_adapter_in_model(settings(["lin0"]), mlp(), "ours")
    LoraModel(above, LoraConfig(r=2, target_modules=["lin0"]), "theirs")
    with pytest.raises(TargetError, match="layer 'lin0' carries two kinds of adapters"):
        check_nesting(above)


def test_a_deep_copy_is_independent() -> None:
    import copy

    model, x = get_peft_model(mlp(), settings()), draw(4, 12)
    twin = copy.deepcopy(model)
    train(twin)
    assert not torch.equal(twin(x), model(x))


def test_convolutions_train_too() -> None:
    model, x = get_peft_model(conv_net(), TensorLoraConfig(target_modules=["conv0", "conv3"])), draw(2, 4, 8, 8)
    before = model(x)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
    assert (model(x) - 1).square().mean() < (before - 1).square().mean()
