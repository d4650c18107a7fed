"""Merging into the base weight: right, reversible to the bit, in any order, and never half-way."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from lrdiff.errors import LrdiffError, TargetError
from tests.lrdiff.tensor_lora.models import base_weights, conv_net, draw, layers, mlp, settings

NETS: dict[str, tuple[Any, list[str], tuple[int, ...]]] = {
    "mlp": (mlp, ["lin0", "lin1"], (4, 5, 12)),
    "conv": (conv_net, ["conv0", "conv1", "conv2", "conv3"], (2, 4, 8, 8)),
}
KINDS: list[dict[str, Any]] = [
    {"transform_rank": 2},
    {"transform_rank": 0},
    {"residual": "none"},
    {"residual": "lora", "transform_rank": 1},
]


def two_adapters(net: str = "mlp", **changes: Any) -> tuple[Any, Tensor]:
    make, targets, shape = NETS[net]
    model = get_peft_model(make(), settings(targets, **changes))
    torch.manual_seed(4)
    model.add_adapter("adapter-2", settings(targets, **changes))
    return model, draw(*shape)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_merged_equals_unmerged_and_unmerge_restores_the_bits(net: str, changes: dict[str, Any]) -> None:
    make, targets, shape = NETS[net]
    model = get_peft_model(make(), settings(targets, **changes))
    x, before = draw(*shape), base_weights(model)
    adapted = model(x)
    assert (adapted - make()(x)).abs().max() > 1e-3
    model.merge_adapter()
    torch.testing.assert_close(model(x), adapted, rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(before[name], weight) for name, weight in base_weights(model).items())
    model.unmerge_adapter()
    assert all(torch.equal(before[name], weight) for name, weight in base_weights(model).items())
    assert torch.equal(model(x), adapted)


@pytest.mark.parametrize("net", NETS)
def test_merge_and_unload_leaves_a_plain_network(net: str) -> None:
    make, targets, shape = NETS[net]
    model, x = get_peft_model(make(), settings(targets)), draw(*shape)
    adapted = model(x)
    plain = model.merge_and_unload(safe_merge=True)
    assert type(plain) is type(make())
    assert not list(layers(plain))
    assert not hasattr(plain, "peft_config")
    assert plain.state_dict().keys() == make().state_dict().keys()
    torch.testing.assert_close(plain(x), adapted, rtol=1e-4, atol=1e-5)


def test_unload_gives_the_base_back() -> None:
    model, x = two_adapters()
    assert torch.equal(model.unload()(x), mlp()(x))


def test_merging_twice_warns_and_changes_nothing() -> None:
    model, x = two_adapters()
    model.merge_adapter()
    merged, weights = model(x), base_weights(model)
    with pytest.warns(UserWarning, match="already merged"):
        model.merge_adapter()
    assert all(torch.equal(weights[name], weight) for name, weight in base_weights(model).items())
    assert torch.equal(model(x), merged)
    model.unmerge_adapter()
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.unmerge_adapter()


@pytest.mark.parametrize("net", NETS)
def test_one_after_another_equals_together_in_either_order(net: str) -> None:
    """The second adapter must be merged from the original weight, not from the already merged one."""
    results = []
    for order in (["default", "adapter-2"], ["adapter-2", "default"], None):
        model, x = two_adapters(net)
        before = base_weights(model)
        if order is None:
            model.merge_adapter(adapter_names=["default", "adapter-2"])
        else:
            model.merge_adapter(adapter_names=order[:1])
            with pytest.warns(UserWarning, match="additionally merging"):
                model.merge_adapter(adapter_names=order[1:])
        results.append(model(x))
        model.unmerge_adapter()
        assert all(torch.equal(before[name], weight) for name, weight in base_weights(model).items())
    torch.testing.assert_close(results[0], results[2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(results[1], results[2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("net", NETS)
def test_several_active_adapters_merge_to_what_they_compute(net: str) -> None:
    model, x = two_adapters(net)
    single = {}
    for name in ("default", "adapter-2"):
        model.set_adapter(name)
        single[name] = model(x)
    model.base_model.set_adapter(["default", "adapter-2"])
    both = model(x)
    assert all((both - one).abs().max() > 1e-4 for one in single.values())
    model.merge_adapter()
    torch.testing.assert_close(model(x), both, rtol=1e-4, atol=1e-5)


def test_strength_goes_into_the_merge_and_is_remembered() -> None:
    """Scaling between two merges must not change what is already merged."""
    model, x = two_adapters()
    for layer in layers(model):
        layer.set_scale("default", 0.5)
    model.base_model.set_adapter(["default", "adapter-2"])
    expected = model(x)
    model.merge_adapter(adapter_names=["default"])
    for layer in layers(model):
        layer.set_scale("default", 7.0)
    with pytest.warns(UserWarning, match="additionally merging"):
        model.merge_adapter(adapter_names=["adapter-2"])
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("where", ["tensor_lora_transform", "tensor_lora_residual"])
@pytest.mark.parametrize("net", NETS)
def test_a_broken_adapter_is_refused_by_safe_merge_and_the_base_is_untouched(net: str, where: str) -> None:
    model, _ = two_adapters(net)
    before = base_weights(model)
    broken = list(layers(model))[-1]
    getattr(broken, where)["default"].data[0] = torch.nan
    message = "NaNs detected in the merged weights. The adapter default seems to be broken"
    with pytest.raises(ValueError, match=message) as caught:
        broken.merge(safe_merge=True)
    assert isinstance(caught.value, LrdiffError)
    assert not broken.merged
    assert all(torch.equal(before[name], weight) for name, weight in base_weights(model).items())
    with pytest.raises(ValueError, match=message):
        copy.deepcopy(model).merge_and_unload(safe_merge=True)


def test_without_safe_merge_a_broken_adapter_can_still_be_taken_out() -> None:
    model, x = two_adapters()
    before = base_weights(model)
    next(layers(model)).tensor_lora_residual["default"].data[:] = torch.inf
    model.merge_adapter()
    assert not bool(torch.isfinite(model(x)).all())
    model.unmerge_adapter()
    assert all(torch.equal(before[name], weight) for name, weight in base_weights(model).items())


def test_safe_merge_refuses_a_result_that_half_precision_cannot_hold() -> None:
    model = get_peft_model(mlp().half(), settings(["lin0"]))
    layer = next(layers(model))
    layer.set_scale("default", 1e7)
    with pytest.raises(ValueError, match="too large for"):
        layer.merge(safe_merge=True)
    assert not layer.merged


def test_the_change_is_a_matrix_from_the_original_weight() -> None:
    model, _ = two_adapters()
    layer = next(layers(model))
    original = layer.get_base_layer().weight.detach().clone()  # pyright: ignore[reportCallIssue]
    delta = layer.get_delta_weight("default")
    layer.merge(adapter_names=["default"])
    torch.testing.assert_close(layer.get_base_layer().weight, original + delta)
    assert torch.equal(layer.get_delta_weight("default"), delta)
    assert delta.shape == original.shape
    assert delta.dtype == original.dtype


def test_disabling_a_merged_adapter_takes_it_out_of_the_weights() -> None:
    model, x = two_adapters()
    model.merge_adapter()
    with model.disable_adapter():
        torch.testing.assert_close(model(x), mlp()(x))


def test_a_quantised_weight_is_not_merged_into() -> None:
    class Int8Linear(nn.Module):
        """Weights as bytes and one scale, as quantised layers have."""

        def __init__(self, source: nn.Linear) -> None:
            super().__init__()
            self.in_features, self.out_features = source.in_features, source.out_features
            self.scale = source.weight.abs().max().item() / 127
            self.register_buffer("weight", (source.weight / self.scale).round().to(torch.int8))
            self.bias = source.bias

        def forward(self, x: Tensor) -> Tensor:
            assert isinstance(self.weight, Tensor)
            return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)

    net = mlp()
    net.lin0 = Int8Linear(net.lin0)  # pyright: ignore[reportAttributeAccessIssue]
    x = draw(4, 12)
    before = net(x)
    from lrdiff.tensor_lora import TensorLoraConfig

    model = get_peft_model(net, TensorLoraConfig(target_modules=["lin0", "lin1"]))
    assert torch.equal(model(x), before)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
    assert (model(x) - before).abs().max() > 1e-2
    layer = next(layers(model))
    assert layer.tensor_lora_transform["default"].dtype == torch.float32
    with pytest.raises(TargetError, match=r"quantised \(torch.int8\).*cannot be merged"):
        layer.merge()
    assert not layer.merged
