"""The kernels against the truth: in Triton's interpreter on a CPU, compiled on a CUDA device."""

from __future__ import annotations

import math
import os
from typing import Any

import pytest
import torch

from lrdiff.sla import route, sla_attention, sla_with_map
from tests.lrdiff.sla.cases import (
    FEATURES,
    SCOPES,
    assert_no_worse,
    case,
    dense,
    draw,
    gradients,
    projection,
    ragged,
    truth,
)

pytest.importorskip("triton", reason="the package triton is absent: the kernels are not tested")
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1",
    reason="no CUDA device; test_interpreter.py runs these tests with TRITON_INTERPRET=1",
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def put(qkv: list[torch.Tensor]) -> list[torch.Tensor]:
    return [x.detach().to(DEVICE).requires_grad_() for x in qkv]


@pytest.mark.parametrize("length", [7, 64, 75])
def test_routing_agrees(length: int) -> None:
    q, k, _ = put(draw(2, 2, length, 24, dtype=torch.float32))
    found, plain = (route(q, k, backend=name, **case(topk=0.5)) for name in ("triton", "reference"))
    assert torch.equal(found.classes, plain.classes)
    assert torch.equal(found.lists, plain.lists)
    assert found.lists.dtype == torch.int32


def test_routing_of_many_blocks_with_ties() -> None:
    x = torch.ones(1, 1, 16 * 70, 16, device=DEVICE)
    x[:, :, 16 * 66 : 16 * 67] = 2
    found = route(x, x, topk=0.3, skip=0.1, block_q=128, block_k=16, backend="triton")
    plain = route(x, x, topk=0.3, skip=0.1, block_q=128, block_k=16, backend="reference")
    assert torch.equal(found.classes, plain.classes)
    assert torch.equal(found.lists, plain.lists)
    assert found.lists[0, 0, 0].tolist() == [*range(20), 66]


