"""The sums of the cost bench are what a trajectory really calls, and its shares are the schedule's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lrdiff import backbones
from lrdiff.alignprop.trajectory import Gradients, rollout
from lrdiff.inject import inject
from lrdiff.rng import stream
from lrdiff.schedule import Schedule
from tests.bench.alignprop_cost import Call, plans, reach
from tests.bench.alignprop_jpeg import correlation
from tests.bench.alignprop_stop import row
from tests.tiny import build_tiny_model
from trainers.alignprop.config import AlignPropSettings

STEPS = 6


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.mark.parametrize(
    ("name", "gradients"),
    [
        ("last-k, k = 1", Gradients("last-k", 1)),
        ("last-k, k = 5", Gradients("last-k", 5)),
        ("lv, 2 repeats", Gradients("lv", repeats=2)),
        ("spaced, k = 4", Gradients("spaced", 4)),
        ("sparse, k = 4", Gradients("sparse", 4)),
        ("last-k, k = T (full graph)", Gradients("last-k", STEPS)),
    ],
)
def test_the_sum_over_calls_is_what_a_trajectory_costs(tiny_model: Path, name: str, gradients: Gradients) -> None:
    backbone = backbones.load(tiny_model)
    inject(
        backbone.denoiser, AlignPropSettings().adapter_settings().peft(backbone.target_layers("attention")), "default"
    )
    with torch.no_grad():
        cond, uncond = (backbone.condition([text]) for text in ("a red cube", ""))
    noise = torch.randn(1, *backbone.latent_shape, generator=stream(0, "n"))

    def counted(work: Any) -> float:
        with FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops() / 1e12

    x = noise.clone().requires_grad_()
    out: list[torch.Tensor] = []
    forward = counted(lambda: out.append(backbone.predict(x, torch.tensor([500]), cond)))
    call = Call(forward, counted(lambda: out[0].sum().backward()), 0.0)

    def trajectory() -> None:
        times = backbone.schedule.timesteps(STEPS, "trailing")
        rollout(
            backbone.predict, noise, cond, uncond, backbone.schedule, times, 3.0, gradients, stream(0, "r")
        ).sum().backward()  # fmt: skip

    expected = plans(STEPS)[name].total(2, call, Call(0.0, 0.0, 0.0))
    # The first step with gradient needs none of its input, so a little less.
    assert 0.93 * expected < counted(trajectory) <= 1.001 * expected


def test_the_reach_of_steps_is_their_share_of_the_way() -> None:
    flow = Schedule.flow()
    assert reach(flow, 10, frozenset({9})) == pytest.approx(0.1)
    assert reach(flow, 10, frozenset(range(10))) == pytest.approx(1.0)
    assert reach(Schedule.flow(shift=3.0), 28, frozenset({27})) == pytest.approx(0.1, abs=1e-6)


def test_rank_correlation() -> None:
    values = torch.tensor([3.0, 1.0, 2.0])
    assert correlation(values, values.exp()) == pytest.approx(1.0)
    assert correlation(values, -values) == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("pictures of one prompt differ by 0.1", [32, "diversity", 16, 0.25, 5.0, 0.5]),
        ("the monitor fell", [32, "prompt match", 16, 0.25, 5.0, 0.5]),
        ("", [32, "no limit", 32, 0.5, -25.0, 0.1]),
    ],
)
def test_what_is_kept_is_the_look_before_a_limit(reason: str, expected: list[Any]) -> None:
    names = ("pictures", "brightness", "match", "diversity")
    looks = [(0, 0.25, 0.75, 1.0), (16, 0.5, 0.8, 0.5), (32, 0.75, 0.5, 0.1)]
    found = {"looks": [dict(zip(names, look, strict=True)) for look in looks], "reason": reason}
    assert row("brightness", found) == pytest.approx(expected)
