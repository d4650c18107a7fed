"""The maths of tensor-lora on plain tensors: cores -> transform matrix and residual factors, and the way back.

Legend: R ring rank, K = R^2, I_d modes, D their number, a = I_1, b = I_2 * .. * I_D, in = a * b.

Cores are stored one after another in one flat vector, each as [R, n_d, R], the last of a chain as [R, R, n_D]. So a
chain is one matrix product per core, without a copy between them, and ends as

    chain(G^1 .. G^D)[r, (n_1 .. n_D-1), s, n_D] = (G^1[n_1] G^2[n_2] ... G^D[n_D])[r, s]

For the transform n_d runs over pairs (i_d, j_d), I_d^2 of them; for the residual over a mode. The first mode varies
slowest, as in `torch.kron`. Gradients are written out by hand: some twenty small operations per layer instead of the
hundred that autograd would record, which decides the speed of narrow layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class RingShape(NamedTuple):
    """Sizes of a chain of cores, each [rank, size, rank].

    Attributes:
        sizes: n_1 .. n_D.
        rank: R.
    """

    sizes: tuple[int, ...]
    rank: int

    @property
    def parameters(self) -> int:
        """Number of entries of all cores: R^2 * sum of n_d."""
        return self.rank**2 * sum(self.sizes)

    def cores(self, flat: Tensor) -> list[Tensor]:
        """Return the cores as the paper writes them, [n_d, R, R] each; views into the flat vector."""
        parts = self.parts(flat)
        first = [part.view(self.rank, -1, self.rank).transpose(0, 1) for part in parts[:-1]]
        return [*first, parts[-1].view(self.rank, self.rank, -1).permute(2, 0, 1)]

    def parts(self, flat: Tensor) -> list[Tensor]:
        """Return the flat cores one by one; views."""
        return list(flat.split_with_sizes(_lengths(self.sizes, self.rank)))


def transform_shape(modes: Sequence[int], rank: int) -> RingShape:
    """Return the shape of the transform's cores: one per mode, of size I_d^2."""
    return RingShape(tuple(mode * mode for mode in modes), rank)


def widen(flat: Tensor) -> Tensor:
    """Return float32 for half precision, else the tensor itself: cores are always multiplied in full precision."""
    return flat.float() if flat.dtype.itemsize < 4 else flat


def pack(cores: Sequence[Tensor]) -> Tensor:
    """Return the flat vector of cores given as [n_d, R, R] each; the inverse of `RingShape.cores`."""
    first = [core.transpose(0, 1).reshape(-1) for core in cores[:-1]]
    return torch.cat([*first, cores[-1].permute(1, 2, 0).reshape(-1)])


