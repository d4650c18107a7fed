"""The mixture of both branches: the router's estimate of what is left out, and what the shares make of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lrdiff.errors import BackendError, ConfigError, ShapeError
from lrdiff.sla import BlockMap, reference, route, sla_attention, sla_with_map
from lrdiff.sla.mixing import left_out
from lrdiff.sla.settings import SlaSettings
from tests.lrdiff.sla.cases import SCOPES, case, draw, gradients, projection, ragged, sizes


def shares(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def exact(qkv: list[Tensor], block_map: BlockMap, scope: str, mix: Tensor) -> Tensor:
    """Compute the dense truth, without a projection, differentiably."""
    own = sizes(block_map)
    parts = reference.naive(*qkv, block_map.classes, scope=scope, feature_map="softmax", **own)
    left = reference.left_out(qkv[0], qkv[1], block_map.classes, scope=scope, **own)
    return reference.mixed(parts, mix, left).sparse


@pytest.mark.parametrize("length", [7, 96, 150])
@pytest.mark.parametrize("scope", SCOPES)
def test_values_and_all_gradients(scope: Any, length: int) -> None:
    qkv, mix = draw(2, 2, length, 12), shares(0.3, 1.0)
    out, stats = sla_attention(*qkv, mix=mix, scope=scope, return_stats=True, **case())
    plain = exact(qkv, stats.block_map, scope, mix)
    torch.testing.assert_close(out, plain)
    leaves = [*qkv, mix]
    for a, b in zip(gradients(out, leaves), gradients(plain, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("scope", SCOPES)
def test_ragged_maps_and_both_layouts(scope: Any) -> None:
    qkv, mix, block_map = draw(2, 2, 150, 12), shares(0.3, 0.9), ragged(2, 2, 150, 32, 16)
    plain = exact(qkv, block_map, scope, mix)
    torch.testing.assert_close(sla_with_map(*qkv, block_map, mix=mix, scope=scope)[0], plain)
    turned = (x.transpose(1, 2) for x in qkv)
    out, _ = sla_with_map(*turned, block_map, mix=mix, scope=scope, layout="blhd")
    torch.testing.assert_close(out.transpose(1, 2), plain)


def test_finite_differences_through_the_router_too() -> None:
    qkv, mix, block_map = draw(1, 2, 37, 4), shares(0.4, 0.7), ragged(1, 2, 37, 16, 16)

    def run(q: Tensor, k: Tensor, v: Tensor, mix: Tensor) -> Tensor:
        return sla_with_map(q, k, v, block_map, mix=mix)[0]

    assert torch.autograd.gradcheck(run, (*qkv, mix), fast_mode=True)


@pytest.mark.parametrize("length", [64, 75])
def test_blocks_of_equal_tokens_are_judged_exactly(length: int) -> None:
    """Where a block's tokens are alike the estimate is the truth; and where what is left out is all alike, so is O."""
    q, k, v = draw(1, 2, length, 8)
    alike = [torch.cat([part.mean(-2, keepdim=True).expand_as(part) for part in x.split(16, -2)], -2) for x in (q, k)]
    block_map = route(*alike, topk=0.5, skip=0.0, block_q=16, block_k=16)
    inside = reference.tokens(block_map.classes == 1, 16, 16, length)
    truth = (alike[0] @ alike[1].mT / 8**0.5).softmax(-1)
    torch.testing.assert_close(left_out(*alike, block_map, "marginal"), (truth * ~inside).sum(-1, keepdim=True))
    same = torch.ones_like(v)
    out, _ = sla_with_map(*alike, same, block_map, mix=shares(1.0, 1.0))
    torch.testing.assert_close(out, same)
    value = torch.where(inside[:, :, :1].mT, v, 0.5)  # row 0 alone has all its own blocks free, the others 0.5
    out, _ = sla_with_map(*alike, value, block_map, mix=shares(1.0, 1.0))
    dense = torch.nn.functional.scaled_dot_product_attention(*alike, value)
    torch.testing.assert_close(out[:, :, :16], dense[:, :, :16])
    assert not torch.allclose(sla_with_map(*alike, value, block_map)[0][:, :, :16], dense[:, :, :16])


@pytest.mark.parametrize("scope", SCOPES)
def test_everything_critical_is_dense_attention(scope: Any) -> None:
    qkv = draw(1, 2, 100, 8)
    out = sla_attention(*qkv, mix=shares(1.0, 1.0), topk=1.0, block_q=16, block_k=16, scope=scope)
    torch.testing.assert_close(out, torch.nn.functional.scaled_dot_product_attention(*qkv))


def test_a_row_without_marginal_blocks_keeps_its_softmax() -> None:
    qkv = draw(1, 1, 64, 8)
    given = {"topk": 0.5, "skip": 0.5, "block_q": 16, "block_k": 16}
    assert torch.equal(sla_attention(*qkv, mix=shares(1.0), **given), sla_attention(*qkv, **given))


def test_a_share_of_nothing_is_the_paper_and_still_learns() -> None:
    qkv, proj, mix = draw(1, 2, 75, 8, dtype=torch.float32), projection(8, torch.float32), shares(0.0, 0.0)
    out = sla_attention(*qkv, proj=proj, mix=mix, **case())
    assert torch.equal(out, sla_attention(*qkv, proj=proj, **case()))
    out.square().sum().backward()
    assert mix.grad is not None
    assert mix.grad.all()


def test_half_precision_beside_float32_shares() -> None:
    host, mix = draw(1, 2, 75, 8, dtype=torch.bfloat16), shares(0.3, 0.8, dtype=torch.float32)
    out, stats = sla_attention(*host, mix=mix, return_stats=True, **case())
    assert out.dtype == torch.bfloat16
    plain = exact([x.detach() for x in host], stats.block_map, "marginal", mix)
    torch.testing.assert_close(out.float(), plain, rtol=2e-2, atol=2e-2)
    with torch.autocast("cpu", torch.bfloat16):
        wide = [x.detach().float() for x in host]
        assert left_out(wide[0], wide[1], stats.block_map, "marginal").dtype == torch.float32


def test_shares_that_do_not_fit_are_refused() -> None:
    qkv = draw(1, 2, 40, 8, dtype=torch.float32)
    with pytest.raises(ShapeError, match=r"mix is \[3\]; 2 heads need \[2\], a share each"):
        sla_attention(*qkv, mix=torch.zeros(3), **case())
    with pytest.raises(BackendError, match="mix is on meta"):
        sla_attention(*qkv, mix=torch.zeros(2, device="meta"), **case())
    with pytest.raises(ConfigError, match="lies in"):
        SlaSettings(mix=1.5)
