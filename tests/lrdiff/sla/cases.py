"""Inputs, maps and the tolerance rule shared by the tests of sparse-linear attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lrdiff.sla import BlockMap, reference
from lrdiff.sla.blocks import CRITICAL

SCOPES = ("marginal", "noncritical", "all")
FEATURES = ("softmax", "elu", "relu")


def draw(*shape: int, dtype: torch.dtype = torch.float64, scale: float = 1.0, seed: int = 0) -> list[Tensor]:
    """Return queries, keys and values that want gradients."""
    rng = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(*shape, generator=rng, dtype=torch.float64) * scale).to(dtype).requires_grad_() for _ in range(3)
    ]


def projection(width: int, dtype: torch.dtype = torch.float64) -> nn.Linear:
    """Return a random projection: a zero one would hide the linear branch."""
    rng = torch.Generator().manual_seed(9)
    proj = nn.Linear(width, width, dtype=dtype)
    with torch.no_grad():
        for parameter in proj.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng, dtype=torch.float64) / math.sqrt(width))
    return proj


def ragged(batch: int, heads: int, length: int, block_q: int, block_k: int, seed: int = 3) -> BlockMap:
    """Return a random map with rows of different lengths, a row without marginal blocks, an empty and a full column."""
    rng = torch.Generator().manual_seed(seed)
    shape = (batch, heads, -(-length // block_q), -(-length // block_k))
    classes = torch.randint(-1, 2, shape, generator=rng)
    classes[..., 0] = 1
    if shape[-1] > 2:
        classes[..., 1] = torch.where(classes[..., 1] == 1, 0, classes[..., 1])
        classes[:, :, -1] = torch.where(classes[:, :, -1] == 0, -1, classes[:, :, -1])
    return BlockMap.from_classes(classes.to(torch.int8), block_q=block_q, block_k=block_k)


def truth(qkv: list[Tensor], block_map: BlockMap, scope: str, feature_map: str, proj: nn.Linear) -> Tensor:
    """Return the dense truth in float64 for the same map."""
    wide = [x.detach().double().cpu() for x in qkv]
    parts = reference.naive(*wide, block_map.classes.cpu(), **sizes(block_map), scope=scope, feature_map=feature_map)
    return reference.combine(parts, proj.weight.double().cpu(), proj.bias.double().cpu())


def sizes(block_map: BlockMap) -> dict[str, int]:
    return {"block_q": block_map.block_q, "block_k": block_map.block_k}


def dense(qkv: list[Tensor], block_map: BlockMap, scope: str, feature_map: str, proj: nn.Linear) -> Tensor:
    """Compute the dense form in the dtype of its inputs throughout: what plain PyTorch makes of it."""
    q, k, v = qkv
    length = q.shape[-2]
    inside = reference.tokens(block_map.classes == CRITICAL, block_map.block_q, block_map.block_k, length)
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~inside, -math.inf)
    apply = {"softmax": lambda x: x.softmax(-1), "elu": lambda x: nn.functional.elu(x) + 1, "relu": torch.relu}
    members = reference.tokens(block_map.linear(scope), block_map.block_q, block_map.block_k, length)
    weights = apply[feature_map](q) @ apply[feature_map](k).mT * members
    total = weights.sum(-1, keepdim=True)
    linear = torch.where(total > 0, weights @ v / torch.where(total > 0, total, 1), 0)
    return scores.softmax(-1) @ v + nn.functional.linear(linear, proj.weight.to(q.dtype), proj.bias.to(q.dtype))


def gradients(out: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Return the gradients of a fixed random weighting of `out`."""
    rng = torch.Generator().manual_seed(77)
    weights = torch.randn(out.shape, generator=rng, dtype=torch.float64)
    return list(torch.autograd.grad(out, leaves, weights.to(out.device, out.dtype)))


def relative(found: Tensor, exact: Tensor) -> float:
    """Return |found - exact| / |exact| in the 2-norm."""
    return float((found.double().cpu() - exact.double()).norm() / exact.double().norm().clamp_min(1e-30))


def assert_no_worse(found: Tensor, plain: Tensor, exact: Tensor) -> None:
    """Check that the largest error is at most twice that of plain PyTorch in the same dtype, up to one rounding.

    Where plain PyTorch overflows (its dense weights in float16 do, at large inputs), 1e-2 relative error is allowed.
    """
    exact = exact.double()
    if not plain.isfinite().all():
        assert relative(found, exact) <= 1e-2
        return
    shifted = exact.to(found.dtype)
    floor = 2 * float(((shifted + 0.3 - 0.3).double() - exact).abs().max())
    allowed = 2 * float((plain.double().cpu() - exact).abs().max()) + floor
    error = float((found.double().cpu() - exact).abs().max())
    assert error <= allowed, f"largest error {error:.3g}, allowed {allowed:.3g}"


def case(**changed: Any) -> dict[str, Any]:
    """Return the settings most tests use, with changes."""
    return {"topk": 0.3, "skip": 0.2, "block_q": 32, "block_k": 16} | changed