def chain(parts: Sequence[Tensor], rank: int) -> Tensor:
    """Multiply cores from left to right.

    Args:
        parts: Flat cores.
        rank: R.

    Returns:
        The product, [R, n_1 * .. * n_D-1, R, n_D].
    """
    if len(parts) == 1:
        return parts[0].view(rank, 1, rank, -1)
    left = _lefts(parts, rank)[-1]
    return torch.mm(left, parts[-1].view(rank, -1)).view(rank, -1, rank, parts[-1].numel() // rank**2)


def chain_grads(parts: Sequence[Tensor], grad: Tensor, rank: int) -> list[Tensor]:
    """Return the gradient of every core, flat, from the gradient of `chain`, contiguous."""
    lefts = _lefts(parts, rank)
    grads: list[Tensor] = []
    for part, left in zip(reversed(parts[1:]), reversed(lefts), strict=True):
        grad = grad.view(left.shape[0], -1)
        grads.append(torch.mm(left.t(), grad).view(-1))
        grad = torch.mm(grad, part.view(rank, -1).t())
    grads.append(grad.view(-1))
    return grads[::-1]


def _lefts(parts: Sequence[Tensor], rank: int) -> list[Tensor]:
    """Return the products of the first 1, 2, .. D - 1 cores, [R * n_1 * .., R]."""
    lefts = [parts[0].view(-1, rank)]
    for part in parts[1:-1]:
        lefts.append(torch.mm(lefts[-1], part.view(rank, -1)).view(-1, rank))
    return lefts[: len(parts) - 1]


class Halves(NamedTuple):
    """T as a sum of K Kronecker products: T = sum_k head[k] (x) tail[k].

    Attributes:
        head: The first core, [K, a * a], columns (i, j).
        tail: The chain of the others, [K, b * b], columns (i, j) of the joined modes.
    """

    head: Tensor
    tail: Tensor


def halves(flat: Tensor, modes: tuple[int, ...], rank: int) -> Halves:
    """Split T into the first core and the chain of the others.

    Args:
        flat: All cores, [R^2 * sum I_d^2].
        modes: I_1 .. I_D.
        rank: R.
    """
    parts = transform_shape(modes, rank).parts(flat)
    if len(modes) == 1:
        closed = parts[0].view(rank, rank, -1).transpose(0, 1).reshape(rank**2, -1)
        return Halves(closed, torch.eye(rank, dtype=flat.dtype, device=flat.device).view(-1, 1))
    head = parts[0].view(rank, -1, rank).permute(2, 0, 1).reshape(rank**2, -1)
    tail = chain(parts[1:], rank).view(_tail_view(modes, rank)).permute(_tail_order(modes))
    return Halves(head, tail.reshape(rank**2, -1))


def halves_grad(flat: Tensor, modes: tuple[int, ...], rank: int, grads: Halves) -> Tensor:
    """Return the gradient of the flat cores from the gradients of head and tail."""
    if len(modes) == 1:
        return grads.head.view(rank, rank, -1).transpose(0, 1).reshape(-1)
    parts = transform_shape(modes, rank).parts(flat)
    head = grads.head.view(rank, rank, -1).permute(1, 2, 0).reshape(-1)
    view, back = _tail_back(modes, rank)
    tail = grads.tail.view(view).permute(back).contiguous()
    return torch.cat([head, *chain_grads(parts[1:], tail, rank)])


def join(parts: Halves, modes: tuple[int, ...]) -> Tensor:
    """Build T, [in, in]: T[i1..iD, j1..jD] = trace(A^1[i1, j1] .. A^D[iD, jD])."""
    a, b = modes[0], math.prod(modes[1:])
    return torch.mm(parts.head.t(), parts.tail).view(a, a, b, b).transpose(1, 2).reshape(a * b, a * b)


def join_grads(parts: Halves, modes: tuple[int, ...], grad: Tensor) -> Halves:
    """Return the gradients of head and tail from the gradient of T, [in, in], of any float dtype."""
    a, b = modes[0], math.prod(modes[1:])
    pairs = grad.to(parts.head.dtype).view(a, b, a, b).transpose(1, 2).reshape(a * a, b * b)
    return Halves(torch.mm(parts.tail, pairs.t()), torch.mm(parts.head, pairs))


def transform(flat: Tensor, modes: tuple[int, ...], rank: int) -> Tensor:
    """Build T from its cores, [in, in], in their dtype."""
    return join(halves(flat, modes, rank), modes)


def turn(x: Tensor, parts: Halves, modes: tuple[int, ...]) -> Tensor:
    """Return x T^T without building T: z[n] = sum_k head[k] x[n] tail[k]^T with x[n] seen as [a, b].

    Args:
        x: Rows, [N, in], in the dtype of the parts.
        parts: Both halves of T.
        modes: I_1 .. I_D.
    """
    head, tail = _as_factors(parts, modes)
    return torch.mm(_through_head(x, head, modes), tail.t()).view(x.shape)


def turn_grads(x: Tensor, parts: Halves, modes: tuple[int, ...], grad: Tensor) -> tuple[Tensor, Halves]:
    """Return the gradients of x, and of head and tail, from the gradient of `turn`, [N, in]."""
    head, tail = _as_factors(parts, modes)
    a, b, k = modes[0], math.prod(modes[1:]), len(parts.head)
    rows = grad.reshape(len(x) * a, b)
    tail_grad = torch.mm(rows.t(), _through_head(x, head, modes)).view(b, k, b).transpose(0, 1)
    inner = torch.mm(rows, tail).view(len(x), a * k, b)
    x_grad = torch.bmm(head.t().expand(len(x), -1, -1), inner).view(x.shape)
    head_grad = torch.bmm(inner, x.view(len(x), a, b).transpose(1, 2)).sum(0).view(a, k, a).transpose(0, 1)
    return x_grad, Halves(head_grad.reshape(k, a * a), tail_grad.reshape(k, b * b))


def _through_head(x: Tensor, head: Tensor, modes: tuple[int, ...]) -> Tensor:
    """Return rows (n, i) of all head[k] x[n], [N * a, K * b]."""
    a, b = modes[0], math.prod(modes[1:])
    through = torch.bmm(head.expand(len(x), -1, -1), x.view(len(x), a, b))
    return through.view(len(x) * a, head.shape[0] // a * b)


def _as_factors(parts: Halves, modes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return head as [(i, k), j] and tail as [p, (k, q)]; views for K = 1."""
    a, b, k = modes[0], math.prod(modes[1:]), len(parts.head)
    head = parts.head.view(k, a, a).transpose(0, 1).reshape(a * k, a)
    return head, parts.tail.view(k, b, b).transpose(0, 1).reshape(b, k * b)


def ring_factors(flat: Tensor, out: RingShape, into: RingShape) -> tuple[Tensor, Tensor]:
    """Build the thin factors of the tensor-ring residual: D = up^T down, a matrix of rank K = R^2.

    With P = chain of the out cores and Q = chain of the in cores: up[m R + n, i] = P[i][m, n] and
    down[m R + n, j] = Q[j][n, m]; the swap closes the ring: D[i, j] = trace(P[i] Q[j]).

    Args:
        flat: Out cores, then in cores.
        out: Their shape; the product of its sizes is `out`.
        into: Shape of the in cores; the product of its sizes is `in`.

    Returns:
        up [K, out] and down [K, in].
    """
    rank, count = out.rank, len(out.sizes)
    parts = RingShape(out.sizes + into.sizes, rank).parts(flat)
    up = chain(parts[:count], rank).transpose(1, 2)
    down = chain(parts[count:], rank).permute(2, 0, 1, 3)
    return up.reshape(rank**2, -1), down.reshape(rank**2, -1)


def ring_grad(flat: Tensor, out: RingShape, into: RingShape, up_grad: Tensor, down_grad: Tensor) -> Tensor:
    """Return the gradient of the flat cores from the gradients of up [K, out] and down [K, in]."""
    rank, count = out.rank, len(out.sizes)
    parts = RingShape(out.sizes + into.sizes, rank).parts(flat)
    up = up_grad.reshape(rank, rank, -1, out.sizes[-1]).transpose(1, 2).contiguous()
    down = down_grad.reshape(rank, rank, -1, into.sizes[-1]).permute(1, 2, 0, 3).contiguous()
    return torch.cat([*chain_grads(parts[:count], up, rank), *chain_grads(parts[count:], down, rank)])


def _lengths(sizes: tuple[int, ...], rank: int) -> list[int]:
    return [rank**2 * size for size in sizes]


def _tail_view(modes: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Axes of the chained tail: (s, i2, j2 .., r, iD, jD)."""
    inner = (mode for mode in modes[1:-1] for _ in "ij")
    return (rank, *inner, rank, modes[-1], modes[-1])


def _tail_order(modes: tuple[int, ...]) -> tuple[int, ...]:
    """Axes that turn (s, i2, j2 .., r, iD, jD) into (s, r, i2 .. iD, j2 .. jD)."""
    r = 2 * len(modes) - 3
    return (0, r, *range(1, r, 2), r + 1, *range(2, r, 2), r + 2)


def _tail_back(modes: tuple[int, ...], rank: int) -> tuple[list[int], list[int]]:
    """Sizes of the reordered axes, and the order that puts them back."""
    order, view = _tail_order(modes), _tail_view(modes, rank)
    return [view[axis] for axis in order], sorted(range(len(order)), key=order.__getitem__)
