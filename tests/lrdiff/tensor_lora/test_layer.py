"""The adapted layer against the materialised weight: every input shape, setting, strength, and gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from torch import Tensor, nn

from lrdiff.tensor_lora import TensorLoraConfig, TensorLoraLayer, reference
from lrdiff.tensor_lora.functional import transform_shape
from lrdiff.tensor_lora.modules import Conv2d, Linear, adapt
from tests.lrdiff.tensor_lora.models import conv_net, draw

CASES: list[dict[str, Any]] = [
    {"transform_rank": 1},
    {"transform_rank": 2},
    {"transform_rank": 3, "use_rslora": False, "alpha": 2.0},
    {"transform_rank": 0},
    {"residual": "lora", "r": 4},
    {"residual": "lora", "r": 1, "alpha": 1.0, "transform_rank": 0},
    {"residual": "none"},
]


def layer_of(base: nn.Module, names: tuple[str, ...] = ("one",), **changes: Any) -> TensorLoraLayer:
    torch.manual_seed(1)
    rank = {} if changes.get("residual") == "none" else {"r": 2}
    config = TensorLoraConfig(target_modules=["x"], **{**rank, "init_weights": False, **changes})
    layer = adapt(base, names[0], config, config.r, config.alpha)
    for name in names[1:]:
        layer.update_layer(name, config, config.r, config.alpha)
    layer.set_adapter(list(names))
    return layer.to(torch.float64)


def true_weight(layer: TensorLoraLayer, names: tuple[str, ...] = ("one",)) -> Tensor:
    """W' from the definition, differentiable in the adapter's parameters."""
    base = layer.get_base_layer().weight
    assert isinstance(base, Tensor)
    total = base.double()
    for name in names:
        shapes = layer.shapes[name]
        matrix = torch.eye(layer.in_features, dtype=torch.float64)
        residual = torch.zeros(1, dtype=torch.float64).expand(base.shape)
        if shapes.rank:
            flat = layer.tensor_lora_transform[name]
            cores = transform_shape(shapes.modes, shapes.rank).cores(flat)
            cores = [c.reshape(m, m, shapes.rank, shapes.rank) for c, m in zip(cores, shapes.modes, strict=True)]
            matrix = reference.transform(cores)
        if shapes.out and shapes.into:
            halves = layer.tensor_lora_residual[name].split([shapes.out.parameters, shapes.into.parameters])
            residual = reference.ring(shapes.out.cores(halves[0]), shapes.into.cores(halves[1]))
        elif shapes.lora_rank:
            flat = layer.tensor_lora_residual[name]
            up, down = flat.split(
                [shapes.lora_rank * layer.out_features, flat.numel() - shapes.lora_rank * layer.out_features]
            )
            residual = up.view(shapes.lora_rank, -1).t() @ down.view(shapes.lora_rank, -1)
        full = reference.weight(base, matrix, residual, layer.scaling[name], layer.strength[name])
        total = total + full - base.double()
    return total


def check(layer: TensorLoraLayer, x: Tensor, expected: Any, names: tuple[str, ...] = ("one",)) -> None:
    """Compare output and the gradients of the input and of all parameters with `expected(x, weight)`."""
    parameters = [p for name, p in layer.named_parameters() if "tensor_lora_" in name]
    x = x.requires_grad_()
    assert isinstance(layer, nn.Module)
    fast, slow = layer(x), expected(x, true_weight(layer, names))
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    grad = draw(*slow.shape, seed=11, dtype=torch.float64)
    fast_grads = torch.autograd.grad(fast, [x, *parameters], grad)
    slow_grads = torch.autograd.grad(slow, [x, *parameters], grad)
    for one, other in zip(fast_grads, slow_grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("changes", CASES, ids=str)
@pytest.mark.parametrize("shape", [(7, 12), (2, 5, 12), (2, 3, 2, 12), (12,), (1, 12)])
@pytest.mark.parametrize("out", [30, 12])
def test_linear_equals_the_materialised_weight(changes: dict[str, Any], shape: tuple[int, ...], out: int) -> None:
    torch.manual_seed(0)
    base = nn.Linear(12, out)
    layer = layer_of(base, **changes)
    check(layer, draw(*shape, dtype=torch.float64), lambda x, weight: F.linear(x, weight, base.bias))


@pytest.mark.parametrize("strength", [0.25, -1.5, 1.0])
def test_strength_scales_the_whole_change(strength: float) -> None:
    torch.manual_seed(0)
    base = nn.Linear(12, 30)
    layer = layer_of(base)
    layer.set_scale("one", strength)
    check(layer, draw(7, 12, dtype=torch.float64), lambda x, weight: F.linear(x, weight, base.bias))


def test_strength_zero_is_the_base_layer_bit_for_bit() -> None:
    base = nn.Linear(12, 30)
    layer = layer_of(base)
    layer.set_scale("one", 0.0)
    x = draw(7, 12, dtype=torch.float64)
    assert torch.equal(layer(x), base(x))  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    "changes", [{}, {"residual": "lora", "r": 3}, {"transform_rank": 0}, {"residual": "none"}], ids=str
)
def test_several_adapters_add_their_changes_to_the_original_weight(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    base = nn.Linear(12, 30)
    layer = layer_of(base, ("one", "two"), **changes)
    layer.set_scale("two", 0.5)
    check(layer, draw(7, 12, dtype=torch.float64), lambda x, w: F.linear(x, w, base.bias), ("one", "two"))


def test_adapters_of_different_kinds_on_one_layer() -> None:
    torch.manual_seed(0)
    base = nn.Linear(12, 30)
    layer = layer_of(base)
    for name, changes in {"two": {"residual": "none"}, "three": {"transform_rank": 0, "residual": "lora"}}.items():
        config = TensorLoraConfig(target_modules=["x"], init_weights=False, **changes)  # pyright: ignore[reportArgumentType]
        layer.update_layer(name, config, 2, 1.0)
    layer.set_adapter(["one", "two", "three"])
    layer = layer.to(torch.float64)
    check(layer, draw(7, 12, dtype=torch.float64), lambda x, w: F.linear(x, w, base.bias), ("one", "two", "three"))


@pytest.mark.parametrize("changes", CASES, ids=str)
@pytest.mark.parametrize("name", ["conv0", "conv1", "conv2", "conv3"])
def test_convolution_equals_the_materialised_weight(changes: dict[str, Any], name: str) -> None:
    base = conv_net().double().get_submodule(name)
    assert isinstance(base, nn.Conv2d)
    layer = layer_of(base, **changes)

    def expected(x: Tensor, weight: Tensor) -> Tensor:
        padding: Any = base.padding
        if base.padding_mode == "circular":
            x, padding = F.pad(x, (1, 1, 1, 1), mode="circular"), 0
        return F.conv2d(x, weight, base.bias, base.stride, padding, base.dilation)

    check(layer, draw(2, base.in_channels, 7, 6, dtype=torch.float64), expected)


def test_channels_last_input_gives_the_same_output() -> None:
    base = nn.Conv2d(8, 6, 3, padding=1)
    layer = layer_of(base)
    x = draw(2, 8, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), layer(x))  # pyright: ignore[reportCallIssue]


def test_strided_and_empty_inputs() -> None:
    base = nn.Linear(12, 30)
    layer = layer_of(base)
    wide = draw(6, 4, 24, dtype=torch.float64)
    for x in (wide[..., ::2], wide[..., 3:15], wide[:, :, :12].transpose(0, 1)):
        torch.testing.assert_close(layer(x), layer(x.contiguous()))  # pyright: ignore[reportCallIssue]
    assert layer(torch.zeros(0, 3, 12, dtype=torch.float64)).shape == (0, 3, 30)  # pyright: ignore[reportCallIssue]


@given(
    st.sampled_from([4, 6, 12, 30, 48]),
    st.sampled_from([4, 10, 35]),
    st.integers(0, 3),
    st.integers(1, 3),
    st.sampled_from(["ring", "lora"]),
    st.integers(1, 9),
)
@effort(deadline=None, max_examples=30)
def test_any_sizes(into: int, out: int, rank: int, r: int, residual: str, rows: int) -> None:
    torch.manual_seed(rows)
    base = nn.Linear(into, out)
    layer = layer_of(base, transform_rank=rank, r=r, residual=residual)
    check(layer, draw(rows, into, dtype=torch.float64), lambda x, weight: F.linear(x, weight, base.bias))


def test_a_wide_layer_of_rank_one_goes_half_by_half_and_agrees() -> None:
    """256 features at ring rank 1 take the other route through the maths, see `_splits`."""
    torch.manual_seed(0)
    base = nn.Linear(256, 12)
    layer = layer_of(base, transform_rank=1)
    x = draw(3, 256, dtype=torch.float64)
    check(layer, x, lambda x, weight: F.linear(x, weight, base.bias))
    assert layer(x[:0]).shape == (0, 12)  # pyright: ignore[reportCallIssue]


def test_scale_is_rslora_or_plain_and_never_touches_the_transform() -> None:
    sizes = {}
    for alpha, rslora in ((1.0, True), (1.0, False), (3.0, True)):
        layer = layer_of(nn.Linear(12, 30), r=4, alpha=alpha, use_rslora=rslora)
        sizes[alpha, rslora] = (layer.scaling["one"], layer.transform_cores("one")[0].sum().item())
    assert sizes[1.0, True][0] == pytest.approx(0.5)
    assert sizes[1.0, False][0] == pytest.approx(0.25)
    assert sizes[3.0, True][0] == pytest.approx(1.5)
    assert len({transform for _, transform in sizes.values()}) == 1


def test_layers_say_what_they_are() -> None:
    linear, conv = layer_of(nn.Linear(12, 30)), layer_of(nn.Conv2d(8, 6, 3))
    assert isinstance(linear, Linear)
    assert isinstance(conv, Conv2d)
    assert repr(linear).startswith("tensor_lora.Linear")
    assert (linear.in_features, linear.out_features) == (12, 30)
    assert (conv.in_features, conv.out_features) == (8, 6)
    assert linear.supports_lora_conversion("one")
    assert not conv.supports_lora_conversion("one")
