"""The kernels as torch operators, with shapes for `torch.compile` and gradients."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from lrdiff.sla import kernels_linear, kernels_route, kernels_sparse
from lrdiff.sla.blocks import BlockMap, columns
from lrdiff.sla.features import FEATURES
from lrdiff.sla.inputs import interpreting
from lrdiff.sla.linear import gather_sums

# Triton declares constants as its own type but takes plain numbers for them.
LINEAR: Any = kernels_linear
ROUTE: Any = kernels_route
SPARSE: Any = kernels_sparse

SPANS = 32
"""Into how many spans scope "all" cuts a sequence: 12 heads then make 384 programs, near three for each core of an
H200. Not tuned on a GPU."""
ROWS = 64


def _ready(*tensors: Tensor) -> list[Tensor]:
    """Return tensors whose features are adjacent. Any other stride is honoured without a copy."""
    return [x if x.stride(-1) == 1 else x.contiguous() for x in tensors]


def _like(x: Tensor) -> Tensor:
    """Return an empty tensor with the layout of `x`, where that is dense; its features are adjacent."""
    empty = torch.empty_like(x)
    return empty if empty.stride(-1) == 1 else torch.empty_like(x, memory_format=torch.contiguous_format)


def _steps(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(step for x in tensors for step in x.stride()[:-1])


def _on(x: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext()


def _widths(x: Tensor) -> dict[str, int]:
    return {"HEAD": x.shape[-1], "WIDTH": 1 << (x.shape[-1] - 1).bit_length()}


WARPS = {"backward_keys": (8, 2), "readout_backward": (8, 2)}
"""Warps and pipeline stages at more than 64 features, where they differ from (8, 2)."""


def launch(kernel: str, x: Tensor) -> dict[str, int]:
    """Return a kernel's warps and pipeline stages for the head dimension of `x`; README.md has the reasons."""
    warps, stages = (4, 2) if x.shape[-1] <= 64 else WARPS.get(kernel, (8, 2))
    return {"num_warps": warps, "num_stages": stages}


def route(q: Tensor, k: Tensor, critical: int, negligible: int, block_q: int, block_k: int) -> tuple[Tensor, Tensor]:
    """Return classes, int8 [B, H, M, N], and row lists, int32 [B, H, M, critical]; see `lrdiff.sla.router.route`."""
    with torch.autocast(q.device.type, enabled=False):
        scores = block_means(q, block_q) @ block_means(k, block_k).transpose(-1, -2)
    return classify(scores, critical, negligible)


