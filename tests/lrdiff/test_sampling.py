"""Samplers: agreement with diffusers' schedulers, exactness on a perfect denoiser, gradients, guidance."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from lrdiff.errors import Cancelled, ConfigError
from lrdiff.rng import stream
from lrdiff.sampling import SAMPLERS, ddim, ddim_step, dpm_solver_2m, draw, euler_flow, guided
from lrdiff.schedule import Prediction, Schedule

SD: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
EMPTY: dict[str, Tensor] = {}


def noise(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(3, 4, 5, 6, generator=stream(seed, "test"), dtype=dtype)


def network(x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
    """A smooth nonlinear stand-in for a denoiser that depends on everything it is given."""
    shift = cond["c"].view(-1, 1, 1, 1) if "c" in cond else 0.0
    return torch.tanh(x.roll(1, -1) * 0.7 + shift) + 0.2 * x * torch.cos(t.to(x) / 300.0).view(-1, 1, 1, 1)


def run_theirs(scheduler: Any, x: Tensor, rng: torch.Generator | None = None, **options: Any) -> Tensor:
    for t in scheduler.timesteps:
        out = network(x, t.expand(len(x)), EMPTY)
        extra = {"generator": rng} if rng is not None else {}
        x = scheduler.step(out, t, x, **extra, **options).prev_sample
    return x


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(("spacing", "n"), [("leading", 20), ("leading", 7), ("trailing", 20)])
@pytest.mark.parametrize("clean_end", [True, False])
def test_ddim_equals_diffusers(prediction: str, spacing: str, n: int, clean_end: bool) -> None:
    scheduler = DDIMScheduler(
        **SD,
        prediction_type=prediction,
        timestep_spacing=spacing,
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=clean_end,
    )
    scheduler.set_timesteps(n)
    schedule = Schedule.from_config(scheduler.config)
    scheduler.alphas_cumprod = schedule.alpha_bar  # float32 against float64 tables is measured in test_schedule
    scheduler.final_alpha_cumprod = torch.tensor(schedule.final_alpha_bar, dtype=torch.float64)
    x = noise(dtype=torch.float64)
    wanted = run_theirs(scheduler, x)
    got = ddim(network, x, EMPTY, None, schedule, schedule.timesteps(n), 1.0)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


def test_ddim_equals_diffusers_as_shipped_in_float32() -> None:
    scheduler = DDIMScheduler(**SD, steps_offset=1, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(20)
    schedule = Schedule.from_config(scheduler.config)
    got = ddim(network, noise(), EMPTY, None, schedule, schedule.timesteps(20), 1.0)
    wanted = run_theirs(scheduler, noise())
    assert float((got - wanted).abs().max() / wanted.abs().max()) < 1e-5


def test_ddim_with_eta_equals_diffusers() -> None:
    scheduler = DDIMScheduler(**SD, steps_offset=1, clip_sample=False)
    scheduler.set_timesteps(10)
    schedule = Schedule.from_config(scheduler.config)
    x = noise()
    wanted = run_theirs(scheduler, x, torch.Generator().manual_seed(5), eta=0.8)
    rng = torch.Generator().manual_seed(5)
    got = ddim(network, x, EMPTY, None, schedule, schedule.timesteps(10), 1.0, eta=0.8, rng=rng)
    assert float((got - wanted).abs().max() / wanted.abs().max()) < 1e-5
    other = ddim(network, x, EMPTY, None, schedule, schedule.timesteps(10), 1.0)
    assert float((got - other).abs().max()) > 0.01


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_dpm_solver_equals_diffusers(prediction: str, spacing: str, n: int) -> None:
    scheduler = DPMSolverMultistepScheduler(**SD, prediction_type=prediction, timestep_spacing=spacing, steps_offset=1)
    scheduler.set_timesteps(n)
    schedule = Schedule.from_config(scheduler.config)
    got = dpm_solver_2m(network, noise(), EMPTY, None, schedule, scheduler.timesteps, 1.0)
    wanted = run_theirs(scheduler, noise())
    assert float((got - wanted).abs().max() / wanted.abs().max()) < 1e-5


def test_dpm_solver_starts_from_a_sample_without_signal() -> None:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    schedule = Schedule.from_betas(betas, "v_prediction", zero_snr=True, spacing="trailing")
    times = schedule.timesteps(25)
    assert float(schedule.scales(times[0])[0]) == 0.0
    got = dpm_solver_2m(network, noise(), EMPTY, None, schedule, times, 1.0)
    fine = ddim(network, noise(), EMPTY, None, schedule, schedule.timesteps(1000), 1.0)
    coarse = ddim(network, noise(), EMPTY, None, schedule, times, 1.0)
    assert bool(torch.isfinite(got).all())
    assert float((got - fine).norm()) < 0.5 * float((coarse - fine).norm())  # second order beats first


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_equals_diffusers(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / 12, 12).tolist())
    schedule = Schedule.from_config(scheduler.config)
    wanted = run_theirs(scheduler, noise())
    got = euler_flow(network, noise(), EMPTY, None, schedule, schedule.timesteps(12), 1.0)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_ddim_on_a_flow_schedule_is_euler() -> None:
    schedule = Schedule.flow(shift=2.0)
    x = noise(dtype=torch.float64)
    arguments = (x, EMPTY, None, schedule, schedule.timesteps(9), 1.0)
    torch.testing.assert_close(ddim(network, *arguments), euler_flow(network, *arguments), rtol=1e-10, atol=1e-10)


def perfect(schedule: Schedule, x0: Tensor) -> Any:
    """Return the denoiser that knows the one clean sample of its data set."""

    def predict(x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        t = t.double() if schedule.prediction == "flow" else t
        a, s = (value.view(-1, 1, 1, 1) for value in schedule.scales(t))
        return schedule.target(x0, (x - a * x0) / s, t)

    return predict


@pytest.mark.parametrize(
    ("name", "prediction"),
    [*itertools.product(("ddim", "dpm++2m"), ("epsilon", "v_prediction", "sample", "flow")), ("euler", "flow")],
)
@pytest.mark.parametrize("n", [1, 3, 30])
def test_a_perfect_denoiser_is_recovered_exactly(name: str, prediction: Prediction, n: int) -> None:
    schedule = Schedule.flow() if prediction == "flow" else _discrete(prediction)
    x0, x = noise(1, torch.float64), noise(2, torch.float64)
    for spacing in ("trailing", "linspace"):
        times = schedule.timesteps(n, spacing)
        got = SAMPLERS[name](perfect(schedule, x0), x, EMPTY, None, schedule, times, 1.0)
        torch.testing.assert_close(got, x0, rtol=0, atol=1e-5 if prediction == "flow" else 1e-9)


def _discrete(prediction: Prediction) -> Schedule:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    return Schedule.from_betas(betas, prediction)


def test_guidance_is_one_call_with_the_unconditional_half_first() -> None:
    calls: list[tuple[int, Tensor]] = []

    def predict(x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        calls.append((len(x), cond["c"]))
        return network(x, t, cond)

    x, t = noise(), torch.tensor(400)
    cond, uncond = {"c": torch.tensor([0.1, 0.2, 0.3])}, {"c": torch.tensor([-0.1, -0.2, -0.3])}
    got = guided(predict, x, t, cond, uncond, 4.0)
    assert len(calls) == 1
    assert calls[0][0] == 6
    assert torch.equal(calls[0][1], torch.cat([uncond["c"], cond["c"]]))
    low, high = (network(x, t.expand(3), c) for c in (uncond, cond))
    torch.testing.assert_close(got, low + 4.0 * (high - low))
    torch.testing.assert_close(guided(predict, x, t, cond, uncond, 0.0), low)
    assert torch.equal(guided(predict, x, t, cond, None, 1.0), high)
    with pytest.raises(ConfigError, match="negative prompt"):
        guided(predict, x, t, cond, None, 2.0)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_gradient_of_the_chain_equals_finite_differences(name: str) -> None:
    schedule = Schedule.flow() if name == "euler" else _discrete("epsilon")
    x = noise(dtype=torch.float64)[:1, :1, :2, :2]
    cond, uncond = {"c": torch.tensor([0.3])}, {"c": torch.tensor([0.0])}

    def chain(x: Tensor, weight: Tensor) -> Tensor:
        def predict(x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
            return network(x * weight, t, cond)

        return SAMPLERS[name](predict, x, cond, uncond, schedule, schedule.timesteps(3, "trailing"), 1.5)

    inputs = (x.clone().requires_grad_(), torch.tensor(0.8, dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradcheck(chain, inputs, eps=1e-6, atol=1e-5, rtol=1e-4)


def test_without_the_networks_jacobian_the_ddim_gradient_is_the_sigma_difference() -> None:
    schedule = _discrete("epsilon")
    times = schedule.timesteps(10, "trailing")
    outs = [torch.zeros(1, 1, 1, 1, dtype=torch.float64, requires_grad=True) for _ in times]
    queue = iter(outs)
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    x0 = ddim(lambda x, t, cond: next(queue), x, EMPTY, None, schedule, times, 1.0)
    gradients = torch.autograd.grad(x0.sum(), outs)
    a, s = schedule.scales(times)
    sigma = torch.cat([s / a, torch.zeros(1, dtype=torch.float64)])
    torch.testing.assert_close(torch.cat([g.view(1) for g in gradients]), sigma[1:] - sigma[:-1])


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_the_callback_sees_every_step_and_can_stop(name: str) -> None:
    schedule = Schedule.flow() if name == "euler" else _discrete("epsilon")
    times = schedule.timesteps(4, "trailing")
    events: list[dict[str, Any]] = []
    x = SAMPLERS[name](network, noise(), EMPTY, None, schedule, times, 1.0, callback=events.append)
    assert [event["step"] for event in events] == [0, 1, 2, 3]
    assert [event["t"] for event in events] == times.tolist()
    assert {event["steps"] for event in events} == {4}
    assert torch.equal(events[-1]["x"], x)
    assert events[0]["x0"].shape == events[0]["out"].shape == x.shape

    def stop(event: dict[str, Any]) -> None:
        if event["step"] == 1:
            raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        SAMPLERS[name](network, noise(), EMPTY, None, schedule, times, 1.0, callback=stop)


def test_settings_without_effect_are_refused() -> None:
    schedule, times = _discrete("epsilon"), torch.tensor([500, 100])
    rng = torch.Generator().manual_seed(0)
    with pytest.raises(ConfigError, match="deterministic"):
        dpm_solver_2m(network, noise(), EMPTY, None, schedule, times, 1.0, eta=0.5, rng=rng)
    with pytest.raises(ConfigError, match="random generator"):
        ddim(network, noise(), EMPTY, None, schedule, times, 1.0, eta=0.5)
    with pytest.raises(ConfigError, match="outside 0"):
        ddim(network, noise(), EMPTY, None, schedule, times, 1.0, eta=1.5, rng=rng)
    with pytest.raises(ConfigError, match="discrete schedules"):
        ddim(network, noise(), EMPTY, None, Schedule.flow(), times.double(), 1.0, eta=0.5, rng=rng)
    with pytest.raises(ConfigError, match="flow models"):
        euler_flow(network, noise(), EMPTY, None, schedule, times, 1.0)
    with pytest.raises(ConfigError, match="needs noise"):
        ddim_step(schedule, noise(), noise(1), times[0], times[1], eta=1.0)


def test_noise_from_one_generator_per_sample_does_not_depend_on_the_batch() -> None:
    x = noise()
    whole = draw(x, [stream(seed, "s") for seed in (1, 2, 3)])
    alone = draw(x[1:2], [stream(2, "s")])
    assert torch.equal(whole[1:2], alone)
    assert not torch.equal(whole[0], whole[1])
    assert draw(x, stream(1, "s")).shape == x.shape
