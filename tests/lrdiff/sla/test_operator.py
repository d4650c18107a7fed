"""`sla_attention` on a CPU: against the truth, at the places where others broke."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from lrdiff.errors import BackendError, ConfigError, DataError, LrdiffError, ShapeError
from lrdiff.sla import route, sla_attention, sla_with_map
from lrdiff.sla.operator import zero_projection
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
    relative,
    truth,
)


def exact_run(qkv: list[torch.Tensor], block_map: Any, scope: str, feature_map: str, proj: nn.Linear) -> list:
    wide = [x.detach().double().requires_grad_() for x in qkv]
    out = dense(wide, block_map, scope, feature_map, proj.double())
    return [out.detach(), *gradients(out, [*wide, *proj.parameters()])]


@pytest.mark.parametrize("length", [7, 96, 150])
@pytest.mark.parametrize("feature_map", FEATURES)
@pytest.mark.parametrize("scope", SCOPES)
def test_values_and_all_gradients(scope: Any, feature_map: Any, length: int) -> None:
    qkv, proj = draw(2, 2, length, 12), projection(12)
    out, stats = sla_attention(*qkv, proj=proj, scope=scope, feature_map=feature_map, return_stats=True, **case())
    torch.testing.assert_close(out, truth(qkv, stats.block_map, scope, feature_map, proj))
    leaves = [*qkv, *proj.parameters()]
    exact = gradients(dense(qkv, stats.block_map, scope, feature_map, proj), leaves)
    for a, b in zip(gradients(out, leaves), exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("scope", SCOPES)
def test_ragged_maps(scope: Any) -> None:
    qkv, proj, block_map = draw(2, 2, 150, 12), projection(12), ragged(2, 2, 150, 32, 16)
    assert (block_map.linear("marginal").sum(-1) == 0).any() or scope != "marginal"
    out, _ = sla_with_map(*qkv, block_map, proj=proj, scope=scope)
    leaves = [*qkv, *proj.parameters()]
    plain = dense(qkv, block_map, scope, "softmax", proj)
    torch.testing.assert_close(out, plain)
    for a, b in zip(gradients(out, leaves), gradients(plain, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_finite_differences() -> None:
    qkv, proj, block_map = draw(1, 1, 37, 4), projection(4), ragged(1, 1, 37, 16, 16)

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out, stats = sla_with_map(q, k, v, block_map, proj=proj)
        return out, stats.lse

    assert torch.autograd.gradcheck(run, tuple(qkv), fast_mode=True)


@pytest.mark.parametrize("scale", [1.0, 4.0, 16.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_at_the_scale_of_real_activations(dtype: torch.dtype, scale: float) -> None:
    qkv, proj = draw(1, 2, 150, 32, dtype=dtype, scale=scale), projection(32)
    block_map = route(qkv[0], qkv[1], **case())
    out, _ = sla_with_map(*qkv, block_map, proj=proj)
    found = [out.detach(), *gradients(out, qkv)]
    same = dense(qkv, block_map, "marginal", "softmax", proj)
    plain = [same.detach(), *gradients(same, qkv)]
    for a, b, c in zip(found, plain, exact_run(qkv, block_map, "marginal", "softmax", proj), strict=False):
        assert_no_worse(a, b, c)
        assert relative(a, c) <= (2e-2 if dtype == torch.bfloat16 else 1e-4)
        assert 0.98 <= float(a.double().norm() / c.norm()) <= 1.02


@pytest.mark.parametrize("length", [100, 128])
@pytest.mark.parametrize("scope", ["marginal", "noncritical"])
def test_everything_critical_is_dense_attention_plus_bias(scope: Any, length: int) -> None:
    qkv, proj = draw(1, 2, length, 8), projection(8)
    out = sla_attention(*qkv, proj=proj, topk=1.0, block_q=16, block_k=16, scope=scope)
    plain = nn.functional.scaled_dot_product_attention(*qkv) + proj.bias
    torch.testing.assert_close(out, plain)
    leaves = [*qkv, proj.bias]
    for a, b in zip(gradients(out, leaves), gradients(plain, leaves), strict=True):
        torch.testing.assert_close(a, b)


def test_one_block_stays_when_the_share_rounds_to_none() -> None:
    qkv = draw(1, 1, 9, 8)
    out, stats = sla_attention(*qkv, topk=0.001, return_stats=True)
    assert stats.block_map.counts.tolist() == [[[1]]]
    torch.testing.assert_close(out, nn.functional.scaled_dot_product_attention(*qkv))


def test_memory_beyond_the_tail_is_never_read() -> None:
    wide = [torch.full((1, 2, 128, 8), math.nan) for _ in range(3)]
    real = [x.detach() for x in draw(1, 2, 75, 8, dtype=torch.float32)]
    for space, x in zip(wide, real, strict=True):
        space[:, :, :75] = x
    inside = [x[:, :, :75].requires_grad_() for x in wide]
    clean = [x.requires_grad_() for x in real]
    out, same = (sla_attention(*x, proj=projection(8, torch.float32), **case()) for x in (inside, clean))
    assert torch.equal(out, same)
    for a, b in zip(gradients(out, inside), gradients(same, clean), strict=True):
        assert torch.equal(a, b)


def test_both_layouts_and_strided_inputs_agree() -> None:
    fused = torch.randn(2, 75, 3, 2, 8, generator=torch.Generator().manual_seed(0))
    q, k, v = fused.unbind(2)
    proj = projection(8, torch.float32)
    out = sla_attention(q, k, v, proj=proj, layout="blhd", **case())
    heads_first = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
    assert out.shape == q.shape
    torch.testing.assert_close(out.transpose(1, 2), sla_attention(*heads_first, proj=proj, **case()))


def test_lse_is_a_natural_logarithm() -> None:
    qkv = draw(1, 2, 75, 8)
    _, stats = sla_attention(*qkv, topk=1.0, return_stats=True)
    torch.testing.assert_close(stats.lse, (qkv[0] @ qkv[1].mT / math.sqrt(8)).logsumexp(-1))
    assert stats.backend == "reference"
    assert stats.block_map.sparsity == 0


def test_zero_projection_is_the_softmax_branch_and_still_learns() -> None:
    qkv, proj = draw(1, 2, 75, 8, dtype=torch.float32), zero_projection(8)
    out = sla_attention(*qkv, proj=proj, **case())
    assert torch.equal(out, sla_attention(*qkv, **case()))
    out.square().sum().backward()
    assert proj.weight.grad is not None
    assert proj.weight.grad.any()


def test_float32_projection_beside_bfloat16() -> None:
    qkv, proj = draw(1, 2, 75, 8, dtype=torch.bfloat16), projection(8, torch.float32)
    out = sla_attention(*qkv, proj=proj, **case())
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert proj.weight.grad is not None
    assert proj.weight.grad.dtype == torch.float32


def test_equal_inputs_give_equal_bits() -> None:
    runs = []
    for _ in range(2):
        qkv = draw(1, 2, 150, 16, dtype=torch.float32)
        out = sla_attention(*qkv, proj=projection(16, torch.float32), **case())
        runs.append([out, *gradients(out, qkv)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_an_in_place_addition_to_the_output_is_safe_or_refused() -> None:
    qkv = draw(1, 1, 75, 8)
    out = sla_attention(*qkv, **case())
    out += 1
    with pytest.raises(RuntimeError, match="inplace"):
        gradients(out, qkv)


@pytest.mark.parametrize("scope", SCOPES)
def test_operators_are_well_formed(scope: Any) -> None:
    qkv, block_map = draw(1, 2, 75, 8, dtype=torch.float32), ragged(1, 2, 75, 32, 16)
    sla_with_map(*qkv, block_map, scope=scope)
    operator = torch.ops.lrdiff_sla.gather.default
    arguments = (*qkv, block_map.lists, block_map.counts, 32, 16)
    torch.library.opcheck(
        operator, arguments, test_utils=("test_schema", "test_faketensor", "test_autograd_registration")
    )


def test_compiles_as_one_graph() -> None:
    proj, mix = projection(8, torch.float32), torch.tensor([0.3, 0.8])

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return sla_attention(q, k, v, proj=proj, mix=mix, layout="blhd", **case())

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for length in (75, 90):
        qkv = draw(1, length, 2, 8, dtype=torch.float32)
        out, plain = compiled(*qkv), run(*qkv)
        torch.testing.assert_close(out, plain)
        for a, b in zip(gradients(out, qkv), gradients(plain, qkv), strict=True):
            torch.testing.assert_close(a, b)


BAD: list[tuple[dict[str, Any], type[LrdiffError], str]] = [
    ({"topk": 0}, ConfigError, "topk"),
    ({"topk": 1.5}, ConfigError, "topk"),
    ({"topk": float("nan")}, ConfigError, "topk"),
    ({"skip": 1.0}, ConfigError, "skip"),
    ({"block_q": 96}, ConfigError, "block_q"),
    ({"block_k": 256}, ConfigError, "block_k"),
    ({"scope": "rest"}, ConfigError, "scope"),
    ({"feature_map": "hedgehog"}, ConfigError, "feature_map"),
    ({"layout": "lbhd"}, ConfigError, "layout"),
    ({"backend": "cudnn"}, ConfigError, "backend"),
    ({"proj": nn.Linear(4, 4)}, ShapeError, "nn.Linear"),
]


@pytest.mark.parametrize(("settings", "error", "message"), BAD)
def test_bad_settings_are_refused(settings: dict[str, Any], error: type[LrdiffError], message: str) -> None:
    with pytest.raises(error, match=message):
        sla_attention(*draw(1, 1, 40, 8, dtype=torch.float32), **settings)


def test_bad_tensors_are_refused() -> None:
    q, k, v = (x.detach() for x in draw(1, 4, 40, 8, dtype=torch.float32))
    with pytest.raises(ShapeError, match="grouped heads"):
        sla_attention(q, k[:, :2], v[:, :2])
    with pytest.raises(ShapeError, match="differ"):
        sla_attention(q, k[:, :, :20], v[:, :, :20])
    with pytest.raises(ShapeError, match="float16"):
        sla_attention(q, k.half(), v)
    with pytest.raises(ShapeError, match="batch, heads, tokens"):
        sla_attention(q[0], k[0], v[0])
    with pytest.raises(ShapeError, match="empty"):
        sla_attention(q[:, :, :0], k[:, :, :0], v[:, :, :0])
    with pytest.raises(ConfigError, match="not supported"):
        sla_attention(q.long(), k.long(), v.long())
    with pytest.raises(ConfigError, match="overflows float16"):
        sla_attention(q.half(), k.half(), v.half(), feature_map="elu")
    with pytest.raises(ShapeError, match="block map"):
        sla_with_map(q, k, v, ragged(1, 4, 80, 32, 16))
    k[0, 0, 3, 1] = math.nan
    with pytest.raises(DataError, match="1 in k"):
        sla_attention(q, k, v, check_finite=True)


def test_kernels_are_refused_where_they_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="the package triton is absent")
    qkv = draw(1, 1, 40, 8, dtype=torch.float32)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match="CUDA device"):
        sla_attention(*qkv, backend="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(BackendError, match="multiples of 8"):
        sla_attention(*qkv, backend="triton")
    with pytest.raises(BackendError, match="float64"):
        sla_attention(*draw(1, 1, 40, 16), backend="triton")