@torch.library.custom_op("lrdiff_sla::block_means", mutates_args=())
def block_means(x: Tensor, block: int) -> Tensor:
    """Average blocks of tokens in float32: [B, H, L, D] to [B, H, ceil(L / block), D]."""
    (x,) = _ready(x)
    batch, heads, length, features = x.shape
    blocks = -(-length // block)
    out = x.new_empty(batch, heads, blocks, features, dtype=torch.float32)
    with _on(x):
        ROUTE.block_means[(blocks, batch * heads)](x, out, heads, length, *_steps(x), BLOCK=block, **_widths(x))
    return out


@block_means.register_fake
def _(x: Tensor, block: int) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], -(-x.shape[2] // block), x.shape[3], dtype=torch.float32)


@torch.library.custom_op("lrdiff_sla::classify", mutates_args=())
def classify(scores: Tensor, critical: int, negligible: int) -> tuple[Tensor, Tensor]:
    """Class the blocks of each row of float32 scores, [B, H, M, N], by rank."""
    scores = scores.contiguous()
    blocks = scores.shape[-1]
    classes = torch.empty_like(scores, dtype=torch.int8)
    lists = scores.new_zeros(*scores.shape[:-1], critical, dtype=torch.int32)
    with _on(scores):
        grid = (scores.numel() // blocks,)
        ROUTE.classify[grid](scores, classes, lists, blocks, critical, negligible, TILE=64)
    return classes, lists


@classify.register_fake
def _(scores: Tensor, critical: int, negligible: int) -> tuple[Tensor, Tensor]:
    shape = scores.shape[:-1]
    return scores.new_empty(scores.shape, dtype=torch.int8), scores.new_empty(*shape, critical, dtype=torch.int32)


@torch.library.custom_op("lrdiff_sla::sparse", mutates_args=())
def sparse(
    q: Tensor, k: Tensor, v: Tensor, lists: Tensor, counts: Tensor, block_q: int, block_k: int
) -> tuple[Tensor, Tensor]:
    """Attend over the listed blocks; arguments and results as in `lrdiff.sla.gather.gather`."""
    q, k, v = _ready(q, k, v)
    batch, heads, length, features = q.shape
    out, lse = _like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    with _on(q):
        SPARSE.forward[(counts.shape[-1], batch * heads)](
            q, k, v, out, lse, lists.contiguous(), counts.contiguous(), features**-0.5, heads, length, lists.shape[-1],
            *_steps(q, k, v, out), BLOCK_Q=block_q, BLOCK_K=block_k, WIDE=interpreting(),
            **_widths(q), **launch("forward", q),
        )  # fmt: skip
    return out, lse


@sparse.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, lists: Tensor, counts: Tensor, block_q: int, block_k: int) -> Any:
    return _like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("lrdiff_sla::sparse_backward", mutates_args=())
def sparse_backward(
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
    """Return dQ, dK and dV of `sparse`. Every sum has one owner and one order: equal inputs give equal bits."""
    grad, q, k, v, out = _ready(grad, q, k, v, out)
    lists, counts = lists.contiguous(), counts.contiguous()
    batch, heads, length, features = q.shape
    dq, dk, dv, delta = _like(q), _like(k), _like(v), torch.empty_like(lse)
    keys = -(-length // block_k)
    cols = columns(lists, counts, keys)
    fixed: dict[str, Any] = {"BLOCK_Q": block_q, "BLOCK_K": block_k, "WIDE": interpreting()}
    scale, pairs = features**-0.5, batch * heads
    with _on(q):
        SPARSE.row_products[(-(-length // ROWS), pairs)](
            grad, out, grad_lse.contiguous(), delta, heads, length, *_steps(grad, out), ROWS=ROWS, **_widths(q)
        )
        SPARSE.backward_queries[(counts.shape[-1], pairs)](
            grad, q, k, v, lse, delta, dq, lists, counts, scale, heads, length, lists.shape[-1],
            *_steps(grad, q, k, v, dq), **fixed, **_widths(q), **launch("backward_queries", q),
        )  # fmt: skip
        SPARSE.backward_keys[(keys, pairs)](
            grad, q, k, v, lse, delta, dk, dv, *cols, scale, heads, length, cols.rows.shape[-1],
            *_steps(grad, q, k, v, dk, dv), **fixed, **_widths(q), **launch("backward_keys", q),
        )  # fmt: skip
    return dq, dk, dv


@sparse_backward.register_fake
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
    return _like(q), _like(k), _like(v)


def _sparse_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, lists, counts, ctx.block_q, ctx.block_k = inputs
    ctx.save_for_backward(q, k, v, *output, lists, counts)


def _sparse_grad(ctx: Any, grad: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    found = sparse_backward(grad, grad_lse, *ctx.saved_tensors, ctx.block_q, ctx.block_k)
    return *found, None, None, None, None


sparse.register_autograd(_sparse_grad, setup_context=_sparse_setup)


@torch.library.custom_op("lrdiff_sla::states", mutates_args=())
def states(k: Tensor, v: Tensor, kind: int, span: int, tile: int) -> tuple[Tensor, Tensor]:
    """Sum phi(K)^T V, [B, H, G, D, D] in the dtype of `k`, and phi(K), float32 [B, H, G, D], over G spans."""
    k, v = _ready(k, v)
    batch, heads, length, width = k.shape
    count = -(-length // span)
    h = k.new_empty(batch, heads, count, width, width)
    z = k.new_empty(batch, heads, count, width, dtype=torch.float32)
    with _on(k):
        LINEAR.states[(count, batch * heads)](
            k, v, h, z, heads, length, span, *_steps(k, v), TILE=tile, KIND=kind, WIDE=interpreting(), **_widths(k),
            **launch("states", k),
        )  # fmt: skip
    return h, z


@states.register_fake
def _(k: Tensor, v: Tensor, kind: int, span: int, tile: int) -> Any:
    batch, heads, length, width = k.shape
    count = -(-length // span)
    return (
        k.new_empty(batch, heads, count, width, width),
        k.new_empty(batch, heads, count, width, dtype=torch.float32),
    )


@torch.library.custom_op("lrdiff_sla::states_backward", mutates_args=())
def states_backward(
    dh: Tensor, dz: Tensor, k: Tensor, v: Tensor, kind: int, span: int, tile: int
) -> tuple[Tensor, Tensor]:
    """Return dK and dV of `states`."""
    dh, dz, k, v = _ready(dh, dz, k, v)
    batch, heads, length, _ = k.shape
    dk, dv = _like(k), _like(v)
    with _on(k):
        LINEAR.states_backward[(-(-length // span), batch * heads)](
            k, v, dh, dz, dk, dv, heads, length, span, *_steps(k, v, dk, dv, dh, dz),
            TILE=tile, KIND=kind, WIDE=interpreting(), **_widths(k), **launch("states_backward", k),
        )  # fmt: skip
    return dk, dv


@states_backward.register_fake
def _(dh: Tensor, dz: Tensor, k: Tensor, v: Tensor, kind: int, span: int, tile: int) -> Any:
    return _like(k), _like(v)


def _states_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    k, v, ctx.kind, ctx.span, ctx.tile = inputs
    ctx.save_for_backward(k, v)


def _states_grad(ctx: Any, dh: Tensor, dz: Tensor) -> tuple[Tensor | None, ...]:
    return *states_backward(dh, dz, *ctx.saved_tensors, ctx.kind, ctx.span, ctx.tile), None, None, None


states.register_autograd(_states_grad, setup_context=_states_setup)


@torch.library.custom_op("lrdiff_sla::readout", mutates_args=())
def readout(q: Tensor, h: Tensor, z: Tensor, kind: int, span: int, tile: int) -> Tensor:
    """Return phi(Q) H / (phi(Q) Z), like `q`; H, [B, H, G, D, D], and Z, [B, H, G, D], may be expanded over G."""
    q, h, z = _ready(q, h, z)
    batch, heads, length, _ = q.shape
    out = _like(q)
    with _on(q):
        LINEAR.readout[(h.shape[2], batch * heads)](
            q, h, z, out, heads, length, span, *_steps(q, out, h, z),
            TILE=tile, KIND=kind, WIDE=interpreting(), **_widths(q), **launch("readout", q),
        )  # fmt: skip
    return out


@readout.register_fake
def _(q: Tensor, h: Tensor, z: Tensor, kind: int, span: int, tile: int) -> Tensor:
    return _like(q)


@torch.library.custom_op("lrdiff_sla::readout_backward", mutates_args=())
def readout_backward(
    grad: Tensor, q: Tensor, h: Tensor, z: Tensor, kind: int, span: int, tile: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dQ, dH and dZ of `readout`."""
    grad, q, h, z = _ready(grad, q, h, z)
    batch, heads, length, _ = q.shape
    dq, dh = _like(q), torch.empty_like(h, memory_format=torch.contiguous_format)
    dz = torch.empty_like(z, memory_format=torch.contiguous_format)
    with _on(q):
        LINEAR.readout_backward[(h.shape[2], batch * heads)](
            q, h, z, grad, dq, dh, dz, heads, length, span, *_steps(q, grad, dq, h, z),
            TILE=tile, KIND=kind, WIDE=interpreting(), **_widths(q), **launch("readout_backward", q),
        )  # fmt: skip
    return dq, dh, dz


@readout_backward.register_fake
def _(grad: Tensor, q: Tensor, h: Tensor, z: Tensor, kind: int, span: int, tile: int) -> Any:
    contiguous = torch.contiguous_format
    return _like(q), torch.empty_like(h, memory_format=contiguous), torch.empty_like(z, memory_format=contiguous)


def _readout_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, h, z, ctx.kind, ctx.span, ctx.tile = inputs
    ctx.save_for_backward(q, h, z)


def _readout_grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *readout_backward(grad, *ctx.saved_tensors, ctx.kind, ctx.span, ctx.tile), None, None, None


readout.register_autograd(_readout_grad, setup_context=_readout_setup)


def linear_branch(q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap, scope: str, feature_map: str) -> Tensor:
    """Compute the linear branch; arguments and result as in `lrdiff.sla.linear.linear_branch`."""
    kind = FEATURES.index(feature_map)
    with torch.autocast(q.device.type, enabled=False):
        if scope != "all":
            h, z = states(k, v, kind, block_map.block_k, min(block_map.block_k, ROWS))
            h, z = gather_sums(h, z, block_map.linear(scope))
            return readout(q, h, z, kind, block_map.block_q, min(block_map.block_q, ROWS))
        length = q.shape[-2]
        span = ROWS * max(1, math.ceil(length / ROWS / SPANS))
        h, z = states(k, v, kind, span, ROWS)
        weight = 2.0 ** -math.ceil(math.log2(length))
        total = (h.float().sum(2, keepdim=True) * weight).to(h.dtype)
        sums = (z * weight).sum(2, keepdim=True)
        groups = h.shape[2]
        return readout(q, total.expand(-1, -1, groups, -1, -1), sums.expand(-1, -1, groups, -1), kind, span, ROWS)
