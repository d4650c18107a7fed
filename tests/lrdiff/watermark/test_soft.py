"""The soft test against enumeration of all keys, the binomial test, and unmarked logits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lrdiff.errors import ShapeError
from lrdiff.watermark import soft, statistics
from lrdiff.watermark.statistics import false_positives


@pytest.mark.parametrize("seed", range(5))
def test_the_sign_flip_null_equals_enumeration(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=12)
    key = rng.integers(0, 2, 12).tolist()
    sums = np.array(list(itertools.product((-1.0, 1.0), repeat=12))) @ logits
    reached = (2 * np.array(key) - 1.0) @ logits
    exact = float((sums >= reached - 1e-9).mean())
    found = soft.p_value(logits, key)
    assert exact * (1 - 1e-12) <= found <= exact + 0.01


def test_equal_logits_give_the_binomial_test() -> None:
    key = [1] * 48
    for matches in (24, 30, 41, 48):
        logits = np.where(np.arange(48) < matches, 1.7, -1.7)
        assert soft.p_value(logits, key) == pytest.approx(statistics.p_value(matches, 48), rel=1e-9)


def test_doubtful_wrong_bits_cost_less_than_sure_ones() -> None:
    key = [1] * 48
    sure, doubtful = np.ones(48), np.ones(48)
    sure[:8], doubtful[:8] = -1.0, -0.05
    assert soft.p_value(doubtful, key) < soft.p_value(sure, key)
    assert soft.score(doubtful, key) > soft.score(sure, key)


def test_unmarked_logits_fire_at_the_nominal_rate() -> None:
    rng = np.random.default_rng(1)
    key = rng.integers(0, 2, 24).tolist()
    found = [soft.p_value(y, key) for y in rng.normal(size=(1500, 24))]
    for alpha in (0.2, 0.05, 0.01):
        assert false_positives(found, alpha, confidence=0.999).nominal


def test_the_empirical_null_is_uniform_on_its_kind_and_never_below_its_resolution() -> None:
    rng = np.random.default_rng(2)
    keys = rng.integers(0, 2, (4000, 48))
    null = soft.EmpiricalNull.fit(3.0 * rng.standard_t(3, size=(4000, 48)), keys)
    fresh = 3.0 * rng.standard_t(3, size=(2000, 48))
    key = keys[0].tolist()
    found = [null.p_value(soft.score(y, key)) for y in fresh]
    for alpha in (0.1, 0.01):
        assert false_positives(found, alpha, confidence=0.9999).nominal
    assert null.p_value(1e9) == 1 / 4001
    assert null.p_value(-1e9) == 1.0


def test_no_logits_at_all_prove_nothing() -> None:
    assert soft.p_value(np.zeros(48), [1] * 48) == 1.0


@pytest.mark.parametrize("logits", [np.zeros(3), np.zeros((2, 4)), np.array([0.0, np.nan, 1.0, 2.0])])
def test_unusable_logits_are_refused(logits: np.ndarray) -> None:
    with pytest.raises(ShapeError):
        soft.p_value(logits, [0, 1, 1, 0])


def test_an_empirical_null_refuses_what_does_not_fit() -> None:
    with pytest.raises(ShapeError, match="keys"):
        soft.EmpiricalNull.fit(np.zeros((5, 8)), np.zeros(7))
    with pytest.raises(ShapeError, match="NaN"):
        soft.EmpiricalNull.fit(np.full((5, 8), np.nan), np.zeros(8))