@pytest.mark.parametrize("feature_map", FEATURES)
@pytest.mark.parametrize("scope", SCOPES)
def test_values_and_gradients(scope: Any, feature_map: Any) -> None:
    host = draw(1, 2, 75, 24, dtype=torch.float32)
    qkv, proj, block_map = put(host), projection(24, torch.float32).to(DEVICE), ragged(1, 2, 75, 32, 16)
    block_map = type(block_map)(*(x.to(DEVICE) for x in (block_map.classes, block_map.lists, block_map.counts)), 32, 16)
    out, stats = sla_with_map(*qkv, block_map, proj=proj, scope=scope, feature_map=feature_map, backend="triton")
    plain = dense(qkv, block_map, scope, feature_map, proj)
    torch.testing.assert_close(
        out.double().cpu(), truth(host, block_map, scope, feature_map, proj), rtol=1e-4, atol=1e-5
    )
    assert stats.backend == "triton"
    leaves = [*qkv, *proj.parameters()]
    for a, b in zip(gradients(out, leaves), gradients(plain, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_shares_take_from_both_kernels_as_from_plain_torch() -> None:
    found = []
    for backend in ("triton", "reference"):
        qkv = put(draw(1, 2, 75, 24, dtype=torch.float32))
        mix = torch.tensor([0.3, 0.9], device=DEVICE, requires_grad=True)
        out = sla_attention(*qkv, mix=mix, backend=backend, **case())
        found.append([out.detach(), *gradients(out, [*qkv, mix])])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 4.0, 16.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_worse_than_plain_torch(dtype: torch.dtype, scale: float) -> None:
    host = draw(1, 1, 75, 32, dtype=dtype, scale=scale)
    qkv, proj = put(host), projection(32).to(DEVICE)
    block_map = route(qkv[0], qkv[1], **case())
    out, _ = sla_with_map(*qkv, block_map, proj=proj, backend="triton")
    same = dense(qkv, block_map, "marginal", "softmax", proj)
    wide = [x.detach().double().requires_grad_() for x in qkv]
    exact = dense(wide, block_map, "marginal", "softmax", proj)
    found = [out.detach(), *gradients(out, qkv)]
    plain = [same.detach(), *gradients(same, qkv)]
    for a, b, c in zip(found, plain, [exact.detach(), *gradients(exact, wide)], strict=True):
        assert_no_worse(a.cpu(), b.cpu(), c.cpu())
        assert 0.98 <= float(a.double().norm() / c.norm()) <= 1.02


@pytest.mark.parametrize("scope", SCOPES)
def test_poison_beyond_the_tail_and_strides(scope: Any) -> None:
    """Tokens-first views into larger buffers full of NaN: gaps between heads, features and tokens are never read."""
    buffer = torch.full((1, 96, 2, 3, 40), math.nan, device=DEVICE)
    host = draw(1, 2, 75, 24, dtype=torch.float32)
    for i, x in enumerate(host):
        buffer[:, :75, :, i, :24] = x.detach().transpose(1, 2).to(DEVICE)
    views = [buffer[:, :75, :, i, :24].requires_grad_() for i in range(3)]
    qkv, proj = put(host), projection(24, torch.float32).to(DEVICE)
    out = sla_attention(*views, proj=proj, scope=scope, layout="blhd", backend="triton", **case())
    plain = sla_attention(*qkv, proj=proj, scope=scope, backend="reference", **case())
    torch.testing.assert_close(out.transpose(1, 2), plain, rtol=1e-4, atol=1e-5)
    for a, b in zip(gradients(out.transpose(1, 2), views), gradients(plain, qkv), strict=True):
        torch.testing.assert_close(a.transpose(1, 2), b, rtol=1e-4, atol=1e-5)


def test_log_sum_exp_is_natural_and_differentiable() -> None:
    qkv = put(draw(1, 1, 40, 16, dtype=torch.float32))
    _, stats = sla_attention(*qkv, topk=1.0, block_q=16, block_k=16, backend="triton", return_stats=True)
    exact = (qkv[0] @ qkv[1].mT / 4).logsumexp(-1)
    torch.testing.assert_close(stats.lse, exact, rtol=1e-5, atol=1e-5)
    for a, b in zip(gradients(stats.lse, qkv[:2]), gradients(exact, qkv[:2]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_everything_critical_is_dense_attention_plus_bias() -> None:
    qkv, proj = put(draw(1, 1, 40, 16, dtype=torch.float32)), projection(16, torch.float32).to(DEVICE)
    out = sla_attention(*qkv, proj=proj, topk=1.0, block_q=16, block_k=16, backend="triton")
    plain = torch.nn.functional.scaled_dot_product_attention(*qkv) + proj.bias
    torch.testing.assert_close(out, plain, rtol=1e-4, atol=1e-5)
    for a, b in zip(gradients(out, qkv), gradients(plain, qkv), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_equal_inputs_give_equal_bits() -> None:
    runs = []
    for _ in range(2):
        qkv = put(draw(1, 1, 75, 16, dtype=torch.float32))
        out = sla_attention(*qkv, proj=projection(16, torch.float32).to(DEVICE), backend="triton", **case())
        runs.append([out, *gradients(out, qkv)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_shapes_for_the_compiler_are_the_real_ones() -> None:
    from lrdiff.sla import triton_ops

    q, k, v = put(draw(1, 1, 40, 16, dtype=torch.float32))
    block_map = route(q, k, **case())
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    h, z = triton_ops.states(k, v, 0, 16, 16)
    lists = (block_map.lists, block_map.counts)
    for operator, arguments in [
        (triton_ops.block_means, (q, 16)),
        (triton_ops.classify, (torch.randn(1, 1, 2, 3, device=DEVICE), 1, 1)),
        (triton_ops.sparse, (q, k, v, *lists, 32, 16)),
        (triton_ops.states, (k, v, 0, 16, 16)),
        (triton_ops.readout, (q, h.detach(), z.detach(), 0, 16, 16)),
    ]:
        torch.library.opcheck(operator, arguments, test_utils=checks)
