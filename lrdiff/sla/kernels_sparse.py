# The checker takes Triton's language for Python: its constants and tiles have other types when compiled.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
"""Kernels of the softmax branch. Row lists drive the forward pass and dQ, column lists dK and dV; no atomics.

The scale is applied in float32 after each product, alike in both directions. Lists are ascending, so that only the last
entry of a list can be the block in which the sequence ends: only there are rows masked.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lrdiff.sla.kernels_shared import dot, dot_onto, head_of, load_tile, store_tile

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _attend(
    acc, top, total, q, k, v, j, skl, svl, length, scale,
    BLOCK_K: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, EDGE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    keys = load_tile(k, j * BLOCK_K, skl, length, BLOCK_K, HEAD, WIDTH, EDGE)
    values = load_tile(v, j * BLOCK_K, svl, length, BLOCK_K, HEAD, WIDTH, EDGE)
    s = dot(q, tl.trans(keys), WIDE) * scale
    if EDGE:
        s = tl.where((j * BLOCK_K + tl.arange(0, BLOCK_K) < length)[None, :], s, -float("inf"))
    high = tl.maximum(top, tl.max(s, 1))
    p = tl.exp2(s - high[:, None])
    shrink = tl.exp2(top - high)
    acc = dot_onto(acc * shrink[:, None], p.to(values.dtype), values, WIDE)
    return acc, high, total * shrink + tl.sum(p, 1)


@triton.jit(do_not_specialize=["length", "width"])
def forward(
    q, k, v, out, lse, lists, counts, scale, heads, length, width,
    sqb, sqh, sql, skb, skh, skl, svb, svh, svl, sob, soh, sol,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Attend with one query block over its list. Grid: query blocks, samples x heads (heads slowest, for the cache)."""
    m, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    k, v = head_of(k, bh, heads, skb, skh), head_of(v, bh, heads, svb, svh)
    row = bh * tl.num_programs(0) + m
    lists += row * width
    count = tl.load(counts + row)
    queries = load_tile(head_of(q, bh, heads, sqb, sqh), m * BLOCK_Q, sql, length, BLOCK_Q, HEAD, WIDTH, True)
    acc = tl.zeros((BLOCK_Q, WIDTH), tl.float32)
    top = tl.full((BLOCK_Q,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    scale *= LOG2E
    for e in range(0, count - 1):
        j = tl.load(lists + e)
        acc, top, total = _attend(
            acc, top, total, queries, k, v, j, skl, svl, length, scale, BLOCK_K, HEAD, WIDTH, False, WIDE
        )
    j = tl.load(lists + count - 1)
    acc, top, total = _attend(
        acc, top, total, queries, k, v, j, skl, svl, length, scale, BLOCK_K, HEAD, WIDTH, True, WIDE
    )
    acc = acc / total[:, None]
    store_tile(head_of(out, bh, heads, sob, soh), m * BLOCK_Q, sol, length, acc, BLOCK_Q, HEAD, WIDTH)
    r = m * BLOCK_Q + tl.arange(0, BLOCK_Q)
    tl.store(lse + bh * length + r, (top + tl.log2(total)) * LN2, mask=r < length)


@triton.jit(do_not_specialize=["length"])
def row_products(
    grad, out, grad_lse, delta, heads, length, sgb, sgh, sgl, sob, soh, sol,
    ROWS: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Compute delta = rowsum(dO * O) - dLSE, widened before the product. Grid: tiles of rows, samples x heads."""
    m, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    g = load_tile(head_of(grad, bh, heads, sgb, sgh), m * ROWS, sgl, length, ROWS, HEAD, WIDTH, True)
    o = load_tile(head_of(out, bh, heads, sob, soh), m * ROWS, sol, length, ROWS, HEAD, WIDTH, True)
    r = m * ROWS + tl.arange(0, ROWS)
    extra = tl.load(grad_lse + bh * length + r, mask=r < length, other=0.0)
    found = tl.sum(g.to(tl.float32) * o.to(tl.float32), 1) - extra
    tl.store(delta + bh * length + r, found, mask=r < length)


@triton.jit
def _query_step(
    dq, q, grad, lse, delta, k, v, j, skl, svl, length, scale,
    BLOCK_K: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, EDGE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    keys = load_tile(k, j * BLOCK_K, skl, length, BLOCK_K, HEAD, WIDTH, EDGE)
    values = load_tile(v, j * BLOCK_K, svl, length, BLOCK_K, HEAD, WIDTH, EDGE)
    p = tl.exp2(dot(q, tl.trans(keys), WIDE) * scale - lse[:, None])
    if EDGE:
        p = tl.where((j * BLOCK_K + tl.arange(0, BLOCK_K) < length)[None, :], p, 0.0)
    d = p * (dot(grad, tl.trans(values), WIDE) - delta[:, None])
    return dot_onto(dq, d.to(keys.dtype), keys, WIDE)


@triton.jit(do_not_specialize=["length", "width"])
def backward_queries(
    grad, q, k, v, lse, delta, dq, lists, counts, scale, heads, length, width,
    sgb, sgh, sgl, sqb, sqh, sql, skb, skh, skl, svb, svh, svl, sdb, sdh, sdl,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Compute dQ of one query block over its row list. Grid as in `forward`."""
    m, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    k, v = head_of(k, bh, heads, skb, skh), head_of(v, bh, heads, svb, svh)
    row = bh * tl.num_programs(0) + m
    lists += row * width
    count = tl.load(counts + row)
    queries = load_tile(head_of(q, bh, heads, sqb, sqh), m * BLOCK_Q, sql, length, BLOCK_Q, HEAD, WIDTH, True)
    g = load_tile(head_of(grad, bh, heads, sgb, sgh), m * BLOCK_Q, sgl, length, BLOCK_Q, HEAD, WIDTH, True)
    r = m * BLOCK_Q + tl.arange(0, BLOCK_Q)
    weights = tl.load(lse + bh * length + r, mask=r < length, other=float("inf")) * LOG2E
    deltas = tl.load(delta + bh * length + r, mask=r < length, other=0.0)
    acc = tl.zeros((BLOCK_Q, WIDTH), tl.float32)
    for e in range(0, count - 1):
        j = tl.load(lists + e)
        acc = _query_step(
            acc, queries, g, weights, deltas, k, v, j, skl, svl, length, scale * LOG2E,
            BLOCK_K, HEAD, WIDTH, False, WIDE,
        )  # fmt: skip
    j = tl.load(lists + count - 1)
    acc = _query_step(
        acc, queries, g, weights, deltas, k, v, j, skl, svl, length, scale * LOG2E, BLOCK_K, HEAD, WIDTH, True, WIDE
    )
    store_tile(head_of(dq, bh, heads, sdb, sdh), m * BLOCK_Q, sdl, length, acc * scale, BLOCK_Q, HEAD, WIDTH)


@triton.jit
def _key_step(
    dk, dv, keys, values, q, grad, lse, delta, i, sql, sgl, length, scale,
    BLOCK_Q: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, EDGE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    queries = load_tile(q, i * BLOCK_Q, sql, length, BLOCK_Q, HEAD, WIDTH, EDGE)
    g = load_tile(grad, i * BLOCK_Q, sgl, length, BLOCK_Q, HEAD, WIDTH, EDGE)
    r = i * BLOCK_Q + tl.arange(0, BLOCK_Q)
    weights = tl.load(lse + r, mask=r < length, other=float("inf")) * LOG2E
    deltas = tl.load(delta + r, mask=r < length, other=0.0)
    p = tl.exp2(dot(keys, tl.trans(queries), WIDE) * scale - weights[None, :])
    dv = dot_onto(dv, p.to(g.dtype), g, WIDE)
    d = p * (dot(values, tl.trans(g), WIDE) - deltas[None, :])
    return dot_onto(dk, d.to(queries.dtype), queries, WIDE), dv


@triton.jit(do_not_specialize=["length", "listed"])
def backward_keys(
    grad, q, k, v, lse, delta, dk, dv, rows, starts, order, scale, heads, length, listed,
    sgb, sgh, sgl, sqb, sqh, sql, skb, skh, skl, svb, svh, svl, sdb, sdh, sdl, seb, seh, sel,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Compute dK and dV of one key block over its list. Grid: key blocks, longest list first, samples x heads."""
    bh = tl.program_id(1).to(tl.int64)
    blocks = tl.num_programs(0)
    j = tl.load(order + bh * blocks + tl.program_id(0))
    begin = tl.load(starts + bh * (blocks + 1) + j)
    end = tl.load(starts + bh * (blocks + 1) + j + 1)
    rows += bh * listed
    q, grad = head_of(q, bh, heads, sqb, sqh), head_of(grad, bh, heads, sgb, sgh)
    lse += bh * length
    delta += bh * length
    keys = load_tile(head_of(k, bh, heads, skb, skh), j * BLOCK_K, skl, length, BLOCK_K, HEAD, WIDTH, True)
    values = load_tile(head_of(v, bh, heads, svb, svh), j * BLOCK_K, svl, length, BLOCK_K, HEAD, WIDTH, True)
    key_acc = tl.zeros((BLOCK_K, WIDTH), tl.float32)
    value_acc = tl.zeros((BLOCK_K, WIDTH), tl.float32)
    for e in range(begin, end - 1):
        i = tl.load(rows + e)
        key_acc, value_acc = _key_step(
            key_acc, value_acc, keys, values, q, grad, lse, delta, i, sql, sgl, length, scale * LOG2E,
            BLOCK_Q, HEAD, WIDTH, False, WIDE,
        )  # fmt: skip
    if begin < end:
        i = tl.load(rows + end - 1)
        key_acc, value_acc = _key_step(
            key_acc, value_acc, keys, values, q, grad, lse, delta, i, sql, sgl, length, scale * LOG2E,
            BLOCK_Q, HEAD, WIDTH, True, WIDE,
        )  # fmt: skip
    store_tile(head_of(dk, bh, heads, sdb, sdh), j * BLOCK_K, sdl, length, key_acc * scale, BLOCK_K, HEAD, WIDTH)
    store_tile(head_of(dv, bh, heads, seb, seh), j * BLOCK_K, sel, length, value_acc, BLOCK_K, HEAD, WIDTH)
