"""The soft test: sure bits count more than doubtful ones.

The statistic is S = sum_i s_i y_i / sqrt(n), with the whitened logits y and the key as signs s. It stands
beside the count of matches and has two nulls of its own: the sign-flip null, which is exact for a key drawn at random,
and the empirical null of logits read from unmarked images, which assumes nothing but cannot say less than 1/(N+1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrdiff.errors import ShapeError

LEVELS = 512
"""Grid steps of the largest logit; rounding is counted against the mark."""


def score(logits: ArrayLike, key: Sequence[int]) -> float:
    """Return S = sum_i s_i y_i / sqrt(n).

    Args:
        logits: Whitened logits [n].
        key: n bits, 0 or 1.

    Raises:
        ShapeError: The sizes differ, or a logit is not finite.
    """
    values, signs = _check(logits, key)
    return float(signs @ values / np.sqrt(values.size))


def p_value(logits: ArrayLike, key: Sequence[int]) -> float:
    """Return P(sum_i e_i y_i >= sum_i s_i y_i) over fair random signs e: the sign-flip null.

    The sum's distribution is built on a grid by adding one logit after the other. Only positive numbers are added, so
    the far tail keeps its relative precision, and rounding to the grid can only raise the result. With logits of equal
    size this is the binomial test.

    Args:
        logits: Whitened logits [n].
        key: n bits, 0 or 1.

    Raises:
        ShapeError: The sizes differ, or a logit is not finite.
    """
    values, signs = _check(logits, key)
    size = np.abs(values)
    top = float(size.max())
    if top == 0.0:
        return 1.0
    steps = np.rint(size / top * LEVELS).astype(np.int64)
    error = np.abs(size / top * LEVELS - steps).sum()
    reached = float(signs @ values) / top * LEVELS
    reach = int(steps.sum())
    chance = np.ones(1)  # chance[j] = P(sum so far = j - (len(chance) - 1) / 2)
    for step in np.sort(steps).tolist():
        wider = np.zeros(len(chance) + 2 * step)
        wider[: len(chance)] = 0.5 * chance
        wider[2 * step :] += 0.5 * chance
        chance = wider
    # A true sum of at least `reached` lies on the grid at `reached - error` or above. 1e-6 steps absorb float rounding.
    first = int(np.ceil(reached - error - 1e-6))
    return float(min(1.0, chance[max(first + reach, 0) :].sum()))


@dataclass(frozen=True, slots=True)
class EmpiricalNull:
    """Scores of unmarked images, sorted: the soft test's own calibration.

    Attributes:
        scores: Sorted scores [N].
    """

    scores: NDArray[np.float64]

    @classmethod
    def fit(cls, logits: ArrayLike, keys: ArrayLike) -> EmpiricalNull:
        """Score every image with its key.

        Args:
            logits: Whitened logits of unmarked images [N, n].
            keys: One key for all [n] or one for each image [N, n], bits 0 or 1.

        Raises:
            ShapeError: The sizes differ, there is no image, or a logit is not finite.
        """
        values = np.asarray(logits, dtype=np.float64)
        bits = np.asarray(keys)
        if values.ndim != 2 or not values.size or bits.shape not in (values.shape, values.shape[1:]):
            raise ShapeError(f"logits {values.shape} and keys {bits.shape}: give [N, n] and [n] or [N, n], N >= 1")
        if not np.isfinite(values).all():
            raise ShapeError("a logit is NaN or infinite; the null cannot be built from it")
        scores = (values * (2.0 * bits - 1.0)).sum(axis=1) / np.sqrt(values.shape[1])
        return cls(np.sort(scores))

    def p_value(self, observed: float) -> float:
        """Return (1 + #{scores >= observed}) / (N + 1), a valid p-value for any distribution of the scores."""
        above = self.scores.size - int(np.searchsorted(self.scores, observed, side="left"))
        return (1 + above) / (self.scores.size + 1)


def _check(logits: ArrayLike, key: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values = np.asarray(logits, dtype=np.float64)
    bits = np.asarray(key, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or values.shape != bits.shape:
        raise ShapeError(f"logits {values.shape} do not fit a key of {bits.shape}; both must be [n]")
    if not np.isfinite(values).all():
        raise ShapeError("a logit is NaN or infinite; the image cannot be judged")
    return values, 2.0 * bits - 1.0
