"""Tails, thresholds and intervals against published values, enumeration and their own definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrdiff.errors import ConfigError, ShapeError
from lrdiff.watermark.statistics import (
    clopper_pearson,
    corrected,
    false_positives,
    p_value,
    pooled_p_value,
    threshold,
)

ALPHAS = (1e-2, 5e-3, 1e-3, 1e-6, 1e-9, 1e-12)
TABLE = {
    32: (24, 24, 26, 30, 32, None),
    48: (33, 34, 36, 41, 44, 47),
    100: (63, 64, 66, 74, 80, 85),
    128: (78, 80, 82, 92, 98, 103),
    256: (148, 150, 154, 167, 176, 184),
}
rates = st.floats(1e-12, 0.99)


@pytest.mark.parametrize("bits", TABLE)
def test_the_published_thresholds(bits: int) -> None:
    assert tuple(threshold(bits, alpha) for alpha in ALPHAS) == TABLE[bits]


def test_one_match_less_than_the_threshold_is_too_many_false_positives() -> None:
    assert p_value(41, 48) <= 1e-6 < p_value(40, 48)
    assert p_value(40, 48) == pytest.approx(1.65e-6, rel=5e-3)


def test_a_full_match_is_one_word_of_all() -> None:
    assert p_value(48, 48) == pytest.approx(2.0**-48, rel=1e-12)
    assert p_value(48, 48) == pytest.approx(3.55e-15, rel=2e-3)


@pytest.mark.parametrize(("keys", "expected"), [(1, 41), (10, 42), (1000, 44), (100_000, 46), (1_000_000, 47)])
def test_thresholds_grow_with_the_number_of_keys(keys: int, expected: int) -> None:
    assert threshold(48, 1e-6, keys=keys) == expected


@pytest.mark.parametrize(("images", "share"), [(2, 0.802), (4, 0.719), (8, 0.654)])
def test_pooled_images_need_a_smaller_share(images: int, share: float) -> None:
    needed = threshold(48 * images, 1e-9)
    assert needed is not None
    assert needed / (48 * images) == pytest.approx(share, abs=5e-4)
    each = [needed // images] * images
    each[0] += needed - sum(each)
    assert pooled_p_value(each, 48) <= 1e-9
    each[0] -= 1
    assert pooled_p_value(each, 48) > 1e-9


@given(st.integers(1, 60), st.data())
def test_the_tail_equals_the_sum_of_binomial_coefficients(bits: int, data: st.DataObject) -> None:
    matches = data.draw(st.integers(0, bits))
    exact = sum(math.comb(bits, k) for k in range(matches, bits + 1)) / 2**bits
    assert p_value(matches, bits) == pytest.approx(exact, rel=1e-10)


@given(st.integers(1, 300), rates, st.integers(1, 10**6), st.integers(1, 16))
def test_a_threshold_is_the_smallest_that_holds(bits: int, alpha: float, keys: int, searches: int) -> None:
    found = threshold(bits, alpha, keys, searches)
    if found is None:
        assert corrected(p_value(bits, bits), keys, searches) > alpha
        return
    assert corrected(p_value(found, bits), keys, searches) <= alpha
    assert found == 0 or corrected(p_value(found - 1, bits), keys, searches) > alpha


@given(st.floats(0, 1), st.integers(1, 10**6), st.integers(1, 16))
def test_a_correction_lies_between_one_test_and_the_union_bound(p: float, keys: int, searches: int) -> None:
    result = corrected(p, keys, searches)
    assert min(1.0, p) * (1 - 1e-12) <= result <= min(1.0, p * keys * searches) * (1 + 1e-9)
    assert corrected(p, keys + 1, searches) >= result
    assert corrected(p, keys, searches + 1) >= result


def test_a_correction_keeps_tiny_numbers() -> None:
    assert corrected(1e-18, keys=1000) == pytest.approx(1e-15, rel=1e-9)
    assert corrected(1e-18, keys=1000, searches=8) == pytest.approx(8e-15, rel=1e-9)


@given(st.integers(1, 2000), st.data())
def test_an_interval_holds_its_own_rate_and_shrinks_with_less_confidence(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    wide, narrow = clopper_pearson(successes, trials, 0.99), clopper_pearson(successes, trials, 0.9)
    assert successes / trials in wide
    assert successes / trials in narrow
    assert wide.low <= narrow.low <= narrow.high <= wide.high


def test_known_intervals() -> None:
    # One-sided 95 % bound of 0 of n is 1 - 0.05^(1/n), the "rule of three".
    assert clopper_pearson(0, 1000, 0.9).high == pytest.approx(1 - 0.05 ** (1 / 1000), rel=1e-9)
    assert clopper_pearson(0, 1000, 0.9).high == pytest.approx(3e-3, rel=5e-3)
    both = clopper_pearson(5, 10)
    assert (both.low, both.high) == pytest.approx((0.1871, 0.8129), abs=1e-4)


def test_random_words_fire_at_the_nominal_rate() -> None:
    words = np.random.default_rng(3).integers(0, 2, (200_000, 48), dtype=np.uint8)
    tails = np.array([p_value(k, 48) for k in range(49)])
    found = tails[words.sum(axis=1)]
    for alpha in (1e-2, 1e-3):
        # The test is discrete: it fires at the tail of its threshold, which lies below alpha.
        reached = threshold(48, alpha)
        assert reached is not None
        study = false_positives(found, alpha, confidence=0.999)
        assert p_value(reached, 48) in study.interval
        assert study.interval.low <= alpha
    study = false_positives(np.linspace(0, 1, 1001)[1:], 0.05)
    assert (study.fired, study.trials, study.nominal) == (50, 1000, True)


@pytest.mark.parametrize(("matches", "bits"), [(-1, 48), (49, 48), (0, 0)])
def test_impossible_counts_are_refused(matches: int, bits: int) -> None:
    with pytest.raises(ShapeError, match="matches of"):
        p_value(matches, bits)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1e-6, math.nan])
def test_impossible_rates_are_refused(alpha: float) -> None:
    with pytest.raises(ConfigError, match="alpha"):
        threshold(48, alpha)


def test_other_impossible_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        corrected(0.5, keys=0)
    with pytest.raises(ConfigError, match="not a probability"):
        corrected(1.5)
    with pytest.raises(ShapeError, match="no image"):
        pooled_p_value([], 48)
    with pytest.raises(ShapeError, match="impossible"):
        pooled_p_value([48, 49], 48)
    with pytest.raises(ShapeError, match="no rate"):
        clopper_pearson(2, 1)
    with pytest.raises(ConfigError, match="confidence"):
        clopper_pearson(1, 2, 1.0)
