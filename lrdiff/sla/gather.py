"""The softmax branch in plain torch: critical keys and values are gathered per query block, nothing else is touched.

Work and memory follow the number of critical blocks. Rows are taken in order of their counts, in groups small enough
for the processor's caches, and the backward pass gathers again instead of keeping probabilities.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lrdiff.sla.linear import blocked

GROUP_BYTES = 4 << 20
"""How many bytes of keys are gathered at a time, so that they stay in the caches. A first choice, not tuned."""


def in_own_precision(compute: Callable[..., Any]) -> Callable[..., Any]:
    """Keep autocast out of a computation that has widened its inputs."""

    @functools.wraps(compute)
    def run(q: Tensor, *others: Any) -> Any:
        with torch.autocast(q.device.type, enabled=False):
            return compute(q, *others)

    return run


@torch.library.custom_op("lrdiff_sla::gather", mutates_args=())
@in_own_precision
def gather(
    q: Tensor, k: Tensor, v: Tensor, lists: Tensor, counts: Tensor, block_q: int, block_k: int
) -> tuple[Tensor, Tensor]:
    """Attend over the listed blocks.

    Args:
        q: Queries, [B, H, L, D]; k and v alike.
        k: Keys.
        v: Values.
        lists: Row lists, int32 [B, H, M, width].
        counts: Their lengths, int32 [B, H, M].
        block_q: Tokens in a query block.
        block_k: Tokens in a key block.

    Returns:
        Os like `q`, and the log-sum-exp (natural), float32 or float64 [B, H, L].
    """
    queries, keys, values = _flat(q, block_q), _flat(k, block_k), _flat(v, block_k)
    out, lse = torch.empty_like(queries), queries.new_empty(queries.shape[:2])
    for rows, picked, bias in _groups(q, lists, counts, block_k):
        kg, vg = _pick(keys, picked), _pick(values, picked)
        s = _scores(queries[rows], kg, bias)
        top = s.amax(-1, keepdim=True)
        p = s.sub_(top).exp_()
        total = p.sum(-1, keepdim=True)
        out[rows] = torch.bmm(p, vg).div_(total)
        lse[rows] = (top + total.log()).squeeze(-1)
    result = torch.empty_like(q)
    result.copy_(_unflat(out, q))
    return result, _unflat(lse.unsqueeze(-1), q).squeeze(-1).contiguous()


@torch.library.custom_op("lrdiff_sla::gather_backward", mutates_args=())
@in_own_precision
def gather_backward(
    grad: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    lists: Tensor,
    counts: Tensor,
    block_q: int,
    block_k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dQ, dK and dV of `gather` by the corrected equations (README.md)."""
    queries, keys, values = _flat(q, block_q), _flat(k, block_k), _flat(v, block_k)
    grads, lses = _flat(grad, block_q), _flat(lse.unsqueeze(-1), block_q)
    wide = grads.dtype
    delta = _flat((grad.to(wide) * out.to(wide)).sum(-1, keepdim=True) - grad_lse.unsqueeze(-1).to(wide), block_q)
    dq, dk, dv = (torch.zeros_like(x) for x in (queries, keys, values))
    scale = 1 / math.sqrt(q.shape[-1])
    for rows, picked, bias in _groups(q, lists, counts, block_k):
        kg, vg = _pick(keys, picked), _pick(values, picked)
        p = _scores(queries[rows], kg, bias).sub_(lses[rows]).exp_()
        g = grads[rows]
        d = torch.bmm(g, vg.mT).sub_(delta[rows]).mul_(p)
        dq[rows] = torch.bmm(d, kg).mul_(scale)
        shape = (-1, block_k, q.shape[-1])
        dk.index_add_(0, picked.flatten(), torch.bmm(d.mT, queries[rows]).mul_(scale).view(shape))
        dv.index_add_(0, picked.flatten(), torch.bmm(p.mT, g).view(shape))
    results = []
    for found, like in ((dq, q), (dk, k), (dv, v)):
        result = torch.empty_like(like)
        results.append(result.copy_(_unflat(found, like)))
    return results[0], results[1], results[2]


def _flat(x: Tensor, block: int) -> Tensor:
    wide = x if x.dtype == torch.float64 else x.float()
    return blocked(wide, block).flatten(0, 2).contiguous()


def _unflat(x: Tensor, like: Tensor) -> Tensor:
    batch, heads, length, _ = like.shape
    return x.view(batch, heads, -1, x.shape[-1])[..., :length, :]


def _pick(blocks: Tensor, picked: Tensor) -> Tensor:
    return blocks.index_select(0, picked.flatten()).view(len(picked), -1, blocks.shape[-1])


def _scores(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    s = torch.bmm(q, k.mT).mul_(1 / math.sqrt(q.shape[-1]))
    return s if bias is None else s.add_(bias.unsqueeze(1))


def _groups(q: Tensor, lists: Tensor, counts: Tensor, block_k: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Yield rows, the flat indices of their key blocks [C, count], and a bias of 0 and -inf [C, tokens] if needed."""
    batch, heads, length, features = q.shape
    blocks = -(-length // block_k)
    offsets = torch.arange(batch * heads, device=q.device).mul_(blocks).view(batch, heads, 1, 1)
    local, flat = lists.flatten(0, 2).long(), (lists + offsets).flatten(0, 2)
    lengths, order = counts.flatten().sort(stable=True)
    sizes = lengths.tolist()
    step = torch.arange(block_k, device=q.device)
    start = 0
    while start < len(sizes):
        room = max(1, GROUP_BYTES // (sizes[start] * block_k * features * 4))
        stop = min(start + room, len(sizes))
        while sizes[stop - 1] > 2 * sizes[start]:
            stop = start + (stop - start + 1) // 2
        rows, width = order[start:stop], sizes[stop - 1]
        bias = None
        ragged, tail = sizes[start] < width, length % block_k > 0
        if ragged or tail:
            slots = torch.arange(width, device=q.device) < lengths[start:stop].unsqueeze(-1)
            valid = slots.unsqueeze(-1) & (local[rows, :width].unsqueeze(-1) * block_k + step < length)
            if not bool(valid.all()):
                wide = q.dtype if q.dtype == torch.float64 else torch.float32
                bias = torch.zeros(valid.shape, dtype=wide, device=q.device).masked_fill_(~valid, -math.inf).flatten(1)
        yield rows, flat[rows, :width], bias
        start = stop


@gather.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, lists: Tensor, counts: Tensor, block_q: int, block_k: int) -> Any:
    wide = q.dtype if q.dtype == torch.float64 else torch.float32
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=wide)


@gather_backward.register_fake
def _(
    grad: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    lists: Tensor,
    counts: Tensor,
    block_q: int,
    block_k: int,
) -> Any:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, lists, counts, ctx.block_q, ctx.block_k = inputs
    ctx.save_for_backward(q, k, v, *output, lists, counts)


def _backward(ctx: Any, grad: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, lists, counts = ctx.saved_tensors
    found = gather_backward(grad, grad_lse, q, k, v, out, lse, lists, counts, ctx.block_q, ctx.block_k)
    return *found, None, None, None, None


gather.register_autograd(_backward, setup_context=_setup)
