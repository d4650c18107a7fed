"""Noise schedules: agreement with diffusers, exact conversions, refused configs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from lrdiff.errors import ConfigError, ModelError
from lrdiff.rng import stream
from lrdiff.schedule import Prediction, Schedule

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample", "flow")


def make(prediction: Prediction, *, zero_snr: bool = False) -> Schedule:
    if prediction == "flow":
        return Schedule.flow(shift=3.0)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    return Schedule.from_betas(betas, prediction, zero_snr=zero_snr, steps_offset=1)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_tables_equal_diffusers(kind: str, zero_snr: bool) -> None:
    config = {**SD, "beta_schedule": kind, "rescale_betas_zero_snr": zero_snr, "prediction_type": "v_prediction"}
    theirs = DDIMScheduler(**config)
    ours = Schedule.from_config(theirs.config)
    assert ours.alpha_bar is not None
    torch.testing.assert_close(ours.alpha_bar.float(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-6)
    assert ours.alpha_bar.dtype == torch.float64
    if zero_snr:
        assert float(ours.alpha_bar[-1]) == 0.0


def test_config_of_another_class_with_its_defaults_is_read() -> None:
    schedule = Schedule.from_config(DPMSolverMultistepScheduler(**SD).config)
    assert (schedule.spacing, schedule.final_alpha_bar, schedule.prediction) == ("linspace", 1.0, "epsilon")
    assert Schedule.from_config(DDPMScheduler(trained_betas=[0.1, 0.2, 0.3]).config).steps == 3
    flow = Schedule.from_config(FlowMatchEulerDiscreteScheduler(shift=3.0).config)
    assert (flow.prediction, flow.shift, flow.steps) == ("flow", 3.0, 1000)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_conversions_undo_the_target_exactly(prediction: Prediction) -> None:
    schedule, rng = make(prediction), stream(0, "test")
    x0, eps = (torch.randn(64, 2, 3, 3, generator=rng, dtype=torch.float64) for _ in range(2))
    t = schedule.draw_times(64, rng)
    x, out = schedule.add_noise(x0, eps, t), schedule.target(x0, eps, t)
    torch.testing.assert_close(schedule.to_x0(x, out, t), x0, rtol=0, atol=1e-10)
    torch.testing.assert_close(schedule.to_eps(x, out, t), eps, rtol=0, atol=1e-10)


def test_targets_are_the_textbook_ones() -> None:
    x0, eps, t = torch.tensor([[2.0]]), torch.tensor([[3.0]]), torch.tensor([400])
    for prediction in ("epsilon", "sample", "v_prediction"):
        schedule = make(prediction)
        a, s = (float(value) for value in schedule.scales(t))
        assert a * a + s * s == pytest.approx(1.0, abs=1e-12)
        wanted = {"epsilon": 3.0, "sample": 2.0, "v_prediction": a * 3.0 - s * 2.0}[prediction]
        assert float(schedule.target(x0, eps, t)) == pytest.approx(wanted, rel=1e-6)
    flow = make("flow")
    assert float(flow.target(x0, eps, t)) == 1.0
    assert float(flow.add_noise(x0, eps, t)) == pytest.approx(0.6 * 2.0 + 0.4 * 3.0)


def test_add_noise_and_velocity_equal_diffusers() -> None:
    theirs = DDPMScheduler(**SD, prediction_type="v_prediction")
    ours, rng = Schedule.from_config(theirs.config), stream(1, "test")
    x0, eps = torch.randn(8, 4, 4, 4, generator=rng), torch.randn(8, 4, 4, 4, generator=rng)
    t = ours.draw_times(8, rng)
    torch.testing.assert_close(ours.add_noise(x0, eps, t), theirs.add_noise(x0, eps, t), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.target(x0, eps, t), theirs.get_velocity(x0, eps, t), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("n", [1, 2, 7, 20, 30, 1000])
def test_timesteps_equal_diffusers(spacing: Any, n: int) -> None:
    offset = 1 if spacing == "leading" and n < 1000 else 0
    theirs = DDIMScheduler(**SD, timestep_spacing=spacing, steps_offset=offset)
    theirs.set_timesteps(n)
    ours = Schedule.from_config(theirs.config).timesteps(n)
    if spacing == "linspace" and n == 1:
        assert ours.tolist() == [999]  # diffusers gives [0] here: one step from a clean sample
    else:
        assert ours.tolist() == theirs.timesteps.tolist()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_timesteps_equal_diffusers_with_flux_sigmas(shift: float) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(sigmas=torch.linspace(1, 1 / 28, 28).tolist())
    ours = Schedule.flow(shift=shift).timesteps(28)
    torch.testing.assert_close(ours.float(), theirs.timesteps, rtol=1e-5, atol=1e-3)
    assert float(Schedule.flow().timesteps(28, "linspace")[-1]) == pytest.approx(1.0)


def test_half_precision_is_computed_in_float32() -> None:
    schedule = make("epsilon")
    x0, eps = torch.randn(4, 2).bfloat16(), torch.randn(4, 2).bfloat16()
    t = torch.tensor([0, 10, 500, 999])
    exact = schedule.add_noise(x0.double(), eps.double(), t)
    mixed = schedule.add_noise(x0, eps, t)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed.double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weights_equal_the_papers_formulas(prediction: Prediction) -> None:
    schedule, t = make(prediction), torch.arange(0, 1000, 37)
    snr = schedule.snr(t)
    capped = snr.clamp(max=5.0)
    wanted = {"epsilon": capped / snr, "v_prediction": capped / (snr + 1), "sample": capped}[prediction]
    torch.testing.assert_close(schedule.min_snr_weight(t, 5.0), wanted.float(), rtol=1e-5, atol=1e-7)


def test_min_snr_weight_of_flow_weighs_the_error_of_x0() -> None:
    schedule, t = make("flow"), torch.tensor([100.0, 500.0, 900.0])
    s = t.double() / 1000
    torch.testing.assert_close(schedule.min_snr_weight(t), (((1 - s) / s).square().clamp(max=5.0) * s.square()).float())


def test_drawn_times_cover_the_schedule_and_repeat() -> None:
    schedule = make("epsilon")
    times = schedule.draw_times(20_000, stream(3, "times"))
    assert (int(times.min()), int(times.max())) == (0, 999)
    assert float(times.float().mean()) == pytest.approx(499.5, abs=6.2)  # 3 standard errors
    assert torch.equal(times, schedule.draw_times(20_000, stream(3, "times")))
    flow = Schedule.flow(shift=3.0).draw_times(20_000, stream(3, "times"))
    assert float(flow.min()) > 0
    assert float(flow.max()) <= 1000
    # E[3 u / (1 + 2 u)] for uniform u
    assert float(flow.mean()) == pytest.approx(1000 * (1.5 - 0.75 * math.log(3)), abs=6)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {**SD, "prediction_type": "epsilon", "rescale_betas_zero_snr": True, "num_train_timesteps": 1000},
            "zero term",
        ),
        ({**SD, "thresholding": True, "num_train_timesteps": 1000}, "thresholding"),
        ({**SD, "prediction_type": "score", "num_train_timesteps": 1000}, "'score' is unknown"),
        ({**SD, "beta_schedule": "sigmoid", "num_train_timesteps": 1000}, "'sigmoid' is unknown"),
        ({**SD, "timestep_spacing": "dense", "num_train_timesteps": 1000}, "'dense' is unknown"),
        ({"beta_schedule": "linear"}, "beta_start"),
        ({"shift": 1.0, "use_dynamic_shifting": True, "num_train_timesteps": 1000}, "resolution-dependent"),
    ],
)
def test_configs_nothing_here_can_do_are_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Schedule.from_config(config)


def test_impossible_step_counts_and_times_are_refused() -> None:
    schedule = make("epsilon")
    for n in (0, 1001):
        with pytest.raises(ConfigError, match="1 to 1000"):
            schedule.timesteps(n)
    with pytest.raises(ConfigError, match="use fewer"):
        schedule.timesteps(1000)  # the offset of 1 would leave the table
    with pytest.raises(ConfigError, match="trailing or linspace"):
        make("flow").timesteps(4, "leading")
    for t in (-1, 1000):
        with pytest.raises(ValueError, match="outside"):
            schedule.scales(t)
    with pytest.raises(ValueError, match="whole-number"):
        schedule.scales(0.5)
