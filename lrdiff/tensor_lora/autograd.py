"""The two differentiable operations of the layers. They keep their input and the cores and rebuild what is cheap.

Autograd on the formulas of `functional.py` would keep T, its parts and two more copies of the activations per layer.
Here a linear layer keeps what plain LoRA keeps: its input, which the queries, keys and values of an attention share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lrdiff.tensor_lora import functional
from lrdiff.tensor_lora.functional import Halves, RingShape, widen

SPLIT_PENALTY = 1.5
"""On a CPU, T is applied half by half if its multiplications, times this, are fewer than those of the dense T, since
small products run slower. Measured on one core, forward and backward: R = 2 gains from width 640 on (1280: 1.5 times
faster), R = 1 from 128 on (1280: five times). On a GPU T is always dense: the halves' larger transients cost more."""

NARROWEST_TAIL = 32
"""Below this width of the second half, the small products of the first half fall to a slow path."""


class Turn(NamedTuple):
    """A transform: its modes, its ring rank R and its strength g."""

    modes: tuple[int, ...]
    rank: int
    strength: float


class Rest(NamedTuple):
    """A residual: matrix rank K, the factor g s, out and in (times kernel size), and for a ring its cores' shapes."""

    rank: int
    scale: float
    widths: tuple[int, int]
    out: RingShape | None = None
    into: RingShape | None = None


class Plan(NamedTuple):
    """What the working adapters of a layer do. Their cores travel beside it: those of all transforms come first."""

    turns: tuple[Turn, ...]
    rests: tuple[Rest, ...]


def adapt(x: Tensor, plan: Plan, flats: Sequence[Tensor]) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Apply everything that happens before and beside a linear base layer, differentiably.

    With E = sum of g_k (T_k - I): on a CPU in full precision z = x (I + E)^T is one product. In half precision, and on
    a GPU whose products may round their inputs, x + x E^T is used: rounding I + E would lose every deviation of its
    diagonal below 2^-9.

    Args:
        x: Rows of activations, [N, in].
        plan: The working adapters.
        flats: Their cores.

    Returns:
        z = x (I + E)^T, [N, in], the transformed input (x itself without a transform);
        h = x down^T, [N, K], and up, [K, out], in the dtype of x, such that h up is the residual's output; else None.
    """
    z, h, up = _Adapt.apply(x, plan, *flats)
    return (x if z is None else z), h, up


def expand(
    plan: Plan, flats: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return E [in, in], up [K, out] and down [K, in] in `dtype`, differentiably; None for what is absent."""
    return _Expand.apply(plan, dtype, *flats)


def deviation(turns: Sequence[Turn], parts: Sequence[Halves]) -> Tensor:
    """Return E = sum of g_k (T_k - I), [in, in]. Exactly 0 where every T_k = I."""
    total: Tensor | None = None
    for turn, half in zip(turns, parts, strict=True):
        part = functional.join(half, turn.modes)
        part.diagonal().sub_(1)
        if turn.strength != 1:
            part.mul_(turn.strength)
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def full_precision(device: str) -> AbstractContextManager[Any]:
    """Switch autocast off where it is on: cores are small, and rounding them would undo the exact identity."""
    return torch.autocast(device, enabled=False) if autocasts(device) else nullcontext()


def autocasts(device: str) -> bool:
    """Whether autocast is on for a device type; false for types that have none, such as "meta"."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


class _Adapt(torch.autograd.Function):
    """Of what was built from the cores, only what is no larger than the input is kept; the rest is built again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: Plan, *flats: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        ctx.plan = plan
        ctx.added = x.device.type != "cpu" or x.dtype.itemsize < 4
        ctx.set_materialize_grads(False)
        z = h = up = down = matrix = None
        parts: list[Halves] = []
        with full_precision(x.device.type):
            if plan.turns:
                parts = _halves(plan, flats, x.dtype)
                if _splits(plan, ctx.added):
                    z = functional.turn(x, parts[0], plan.turns[0].modes)
                else:
                    matrix = _matrix(plan, parts, x.dtype, ctx.added)
                    z = torch.addmm(x, x, matrix.t()) if ctx.added else torch.mm(x, matrix.t())
            if plan.rests:
                up, down = _residuals(plan, flats, x.dtype)
                h = torch.mm(x, down.t())
        sides = [side for part in parts for side in part]
        kept = sides if sum(side.numel() for side in sides) <= x.numel() else []
        ctx.save_for_backward(
            x, down, matrix if matrix is not None and matrix.numel() <= x.numel() else None, *flats, *kept
        )
        return z, h, up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        dz, dh, dup = grads
        plan: Plan = ctx.plan
        turns, count = len(plan.turns), len(plan.turns) + len(plan.rests)
        x, down, matrix, *rest = ctx.saved_tensors
        flats, kept = rest[:count], rest[count:]
        needs_x, needs = ctx.needs_input_grad[0], ctx.needs_input_grad[2:]
        dx: Tensor | None = None
        dflats: list[Tensor | None] = [None] * count
        with full_precision(x.device.type):
            if dz is not None:
                parts = [Halves(*kept[n : n + 2]) for n in range(0, len(kept), 2)] or _halves(plan, flats, x.dtype)
                if _splits(plan, ctx.added):
                    dx, sides = functional.turn_grads(x, parts[0], plan.turns[0].modes, dz)
                    dflats[0] = _core_grad(plan.turns[0], flats[0], sides)
                else:
                    if needs_x:
                        matrix = _matrix(plan, parts, x.dtype, ctx.added) if matrix is None else matrix
                        dx = torch.addmm(dz, dz, matrix) if ctx.added else torch.mm(dz, matrix)
                    if any(needs[:turns]):
                        dflats[:turns] = _transform_grads(plan, flats, parts, torch.mm(dz.t(), x))
            if dh is not None and needs_x:
                dx = torch.mm(dh, down) if dx is None else dx.addmm_(dh, down)
            if any(needs[turns:]):
                dflats[turns:] = _residual_grads(plan, flats, dup, None if dh is None else torch.mm(dh.t(), x))
        return (dx, None, *dflats)


