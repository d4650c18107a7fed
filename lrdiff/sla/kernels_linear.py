# The checker takes Triton's language for Python: its constants and tiles have other types when compiled.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
"""Kernels of the linear branch: sums of phi(K)^T V over spans of tokens, and their use by spans of queries.

A span is a key or query block, or for scope "all" a longer stretch. Its length is a run-time value.
Features are rounded to the inputs' dtype once, so that numerator and denominator weigh a token alike.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lrdiff.sla.kernels_shared import dot, dot_onto, features, features_backward, head_of, load_tile, store_tile


@triton.jit
def _square(base, stride_c, HEAD: tl.constexpr, WIDTH: tl.constexpr):
    return load_tile(base, 0, stride_c, HEAD, WIDTH, HEAD, WIDTH, HEAD != WIDTH)


@triton.jit(do_not_specialize=["length", "span"])
def states(
    k, v, h, z, heads, length, span, skb, skh, skl, svb, svh, svl,
    TILE: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, KIND: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Sum h = phi(K)^T V and z = phi(K)^T 1 over one span. Grid: spans, samples x heads."""
    g, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    k, v = head_of(k, bh, heads, skb, skh), head_of(v, bh, heads, svb, svh)
    acc = tl.zeros((WIDTH, WIDTH), tl.float32)
    total = tl.zeros((WIDTH,), tl.float32)
    for first in range(g * span, tl.minimum((g + 1) * span, length), TILE):
        keys = load_tile(k, first, skl, length, TILE, HEAD, WIDTH, True)
        values = load_tile(v, first, svl, length, TILE, HEAD, WIDTH, True)
        f = features(keys.to(tl.float32), KIND, HEAD, WIDTH)
        f = tl.where((first + tl.arange(0, TILE) < length)[:, None], f, 0.0).to(keys.dtype)
        acc = dot_onto(acc, tl.trans(f), values, WIDE)
        total += tl.sum(f.to(tl.float32), 0)
    at = bh * tl.num_programs(0) + g
    store_tile(h + at * HEAD * HEAD, 0, HEAD, HEAD, acc, WIDTH, HEAD, WIDTH)
    c = tl.arange(0, WIDTH)
    tl.store(z + at * HEAD + c, total, mask=c < HEAD)


