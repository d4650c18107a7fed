"""Modes: the paper's table, any other width, and clear refusals."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lrdiff.errors import ShapeError
from lrdiff.tensor_lora.modes import BUDGET, check_modes, cost, factorise

PAPER = {320: (4, 8, 10), 640: (8, 8, 10), 768: (8, 8, 12), 1280: (8, 10, 16), 2048: (8, 16, 16)}


@pytest.mark.parametrize(("width", "modes"), PAPER.items())
def test_papers_table_is_reproduced(width: int, modes: tuple[int, ...]) -> None:
    assert factorise(width) == modes


@pytest.mark.parametrize(
    ("width", "modes"),
    {4: (2, 2), 27: (3, 3, 3), 35: (5, 7), 96: (4, 4, 6), 1152: (8, 12, 12), 15360: (20, 24, 32)}.items(),
)
def test_other_widths(width: int, modes: tuple[int, ...]) -> None:
    assert factorise(width) == modes


def cheapest(width: int) -> int | None:
    """Return the smallest cost of a split into two or three numbers above 1, from all of them; None for primes."""
    pairs = [(first, width // first) for first in range(2, math.isqrt(width) + 1) if width % first == 0]
    triples = [
        (first, second, rest // second)
        for first, rest in pairs
        for second in range(2, math.isqrt(rest) + 1)
        if rest % second == 0
    ]
    return min((cost(split) for split in (*pairs, *triples)), default=None)


@given(st.integers(4, 5_000))
@example(1339)  # 13 x 103: 103^2 alone is within the budget, both together are not
@settings(deadline=None, max_examples=150)
def test_any_width_gets_usable_modes_or_a_reasoned_refusal(width: int) -> None:
    least = cheapest(width)
    if least is None or least > BUDGET * width:
        with pytest.raises(ShapeError, match=rf"{width} .*exclude_modules"):
            factorise(width)
        return
    modes = factorise(width)
    assert math.prod(modes) == width
    assert 2 <= len(modes) <= 3
    assert list(modes) == sorted(modes)
    assert modes[0] > 1
    assert cost(modes) <= BUDGET * width


@given(st.integers(4, 2_000))
@settings(deadline=None, max_examples=100)
def test_no_cheaper_split_is_missed_by_more_than_a_fifth(width: int) -> None:
    splits = [
        (a, b, width // (a * b))
        for a in range(2, width + 1)
        if width % a == 0
        for b in range(a, width // a + 1)
        if (width // a) % b == 0 and width // (a * b) >= b
    ]
    if splits and min(map(cost, splits)) <= BUDGET * width:
        assert cost(factorise(width)) <= 1.2 * min(map(cost, splits))


@pytest.mark.parametrize("width", [2, 3, 7, 13, 257, 641])
def test_a_prime_width_is_refused_with_a_way_out(width: int) -> None:
    with pytest.raises(ShapeError, match=rf"{width} is prime.*exclude_modules.*transform_rank=0.*modes="):
        factorise(width)


def test_very_uneven_and_tiny_widths_are_refused() -> None:
    with pytest.raises(ShapeError, match="too uneven"):
        factorise(2 * 641)
    with pytest.raises(ShapeError, match="too small"):
        factorise(1)


def test_given_modes_must_multiply_to_the_width() -> None:
    assert check_modes(257, (257,)) == (257,)
    with pytest.raises(ShapeError, match="do not multiply"):
        check_modes(12, (3, 5))
