"""Dynamic loss weights: scripted sequences, caps, bounds, resume."""

from __future__ import annotations

import itertools
import math
import random
from typing import Literal

import pytest
import torch

from lrdiff.errors import ConfigError, ShapeError
from lrdiff.watermark.dlws import LossWeights, Rules

PAPER = Rules(form="paper")
SHARP = Rules(smoothing=0.0)


@pytest.mark.parametrize("rules", [PAPER, SHARP], ids=["paper", "safe"])
def test_a_scripted_sequence_raises_the_weights_by_the_rule(rules: Rules) -> None:
    scheduler = LossWeights(rules)
    expected = (1.0, 0.0 if rules.form == "paper" else 0.6)
    script = [
        # PSNR, accuracy -> increments of the image's and the mark's weight
        (40.0, 0.50, 0.0, 0.6),  # mark missed
        (27.0, 0.50, 0.0, 0.6),  # both missed: the mark comes first
        (27.0, 0.95, 0.3, 0.0),  # only the picture missed
        (31.0, 0.95, 0.0, 0.0),  # both held
        (math.inf, 0.89, 0.0, 0.6),
    ]
    for psnr, accuracy, image, mark in script:
        scheduler.update(psnr, accuracy)
        expected = (expected[0] + image, expected[1] + mark)
        assert (scheduler.image, scheduler.mark) == pytest.approx(expected)
    total = 1.0 if rules.form == "paper" else sum(expected)
    assert scheduler.weights == pytest.approx((expected[0] / total, expected[1] / total))


def test_below_the_floor_the_mark_fades_with_what_is_missing_and_comes_back_with_the_picture() -> None:
    scheduler = LossWeights(Rules())
    for psnr, missing in ((25.9, 0.1), (25.9, 0.1), (30.0, 0.0)):
        before = scheduler.image, scheduler.mark
        scheduler.update(psnr, 0.5)
        raised = (0.6, 0.0) if missing else (0.0, 0.6)
        assert (scheduler.image, scheduler.mark) == pytest.approx([b + r for b, r in zip(before, raised, strict=True)])
        image, mark = scheduler.weights
        assert image + mark == pytest.approx(1.0)
        assert mark / image == pytest.approx(scheduler.mark / scheduler.image * 0.1**missing)
    scheduler.update(24.0, 0.5)
    # Half of the newest error, a quarter of the one before, ...
    old = (10**-3 / 4 + (1 / 8 + 1 / 16) * 10**-2.59 + 10**-2.4 / 2) / (1 - 1 / 16)
    image, mark = scheduler.weights
    assert mark / image == pytest.approx(scheduler.mark / scheduler.image * 0.1 ** (26 + 10 * math.log10(old)))


@pytest.mark.parametrize("rules", [PAPER, SHARP], ids=["paper", "safe"])
def test_targets_rise_after_patience_and_a_miss_starts_the_count_again(rules: Rules) -> None:
    scheduler = LossWeights(rules)
    for _ in range(4):
        scheduler.update(30.5, 0.95)
    assert (scheduler.held_image, scheduler.held_mark) == (4, 4)
    scheduler.update(29.0, 0.95)
    assert (scheduler.held_image, scheduler.held_mark) == (0, 0)
    assert scheduler.accuracy == pytest.approx(0.98)
    assert scheduler.psnr == 30.0
    for _ in range(5):
        scheduler.update(30.5, 0.5)
    assert scheduler.psnr == 32.5
    assert scheduler.held_mark == 0


def test_the_papers_accuracy_target_passes_one_and_its_weight_grows_without_bound() -> None:
    """The reason for the safe form."""
    scheduler = LossWeights(PAPER)
    for _ in range(1000):
        scheduler.update(40.0, 1.0)
    assert scheduler.accuracy == pytest.approx(1.06)
    assert scheduler.mark > 500


def test_the_safe_targets_stop_at_their_caps_and_are_reachable_with_smoothing() -> None:
    scheduler = LossWeights()
    noise = random.Random(0)
    for _ in range(500):
        # One of 192 bits is wrong in every second batch.
        scheduler.update(36.0 + noise.random(), 1.0 - (noise.random() < 0.5) / 192)
        assert scheduler.accuracy <= scheduler.rules.accuracy_cap < 1.0
        assert scheduler.psnr <= scheduler.rules.psnr_cap
    assert (scheduler.accuracy, scheduler.psnr) == (scheduler.rules.accuracy_cap, scheduler.rules.psnr_cap)
    before = (scheduler.image, scheduler.mark)
    scheduler.update(36.0, 1.0)
    assert (scheduler.image, scheduler.mark) == before, "both targets hold, so nothing is raised any more"


