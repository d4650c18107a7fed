"""Split a layer width into modes, the side lengths of the tensor-ring cores. Pure Python, no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator

from lrdiff.errors import ShapeError

COUNT = 3
"""Number of modes the paper uses."""

EVEN_TOLERANCE = 1.2
"""An all-even split may cost this much more than the cheapest; with 1.2 the paper's table is reproduced."""

BUDGET = 8
"""A transform of rank 1 may cost at most 8 x width parameters, what plain LoRA of rank 4 costs on a square layer."""


def factorise(width: int) -> tuple[int, ...]:
    """Choose the modes of a width, in ascending order.

    Of all ways to write `width` as a product of three numbers above 1 (two where it has only two prime factors), the
    one with the smallest sum of squares is taken, since a transform of rank R costs R^2 times that sum. A split into
    even numbers wins if it costs at most a fifth more. This gives the paper's modes for 320, 640, 768, 1280 and 2048.

    Args:
        width: Number of features or channels.

    Returns:
        Two or three modes whose product is `width`.

    Raises:
        ShapeError: The width is below 4 or prime, or even its cheapest split makes the transform dearer than LoRA.

    >>> factorise(320), factorise(1280), factorise(35)
    ((4, 8, 10), (8, 10, 16), (5, 7))
    """
    primes = _prime_factors(width)
    if primes < 2:
        why = "is prime: no tensor ring can be built on it" if width > 1 else "is too small for a tensor ring"
        raise ShapeError(_message(width, (width,), why))
    splits = list(_splits(width, min(COUNT, primes), 2))
    best = min(splits, key=cost)
    even = [modes for modes in splits if all(mode % 2 == 0 for mode in modes)]
    if even and cost(min(even, key=cost)) <= EVEN_TOLERANCE * cost(best):
        best = min(even, key=cost)
    if cost(best) > BUDGET * width:
        raise ShapeError(_message(width, best, f"splits only into {best}, too uneven for a tensor ring"))
    return best


def check_modes(width: int, modes: tuple[int, ...]) -> tuple[int, ...]:
    """Return `modes` if they multiply to `width`. Raises `ShapeError` otherwise."""
    if not modes or min(modes) < 1 or math.prod(modes) != width:
        raise ShapeError(f"modes {modes} do not multiply to the layer width {width}; correct `modes` in the config")
    return modes


def cost(modes: tuple[int, ...]) -> int:
    """Return the number of parameters of a rank-1 transform: the sum of the squared modes."""
    return sum(mode * mode for mode in modes)


def _splits(width: int, count: int, smallest: int) -> Iterator[tuple[int, ...]]:
    if count == 1:
        if width >= smallest:
            yield (width,)
        return
    for mode in range(smallest, int(width ** (1 / count)) + 2):
        if width % mode == 0:
            for rest in _splits(width // mode, count - 1, mode):
                yield (mode, *rest)


def _prime_factors(width: int) -> int:
    count, divisor = 0, 2
    while divisor * divisor <= width:
        while width % divisor == 0:
            width, count = width // divisor, count + 1
        divisor += 1
    return count + (width > 1)


def _message(width: int, modes: tuple[int, ...], why: str) -> str:
    return (
        f"layer width {width} {why}. Choose one: leave the layer out with `exclude_modules`; or use "
        f"`transform_rank=0, residual='lora'`, which fits any width; or accept the cost of {cost(modes):,} x rank^2 "
        f"parameters per transform with `modes={{{width}: {modes}}}`"
    )