class _Expand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, dtype: torch.dtype, *flats: Tensor) -> Any:
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*flats)
        with full_precision(flats[0].device.type):
            matrix = _matrix(plan, _halves(plan, flats, dtype), dtype, added=True) if plan.turns else None
            up, down = _residuals(plan, flats, dtype) if plan.rests else (None, None)
        return matrix, up, down

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        dmatrix, dup, ddown = grads
        plan: Plan = ctx.plan
        flats = ctx.saved_tensors
        dflats: list[Tensor | None] = [None] * len(flats)
        with full_precision(flats[0].device.type):
            if dmatrix is not None:
                dflats[: len(plan.turns)] = _transform_grads(plan, flats, _halves(plan, flats, dmatrix.dtype), dmatrix)
            dflats[len(plan.turns) :] = _residual_grads(plan, flats, dup, ddown)
        return (None, None, *dflats)


def _splits(plan: Plan, added: bool) -> bool:
    """Whether T is applied half by half: one transform, in full strength and full precision, and it pays."""
    if added or len(plan.turns) != 1 or plan.turns[0].strength != 1:
        return False
    modes, rank, _ = plan.turns[0]
    a, b = modes[0], math.prod(modes[1:])
    return b >= NARROWEST_TAIL and SPLIT_PENALTY * rank * rank * (a + b) < a * b


def _halves(plan: Plan, flats: Sequence[Tensor], dtype: torch.dtype) -> list[Halves]:
    """Return the halves of all transforms, in float64 for float64 activations, else in float32."""
    wide = torch.promote_types(dtype, torch.float32)
    pairs = zip(plan.turns, flats, strict=False)
    return [functional.halves(flat.to(wide), turn.modes, turn.rank) for turn, flat in pairs]


def _matrix(plan: Plan, parts: Sequence[Halves], dtype: torch.dtype, added: bool) -> Tensor:
    """Return E if `added`, else I + E."""
    if not added and len(parts) == 1 and plan.turns[0].strength == 1:
        return functional.join(parts[0], plan.turns[0].modes).to(dtype)
    matrix = deviation(plan.turns, parts)
    if not added:
        matrix.diagonal().add_(1)
    return matrix.to(dtype)


def _transform_grads(plan: Plan, flats: Sequence[Tensor], parts: Sequence[Halves], grad: Tensor) -> list[Tensor]:
    grads = []
    for turn, flat, part in zip(plan.turns, flats, parts, strict=False):
        grads.append(_core_grad(turn, flat, functional.join_grads(part, turn.modes, grad)))
    return grads


def _core_grad(turn: Turn, flat: Tensor, sides: Halves) -> Tensor:
    wide = widen(flat)
    result = functional.halves_grad(wide, turn.modes, turn.rank, Halves(*(side.to(wide.dtype) for side in sides)))
    return (result if turn.strength == 1 else result.mul_(turn.strength)).to(flat.dtype)


def _residuals(plan: Plan, flats: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the stacked factors up, times g s, and down."""
    ups, downs = [], []
    for rest, flat in zip(plan.rests, flats[len(plan.turns) :], strict=True):
        wide = widen(flat)
        if rest.out and rest.into:
            up, down = functional.ring_factors(wide, rest.out, rest.into)
        else:
            up, down = (
                part.view(rest.rank, -1) for part in wide.split_with_sizes([rest.rank * width for width in rest.widths])
            )
        ups.append((up if rest.scale == 1 else up * rest.scale).to(dtype))
        downs.append(down.to(dtype))
    return (ups[0], downs[0]) if len(ups) == 1 else (torch.cat(ups), torch.cat(downs))


def _residual_grads(
    plan: Plan, flats: Sequence[Tensor], dup: Tensor | None, ddown: Tensor | None
) -> Sequence[Tensor | None]:
    """Return the gradients of all residuals' cores; None where neither factor took part in the result."""
    if dup is None and ddown is None:
        return [None] * len(plan.rests)
    ranks = [rest.rank for rest in plan.rests]
    dups, ddowns = _by_adapter(dup, ranks), _by_adapter(ddown, ranks)
    grads = []
    for rest, flat, up, down in zip(plan.rests, flats[len(plan.turns) :], dups, ddowns, strict=True):
        wide = widen(flat)
        up = wide.new_zeros(rest.rank, rest.widths[0]) if up is None else up.to(wide.dtype)
        down = wide.new_zeros(rest.rank, rest.widths[1]) if down is None else down.to(wide.dtype)
        up = up if rest.scale == 1 else up * rest.scale
        if rest.out and rest.into:
            result = functional.ring_grad(wide, rest.out, rest.into, up, down)
        else:
            result = torch.cat([up.reshape(-1), down.reshape(-1)])
        grads.append(result.to(flat.dtype))
    return grads


def _by_adapter(grad: Tensor | None, ranks: list[int]) -> Sequence[Tensor | None]:
    if grad is None or len(ranks) == 1:
        return [grad] * len(ranks)
    return grad.split(ranks)