def test_first_targets_above_the_caps_are_lowered_to_them() -> None:
    scheduler = LossWeights(Rules(psnr=40.0, accuracy=0.99, psnr_cap=35.0, accuracy_cap=0.95))
    assert (scheduler.psnr, scheduler.accuracy) == (35.0, 0.95)


def test_one_noisy_batch_decides_nothing() -> None:
    calm, noisy = LossWeights(), LossWeights()
    for step in range(60):
        for scheduler in (calm, noisy):
            scheduler.update(34.0, 0.96)
        if step == 40:
            noisy.accuracy = calm.accuracy = 0.9
            noisy.update(34.0, 0.80)
            calm.update(34.0, 0.96)
            assert noisy.mark == calm.mark
    unsmoothed = LossWeights(SHARP)
    for _ in range(3):
        unsmoothed.update(34.0, 0.96)
    before = unsmoothed.mark
    unsmoothed.update(34.0, 0.80)
    assert unsmoothed.mark == pytest.approx(before + 0.6)


def test_fifteen_thousand_steps_stay_bounded_and_still_answer() -> None:
    """A model of training in which the error grows and accuracy rises with the mark's share of the weight."""
    scheduler = LossWeights()
    noise = random.Random(1)
    share = 0.5
    for _ in range(15_000):
        share += 0.05 * (scheduler.weights[1] - share)
        accuracy = min(1.0, max(0.0, 0.5 + 0.55 * share + noise.gauss(0, 0.01)))
        scheduler.update(45 - 14 * share + noise.gauss(0, 0.3), accuracy)
        assert sum(scheduler.weights) == pytest.approx(1.0)
        assert scheduler.image + scheduler.mark <= scheduler.rules.memory + 1e-9
    before = scheduler.weights[1]
    for _ in range(100):
        scheduler.update(40.0, 0.6)
    assert scheduler.weights[1] > before + 0.1, "after thousands of steps the weights still follow what is measured"


@pytest.mark.parametrize(("form", "kept"), [("paper", False), ("safe", True)])
def test_a_mark_out_of_reach_spoils_the_picture_only_in_the_papers_form(
    form: Literal["paper", "safe"], kept: bool
) -> None:
    """A decoder whose picture gets worse the more the mark weighs, and which never reads more than 0.8 of the bits."""
    scheduler, psnr = LossWeights(Rules(form=form)), 40.0
    for _ in range(3000):
        image, mark = scheduler.weights
        psnr += 0.05 * ((20.0 if mark > image else 40.0) - psnr)
        scheduler.update(psnr, 0.8)
    assert (psnr > 24.0) == kept


def test_a_target_out_of_reach_leaves_finite_weights() -> None:
    scheduler = LossWeights()
    for _ in range(15_000):
        scheduler.update(27.0, 0.7)
    image, mark = scheduler.weights
    assert mark == pytest.approx(1.0)
    assert 0.0 < image + 1e-300 < 1e-3
    for _ in range(200):
        scheduler.update(20.0, 1.0)
    assert scheduler.weights[0] > 0.5, "and they come back"


@pytest.mark.parametrize("rules", [PAPER, Rules()], ids=["paper", "safe"])
def test_a_checkpoint_continues_exactly(rules: Rules) -> None:
    noise = random.Random(2)
    script = [(25 + 12 * noise.random(), 0.8 + 0.2 * noise.random()) for _ in range(80)]
    whole, first = LossWeights(rules), LossWeights(rules)
    for psnr, accuracy in script:
        whole.update(psnr, accuracy)
    for psnr, accuracy in itertools.islice(script, 37):
        first.update(psnr, accuracy)
    second = LossWeights(rules)
    second.load_state(first.state())
    for psnr, accuracy in script[37:]:
        second.update(psnr, accuracy)
    assert torch.equal(second.state(), whole.state())
    assert second.weights == whole.weights


def test_impossible_rules_and_measures_are_refused() -> None:
    for name, value in {"gamma": 0.0, "patience": 0, "accuracy_cap": 1.0, "smoothing": 1.0, "memory": 1.0}.items():
        with pytest.raises(ConfigError, match=name):
            Rules(**{name: value})
    for psnr, accuracy in ((math.nan, 0.5), (30.0, 1.5), (30.0, math.nan)):
        with pytest.raises(ShapeError, match="loss weights"):
            LossWeights().update(psnr, accuracy)
    with pytest.raises(ShapeError, match="10 numbers"):
        LossWeights().load_state(torch.zeros(3))
