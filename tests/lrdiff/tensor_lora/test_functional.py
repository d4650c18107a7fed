"""The fast formulas against the slow truth: values and every gradient, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lrdiff.tensor_lora import functional, reference
from lrdiff.tensor_lora.autograd import Plan, Rest, Turn, adapt, expand
from lrdiff.tensor_lora.functional import RingShape, transform_shape
from tests.lrdiff.tensor_lora.models import draw

MODES = [(7,), (3, 5), (4, 2, 3), (2, 3, 2, 2)]
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def cores_of(modes: tuple[int, ...], rank: int, seed: int = 0) -> Tensor:
    return draw(transform_shape(modes, rank).parameters, seed=seed, dtype=torch.float64)


def truth(flat: Tensor, modes: tuple[int, ...], rank: int) -> Tensor:
    cores = transform_shape(modes, rank).cores(flat)
    return reference.transform([core.reshape(m, m, rank, rank) for core, m in zip(cores, modes, strict=True)])


@pytest.mark.parametrize("modes", MODES)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_transform_and_its_gradient(modes: tuple[int, ...], rank: int) -> None:
    flat = cores_of(modes, rank).requires_grad_()
    expected = truth(flat, modes, rank)
    grad = draw(*expected.shape, seed=1, dtype=torch.float64)
    (expected_grad,) = torch.autograd.grad(expected, flat, grad)
    with torch.no_grad():
        parts = functional.halves(flat, modes, rank)
        torch.testing.assert_close(functional.transform(flat, modes, rank), expected, **TIGHT)
        sides = functional.join_grads(parts, modes, grad)
        torch.testing.assert_close(functional.halves_grad(flat, modes, rank, sides), expected_grad, **TIGHT)


@pytest.mark.parametrize("modes", MODES[1:])
@pytest.mark.parametrize("rank", [1, 2])
def test_applying_half_by_half_equals_the_dense_transform(modes: tuple[int, ...], rank: int) -> None:
    flat, width = cores_of(modes, rank), math.prod(modes)
    x, dz = draw(5, width, dtype=torch.float64), draw(5, width, seed=9, dtype=torch.float64)
    parts = functional.halves(flat, modes, rank)
    dense = functional.join(parts, modes)
    torch.testing.assert_close(functional.turn(x, parts, modes), x @ dense.t(), **TIGHT)
    dx, sides = functional.turn_grads(x, parts, modes, dz)
    torch.testing.assert_close(dx, dz @ dense, **TIGHT)
    for side, expected in zip(sides, functional.join_grads(parts, modes, dz.t() @ x), strict=True):
        torch.testing.assert_close(side, expected, **TIGHT)


@pytest.mark.parametrize(
    ("out", "into"), [((3,), (5,)), ((2, 3), (4, 2, 3)), ((4, 2, 3), (2, 2)), ((2, 2, 2, 2), (3, 2))]
)
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_ring_is_a_lora_of_squared_rank(out: tuple[int, ...], into: tuple[int, ...], rank: int) -> None:
    shapes = RingShape(out, rank), RingShape(into, rank)
    flat = draw(sum(shape.parameters for shape in shapes), dtype=torch.float64).requires_grad_()
    halves = flat.split([shape.parameters for shape in shapes])
    expected = reference.ring(*(shape.cores(half) for shape, half in zip(shapes, halves, strict=True)))
    up, down = functional.ring_factors(flat, *shapes)
    assert up.shape == (rank**2, math.prod(out))
    torch.testing.assert_close(up.t() @ down, expected, **TIGHT)
    assert torch.linalg.matrix_rank(expected) <= rank**2
    grads = draw(*up.shape, seed=1, dtype=torch.float64), draw(*down.shape, seed=2, dtype=torch.float64)
    (expected_grad,) = torch.autograd.grad([up, down], flat, grads)
    torch.testing.assert_close(functional.ring_grad(flat.detach(), *shapes, *grads), expected_grad, **TIGHT)


def test_the_ring_closes_with_swapped_indices() -> None:
    """An asymmetric case: without the swap of m and n in the in cores the ring would be another matrix."""
    shape = RingShape((2, 2), 2)
    flat = draw(2 * shape.parameters, seed=4, dtype=torch.float64)
    up, down = functional.ring_factors(flat, shape, shape)
    unswapped = down.view(2, 2, -1).transpose(0, 1).reshape(4, -1)
    expected = reference.ring(*(shape.cores(half) for half in flat.split(shape.parameters)))
    torch.testing.assert_close(up.t() @ down, expected, **TIGHT)
    assert (up.t() @ unswapped - expected).abs().max() > 0.1


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_packing_and_reading_cores_are_inverse(sizes: list[int], rank: int) -> None:
    shape = RingShape(tuple(sizes), rank)
    flat = draw(shape.parameters)
    cores = shape.cores(flat)
    assert [tuple(core.shape) for core in cores] == [(size, rank, rank) for size in sizes]
    assert torch.equal(functional.pack(cores), flat)


def test_rank_one_follows_kron_order() -> None:
    modes = (2, 3, 4)
    flat = cores_of(modes, 1)
    small = [core.view(m, m) for core, m in zip(transform_shape(modes, 1).cores(flat), modes, strict=True)]
    expected = torch.kron(torch.kron(small[0], small[1]), small[2])
    torch.testing.assert_close(functional.transform(flat, modes, 1), expected, **TIGHT)


@pytest.mark.parametrize("strengths", [(1.0,), (0.3,), (1.0, -0.5)])
@pytest.mark.parametrize("rank", [1, 2])
def test_gradcheck_of_both_operations(strengths: tuple[float, ...], rank: int) -> None:
    modes, out = (2, 3), RingShape((2, 2), 2)
    turns = tuple(Turn(modes, rank, strength) for strength in strengths)
    rests = (Rest(4, 0.7, (4, 6), out, RingShape(modes, 2)), Rest(2, 1.0, (4, 6)))
    flats = [cores_of(modes, rank, seed=n) for n in range(len(turns))]
    flats += [draw(4 * (4 + 5), seed=8, dtype=torch.float64), draw(20, seed=9, dtype=torch.float64)]
    flats = [flat.requires_grad_() for flat in flats]
    x = draw(3, 6, dtype=torch.float64).requires_grad_()
    plan = Plan(turns, rests)
    assert torch.autograd.gradcheck(lambda x, *f: adapt(x, plan, f), (x, *flats), fast_mode=True)
    assert torch.autograd.gradcheck(lambda *f: expand(plan, f, torch.float64), tuple(flats), fast_mode=True)


def test_a_second_derivative_is_refused_not_wrong() -> None:
    flat = cores_of((2, 3), 2).requires_grad_()
    x = draw(3, 6, dtype=torch.float64).requires_grad_()
    z, _, _ = adapt(x, Plan((Turn((2, 3), 2, 1.0),), ()), [flat])
    (first,) = torch.autograd.grad(z.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
