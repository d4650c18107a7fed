# The checker takes Triton's language for Python: its constants and tiles have other types when compiled.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
"""What all kernels share: loading a tile, multiplying tiles, the feature maps.

WIDE is set in Triton's interpreter, which cannot multiply bfloat16: tiles are widened after they were rounded.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_tile(
    base, first, stride, length, ROWS: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, EDGE: tl.constexpr
):
    """Load rows first .. first + ROWS of a matrix with HEAD columns, as ROWS x WIDTH; 0 outside it.

    Without EDGE all rows are known to exist. Offsets are 64-bit.
    """
    r = first + tl.arange(0, ROWS)
    c = tl.arange(0, WIDTH)
    at = base + r.to(tl.int64)[:, None] * stride + c[None, :]
    if EDGE:
        tile = tl.load(at, mask=(r < length)[:, None] & (c < HEAD)[None, :], other=0.0)
    elif HEAD != WIDTH:
        tile = tl.load(at, mask=(c < HEAD)[None, :], other=0.0)
    else:
        tile = tl.load(at)
    return tile


@triton.jit
def store_tile(base, first, stride, length, tile, ROWS: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr):
    """Store the part of a tile that lies inside the matrix, in the matrix's dtype."""
    r = first + tl.arange(0, ROWS)
    c = tl.arange(0, WIDTH)
    at = base + r.to(tl.int64)[:, None] * stride + c[None, :]
    tl.store(at, tile.to(base.dtype.element_ty), mask=(r < length)[:, None] & (c < HEAD)[None, :])


@triton.jit
def dot(a, b, WIDE: tl.constexpr):
    """Multiply two tiles with float32 sums; float32 tiles are multiplied as such, not as TF32."""
    if WIDE:
        product = tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    else:
        product = tl.dot(a, b, input_precision="ieee")
    return product


@triton.jit
def dot_onto(acc, a, b, WIDE: tl.constexpr):
    """Add a product onto float32 sums. The sums go through the tensor cores: added outside, their units would wait."""
    if WIDE:
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        acc = tl.dot(a, b, acc, input_precision="ieee")
    return acc


@triton.jit
def head_of(base, bh, heads, stride_b, stride_h):
    """Return the pointer to sample bh // heads, head bh % heads; bh is 64-bit."""
    return base + (bh // heads) * stride_b + (bh % heads) * stride_h


@triton.jit
def features(x, KIND: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr):
    """Apply phi to float32 rows; columns from HEAD on become 0. KIND: 0 softmax, 1 elu + 1, 2 relu."""
    inside = (tl.arange(0, WIDTH) < HEAD)[None, :]
    if KIND == 0:
        x = tl.where(inside, x, -float("inf"))
        e = tl.exp(x - tl.max(x, 1)[:, None])
        f = e / tl.sum(e, 1)[:, None]
    elif KIND == 1:
        f = tl.where(inside, tl.where(x > 0, x + 1, tl.exp(tl.minimum(x, 0.0))), 0.0)
    else:
        f = tl.maximum(x, 0.0)
    return f


@triton.jit
def features_backward(x, f, df, KIND: tl.constexpr):
    """Return the gradient for x from that of f = phi(x)."""
    if KIND == 0:
        dx = f * (df - tl.sum(df * f, 1)[:, None])
    elif KIND == 1:
        dx = df * tl.where(x > 0, 1.0, tl.exp(tl.minimum(x, 0.0)))
    else:
        dx = tl.where(x > 0, df, 0.0)
    return dx
