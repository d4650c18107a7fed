"""Half precision, autocast, gradient checkpointing and torch.compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lrdiff.tensor_lora import TensorLoraConfig
from lrdiff.tensor_lora.autograd import Plan, Turn, adapt
from lrdiff.tensor_lora.functional import transform_shape
from lrdiff.tensor_lora.initialise import transform_cores
from tests.lrdiff.tensor_lora.models import base_weights, conv_net, draw, layers, mlp, settings

HALVES = [torch.float16, torch.bfloat16]
NETS: dict[str, tuple[Any, list[str], tuple[int, ...]]] = {
    "mlp": (mlp, ["lin0", "lin1"], (4, 5, 12)),
    "conv": (conv_net, ["conv0", "conv1", "conv2"], (2, 4, 8, 8)),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("widened", [True, False])
def test_half_precision_models(net: str, dtype: torch.dtype, widened: bool) -> None:
    """With and without float32 adapters: finite, near the float32 output, merge and unmerge to the bit."""
    make, targets, shape = NETS[net]
    torch.manual_seed(5)
    exact = get_peft_model(make(), settings(targets))(draw(*shape))
    torch.manual_seed(5)
    model = get_peft_model(make().to(dtype), settings(targets), autocast_adapter_dtype=widened)
    assert {p.dtype for layer in layers(model) for p in layer.tensor_lora_residual.values()} == {
        torch.float32 if widened else dtype
    }
    x, before = draw(*shape, dtype=dtype).requires_grad_(), base_weights(model)
    out = model(x)
    assert out.dtype == dtype
    tolerance = 0.05 if dtype == torch.bfloat16 else 0.01
    assert (out.float() - exact).abs().max() < tolerance * exact.abs().max() + tolerance
    out.float().square().mean().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.requires_grad and p.grad is not None)
    model.merge_adapter(safe_merge=True)
    assert (model(x).float() - out.float()).abs().max() < tolerance * exact.abs().max() + tolerance
    model.unmerge_adapter()
    assert all(torch.equal(before[name], weight) for name, weight in base_weights(model).items())


@pytest.mark.parametrize("net", NETS)
def test_a_fresh_adapter_is_exactly_the_base_in_half_precision(net: str) -> None:
    make, targets, shape = NETS[net]
    x = draw(*shape, dtype=torch.bfloat16)
    before = make().bfloat16()(x)
    assert torch.equal(get_peft_model(make().bfloat16(), TensorLoraConfig(target_modules=targets))(x), before)


def test_half_precision_keeps_small_changes_of_the_diagonal() -> None:
    """1 + 0.001 rounds to 1 in bfloat16; the change must still arrive, since T - I is what is rounded."""
    modes = (4, 8)
    flat = transform_cores(modes, 1, "broken-symmetry")
    flat[:16] *= 1.001
    assert flat.numel() == transform_shape(modes, 1).parameters
    x = torch.full((1, 32), 1000.0)
    plan = Plan((Turn(modes, 1, 1.0),), ())
    z, _, _ = adapt(x.to(torch.bfloat16), plan, [flat])
    exact, _, _ = adapt(x, plan, [flat])
    assert (exact - 1001).abs().max() < 1e-2
    lost = (1000 * torch.eye(32).mul(1.001).to(torch.bfloat16).diagonal().float()).mean()
    assert lost == 1000
    assert (adapt(torch.ones(1, 32).to(torch.bfloat16) / 1024, plan, [flat])[0].float() * 1024 - 1).abs().max() < 8e-3
    assert z.dtype == torch.bfloat16


@pytest.mark.parametrize("net", NETS)
def test_autocast_is_near_full_precision_and_trains(net: str) -> None:
    make, targets, shape = NETS[net]
    torch.manual_seed(5)
    model, x = get_peft_model(make(), settings(targets)), draw(*shape)
    exact = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)
        loss = out.float().square().mean()
    assert out.dtype == torch.bfloat16
    assert (out.float() - exact).abs().max() < 0.05 * exact.abs().max() + 0.05
    loss.backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(grad is not None and grad.dtype == torch.float32 and bool(torch.isfinite(grad).all()) for grad in grads)


def test_autocast_leaves_a_fresh_adapter_exact() -> None:
    net, x = mlp(), draw(4, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = net(x)
        assert torch.equal(get_peft_model(net, TensorLoraConfig(target_modules=["lin0", "lin1"]))(x), before)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("net", NETS)
def test_gradient_checkpointing_gives_the_same_gradients(net: str, reentrant: bool) -> None:
    make, targets, shape = NETS[net]
    model = get_peft_model(make(), settings(targets))
    results = []
    for use in (False, True):
        model.zero_grad()
        x = draw(*shape).requires_grad_()
        out = checkpoint(model, x, use_reentrant=reentrant) if use else model(x)
        assert isinstance(out, Tensor)
        out.square().mean().backward()
        assert x.grad is not None
        results.append([x.grad] + [p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(results[0]) == len(results[1]) > 1
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_compiles_as_one_graph_and_agrees() -> None:
    model, x = get_peft_model(mlp(), settings()), draw(4, 12)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    out = model(x)
    out.square().mean().backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    torch.testing.assert_close(compiled(x), out)
    compiled(x).square().mean().backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_two_forward_passes_have_separate_graphs() -> None:
    model = get_peft_model(mlp(), settings())
    first, second = model(draw(4, 12, seed=1)), model(draw(4, 12, seed=2))
    first.sum().backward()
    second.sum().backward()
    summed = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    (model(draw(4, 12, seed=1)).sum() + model(draw(4, 12, seed=2)).sum()).backward()
    for one, other in zip(summed, [p.grad for p in model.parameters() if p.grad is not None], strict=True):
        torch.testing.assert_close(one, other)


def test_the_meta_device_gives_shapes() -> None:
    model: nn.Module = get_peft_model(mlp(), settings()).to("meta")
    assert model(draw(4, 12).to("meta")).shape == (4, 3)
