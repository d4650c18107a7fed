"""How surprising a number of matching bits is: exact tails, thresholds, corrections, intervals.

Null hypothesis H0: the picture is not marked with the key. Then each of the n read bits agrees with the key with
probability 1/2, and the number of matches K ~ Bin(n, 1/2). Given the picture this is exact whenever the key was drawn
uniformly at random and has nothing to do with the picture, because each key bit is then a fair coin. For one fixed key
over many pictures it needs an extractor whose bits are fair and independent, which its calibration measures.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from lrdiff.errors import ConfigError, ShapeError


def p_value(matches: int, bits: int) -> float:
    """Return P(Bin(bits, 1/2) >= matches), the probability of so many matches or more by chance.

    Raises:
        ShapeError: `matches` is not from 0 to `bits`, or there are no bits.
    """
    if bits < 1 or not 0 <= matches <= bits:
        raise ShapeError(f"{matches} matches of {bits} bits are impossible; matches go from 0 to the number of bits")
    # P(Bin(n, 1/2) >= k) = I_{1/2}(k, n - k + 1), the regularised incomplete beta function.
    return 1.0 if matches == 0 else float(special.betainc(matches, bits - matches + 1, 0.5))


def corrected(p: float, keys: int = 1, searches: int = 1) -> float:
    """Correct a p-value, the smallest of several tests, for their number.

    Keys are drawn independently, so the smallest of N p-values has the exact tail 1 - (1 - p)^N. Geometric searches
    read the same picture again and depend on each other: the union bound holds all the same.

    Args:
        p: The smallest p-value.
        keys: Number of keys the picture was compared with.
        searches: Number of versions of the picture (flips, turns, ...) that were read.

    Returns:
        Probability, at most 1, that any of the tests gives `p` or less by chance.

    Raises:
        ConfigError: A number is out of range.
    """
    if not 0.0 <= p <= 1.0:
        raise ConfigError(f"p-value {p} is not a probability; give a number from 0 to 1")
    if keys < 1 or searches < 1:
        raise ConfigError(f"{keys} keys and {searches} searches: at least one of each is needed")
    among_keys = 1.0 if p == 1.0 else -math.expm1(keys * math.log1p(-p))
    return min(1.0, searches * among_keys)


@functools.lru_cache(maxsize=1024)
def threshold(bits: int, alpha: float, keys: int = 1, searches: int = 1) -> int | None:
    """Return the smallest number of matches whose corrected p-value is at most `alpha`.

    Returns:
        From 0 to `bits`, or None when even a full match is not surprising enough.

    Raises:
        ConfigError: `alpha` is not strictly between 0 and 1.
    """
    check_alpha(alpha)
    for matches in range(bits // 2, bits + 1):
        if corrected(p_value(matches, bits), keys, searches) <= alpha:
            # Walk down only for alpha above one half, where the answer lies below the middle.
            while matches and corrected(p_value(matches - 1, bits), keys, searches) <= alpha:
                matches -= 1
            return matches
    return None


def check_alpha(alpha: float) -> None:
    """Raise `ConfigError` unless `alpha` is a usable false-positive rate."""
    if not 0.0 < alpha < 1.0:
        raise ConfigError(f"alpha is {alpha}; give a false-positive rate between 0 and 1, for example 1e-6")


def pooled_p_value(matches: Sequence[int], bits: int, keys: int = 1, searches: int = 1) -> float:
    """Test several images of one suspected model together: sum K_i ~ Bin(m n, 1/2) under H0.

    The images must be different ones, and their number must be fixed before they are read. Unlike the test of one
    image, this rests on the extractor's calibration even for random keys: the m readings share one key.

    Args:
        matches: Matches of each image with the same key.
        bits: Bits of the key.
        keys: Keys compared.
        searches: Geometric versions read, the same one for all images.

    Returns:
        Corrected p-value.

    Raises:
        ShapeError: There is no image, or a number of matches is impossible.
    """
    if not matches:
        raise ShapeError("no image to pool; give the matches of at least one image")
    for count in matches:
        p_value(count, bits)
    return corrected(p_value(sum(matches), len(matches) * bits), keys, searches)


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval of a rate."""

    low: float
    high: float

    def __contains__(self, rate: float) -> bool:
        return self.low <= rate <= self.high


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Return the exact two-sided interval of a rate (Clopper and Pearson 1934); it covers at least `confidence`.

    Raises:
        ShapeError: The counts are impossible.
        ConfigError: `confidence` is not strictly between 0 and 1.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ShapeError(f"{successes} of {trials} is no rate; give counts with 0 <= successes <= trials, trials >= 1")
    if not 0.0 < confidence < 1.0:
        raise ConfigError(f"confidence is {confidence}; give a number between 0 and 1, for example 0.95")
    tail = (1.0 - confidence) / 2.0
    low = 0.0 if successes == 0 else float(special.betaincinv(successes, trials - successes + 1, tail))
    high = 1.0 if successes == trials else float(special.betainccinv(successes + 1, trials - successes, tail))
    return Interval(low, high)


@dataclass(frozen=True, slots=True)
class FalsePositives:
    """How often a test fired on unmarked images at one nominal rate."""

    alpha: float
    fired: int
    trials: int
    interval: Interval

    @property
    def nominal(self) -> bool:
        """Whether the interval of the observed rate contains the nominal one."""
        return self.alpha in self.interval


def false_positives(p_values: ArrayLike, alpha: float, confidence: float = 0.95) -> FalsePositives:
    """Count how many p-values of unmarked images are at most `alpha`, with the interval of the rate."""
    check_alpha(alpha)
    values = np.asarray(p_values, dtype=np.float64).ravel()
    fired = int((values <= alpha).sum())
    return FalsePositives(alpha, fired, values.size, clopper_pearson(fired, values.size, confidence))