@triton.jit(do_not_specialize=["length", "span"])
def states_backward(
    k, v, dh, dz, dk, dv, heads, length, span,
    skb, skh, skl, svb, svh, svl, sdb, sdh, sdl, seb, seh, sel, shb, shh, shg, shc, szb, szh, szg,
    TILE: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, KIND: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Compute dK = J_phi(K)^T (V dh^T + dz^T) and dV = phi(K) dh of one span. Grid as in `states`."""
    g, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    k, v = head_of(k, bh, heads, skb, skh), head_of(v, bh, heads, svb, svh)
    dk, dv = head_of(dk, bh, heads, sdb, sdh), head_of(dv, bh, heads, seb, seh)
    c = tl.arange(0, WIDTH)
    grad_h = _square(head_of(dh, bh, heads, shb, shh) + g.to(tl.int64) * shg, shc, HEAD, WIDTH)
    grad_z = tl.load(head_of(dz, bh, heads, szb, szh) + g.to(tl.int64) * szg + c, mask=c < HEAD, other=0.0)
    for first in range(g * span, tl.minimum((g + 1) * span, length), TILE):
        keys = load_tile(k, first, skl, length, TILE, HEAD, WIDTH, True)
        values = load_tile(v, first, svl, length, TILE, HEAD, WIDTH, True)
        x = keys.to(tl.float32)
        f = features(x, KIND, HEAD, WIDTH)
        df = dot(values, tl.trans(grad_h), WIDE) + grad_z[None, :]
        store_tile(dv, first, sel, length, dot(f.to(keys.dtype), grad_h, WIDE), TILE, HEAD, WIDTH)
        store_tile(dk, first, sdl, length, features_backward(x, f, df, KIND), TILE, HEAD, WIDTH)


@triton.jit(do_not_specialize=["length", "span"])
def readout(
    q, h, z, out, heads, length, span, sqb, sqh, sql, sob, soh, sol, shb, shh, shg, shc, szb, szh, szg,
    TILE: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, KIND: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Compute Ol = phi(Q) H / (phi(Q) Z) of one span, 0 where the denominator is. Grid: spans, samples x heads."""
    g, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    q, out = head_of(q, bh, heads, sqb, sqh), head_of(out, bh, heads, sob, soh)
    c = tl.arange(0, WIDTH)
    sums = _square(head_of(h, bh, heads, shb, shh) + g.to(tl.int64) * shg, shc, HEAD, WIDTH)
    total = tl.load(head_of(z, bh, heads, szb, szh) + g.to(tl.int64) * szg + c, mask=c < HEAD, other=0.0)
    for first in range(g * span, tl.minimum((g + 1) * span, length), TILE):
        queries = load_tile(q, first, sql, length, TILE, HEAD, WIDTH, True)
        f = features(queries.to(tl.float32), KIND, HEAD, WIDTH).to(queries.dtype)
        den = tl.sum(f.to(tl.float32) * total[None, :], 1)
        inverse = tl.where(den > 0, 1 / tl.where(den > 0, den, 1.0), 0.0)
        store_tile(out, first, sol, length, dot(f, sums, WIDE) * inverse[:, None], TILE, HEAD, WIDTH)


@triton.jit(do_not_specialize=["length", "span"])
def readout_backward(
    q, h, z, grad, dq, dh, dz, heads, length, span,
    sqb, sqh, sql, sgb, sgh, sgl, sdb, sdh, sdl, shb, shh, shg, shc, szb, szh, szg,
    TILE: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, KIND: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Compute dQ, dH = A^T dOl and dZ = -A^T Dl of one span, A = phi(Q) / den, Dl = rowsum(dOl * Ol)."""
    g, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    q, grad = head_of(q, bh, heads, sqb, sqh), head_of(grad, bh, heads, sgb, sgh)
    dq = head_of(dq, bh, heads, sdb, sdh)
    c = tl.arange(0, WIDTH)
    sums = _square(head_of(h, bh, heads, shb, shh) + g.to(tl.int64) * shg, shc, HEAD, WIDTH)
    total = tl.load(head_of(z, bh, heads, szb, szh) + g.to(tl.int64) * szg + c, mask=c < HEAD, other=0.0)
    acc = tl.zeros((WIDTH, WIDTH), tl.float32)
    acc_z = tl.zeros((WIDTH,), tl.float32)
    for first in range(g * span, tl.minimum((g + 1) * span, length), TILE):
        queries = load_tile(q, first, sql, length, TILE, HEAD, WIDTH, True)
        go = load_tile(grad, first, sgl, length, TILE, HEAD, WIDTH, True)
        x = queries.to(tl.float32)
        exact = features(x, KIND, HEAD, WIDTH)
        f = exact.to(queries.dtype)
        den = tl.sum(f.to(tl.float32) * total[None, :], 1)
        inverse = tl.where(den > 0, 1 / tl.where(den > 0, den, 1.0), 0.0)
        product = tl.sum(go.to(tl.float32) * dot(f, sums, WIDE), 1) * inverse
        scaled = f.to(tl.float32) * inverse[:, None]
        acc = dot_onto(acc, tl.trans(scaled.to(go.dtype)), go, WIDE)
        acc_z -= tl.sum(scaled * product[:, None], 0)
        df = (dot(go, tl.trans(sums), WIDE) - product[:, None] * total[None, :]) * inverse[:, None]
        store_tile(dq, first, sdl, length, features_backward(x, exact, df, KIND), TILE, HEAD, WIDTH)
    at = bh * tl.num_programs(0) + g
    store_tile(dh + at * HEAD * HEAD, 0, HEAD, HEAD, acc, WIDTH, HEAD, WIDTH)
    tl.store(dz + at * HEAD + c, acc_z, mask=c < HEAD)
