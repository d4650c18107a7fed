"""Gradients through the sampler: exact, in every mode, against closed forms and the full graph."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from lrdiff.alignprop.trajectory import Gradients, rollout
from lrdiff.alignprop.windows import MODES, Mode, draw_window
from lrdiff.errors import ConfigError
from lrdiff.rng import stream
from lrdiff.sampling import ddim, ddim_step
from lrdiff.schedule import Schedule

STEPS = 6
SCHEDULES = {
    "epsilon": Schedule.from_betas(torch.linspace(1e-3, 2e-2, 60, dtype=torch.float64), spacing="trailing"),
    "v": Schedule.from_betas(torch.linspace(1e-3, 2e-2, 60, dtype=torch.float64), "v_prediction", zero_snr=True),
    "flow": Schedule.flow(steps=60, shift=3.0),
}


class Linear(torch.nn.Module):
    """out = w x + u c: every gradient has a closed form. Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.u = torch.nn.Parameter(torch.tensor(-0.4, dtype=torch.float64))
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        self.calls += 1
        return self.w * x + self.u * cond["c"]


class Bent(torch.nn.Module):
    """A network that is not linear in its input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = torch.nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        return torch.tanh(self.inner(x) + cond["c"] * (1 + t[:, None] / 60))


def given(batch: int = 3) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    rng = stream(0, "x")
    x, c = (torch.randn(batch, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    return x, {"c": c}, {"c": torch.zeros_like(c)}


def gradient(network: torch.nn.Module, value: Tensor) -> dict[str, Tensor]:
    names = [name for name, _ in network.named_parameters()]
    return dict(zip(names, torch.autograd.grad(value, list(network.parameters()), retain_graph=True), strict=True))


def coefficients(schedule: Schedule, times: Tensor) -> list[tuple[float, float]]:
    """Return A_i and B_i of every step, by trying it on 1 and 0."""
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    after = [*times[1:], None]
    return [
        (float(ddim_step(schedule, one, zero, t, n)[0]), float(ddim_step(schedule, zero, one, t, n)[0]))
        for t, n in zip(times, after, strict=True)
    ]


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("mode", ["last-k", "sparse"])
def test_all_steps_give_the_full_graph_or_its_straight_part(kind: str, mode: Mode) -> None:
    schedule, network = SCHEDULES[kind], Bent()
    x, cond, uncond = given()
    times = schedule.timesteps(STEPS, "trailing")
    whole = ddim(network, x, cond, uncond, schedule, times, 3.0)
    ours = rollout(network, x, cond, uncond, schedule, times, 3.0, Gradients(mode, STEPS), stream(0, "r"))
    torch.testing.assert_close(ours, whole, rtol=1e-12, atol=1e-12)
    if mode == "last-k":
        expected, found = gradient(network, whole.square().sum()), gradient(network, ours.square().sum())
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_of_a_linear_network_is_its_closed_form(kind: str, mode: Mode) -> None:
    schedule, network = SCHEDULES[kind], Linear()
    x, cond, _ = given()
    times = schedule.timesteps(STEPS, "trailing")
    settings = Gradients(mode, 3, repeats=1)
    samples = rollout(network, x, cond, None, schedule, times, 1.0, settings, stream(0, "r"))
    rng = stream(0, "r")
    window = draw_window(mode, STEPS, 3, rng)
    w, u, c = network.w.item(), network.u.item(), cond["c"]
    steps = coefficients(schedule, times)
    path = [x]
    for a, b in steps:
        path.append(a * path[-1] + b * (w * path[-1] + u * c))
    torch.testing.assert_close(samples[: len(x)], path[-1])

    def reached(path: list[Tensor], chosen: frozenset[int], first: int) -> Tensor:
        """Sum over chosen steps of what d out / d w = x_i becomes until the end."""
        total = torch.zeros_like(x)
        for i in sorted(chosen):
            factor = steps[i][1]
            for j in range(i + 1, STEPS):
                chained = mode not in ("spaced", "sparse") and j in chosen
                factor *= steps[j][0] + (steps[j][1] * w if chained else 0.0)
            total += factor * path[i - first]
        return total

    expected = reached(path, window, 0)
    if mode == "lv":
        noisy = schedule.add_noise(path[-1], torch.randn(x.shape, generator=rng, dtype=torch.float64), times[-1])
        expected = torch.cat([expected, reached([noisy], window, STEPS - 1)])
    weights = torch.randn(samples.shape, generator=stream(1, "g"), dtype=torch.float64)
    torch.testing.assert_close(gradient(network, (weights * samples).sum())["w"], (weights * expected).sum())


@pytest.mark.parametrize("mode", MODES)
def test_steps_outside_the_window_contribute_nothing(mode: Mode) -> None:
    """Each step reads a parameter of its own."""
    schedule = SCHEDULES["v"]
    times = schedule.timesteps(STEPS, "trailing")
    own = torch.full((STEPS,), 0.5, dtype=torch.float64, requires_grad=True)

    def network(x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        return own[int((times == int(t[0])).nonzero())] * x + cond["c"]

    x, cond, _ = given()
    for number in range(8):
        samples = rollout(network, x, cond, None, schedule, times, 1.0, Gradients(mode, 3), stream(number, "r"))
        (found,) = torch.autograd.grad(samples.sum(), own)
        window = draw_window(mode, STEPS, 3, stream(number, "r"))
        assert {i for i in range(STEPS) if float(found[i]) != 0.0} == window


def test_spaced_and_sparse_are_the_same_gradient() -> None:
    schedule, network = SCHEDULES["flow"], Bent()
    x, cond, uncond = given()
    times = schedule.timesteps(STEPS, "trailing")
    found = []
    modes: list[Mode] = ["spaced", "sparse"]
    for mode in modes:
        samples = rollout(network, x, cond, uncond, schedule, times, 2.0, Gradients(mode, 3), stream(0, "r"))
        found.append((samples, gradient(network, samples.square().sum())))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_recomputing_changes_no_bit(mode: Mode) -> None:
    schedule, network = SCHEDULES["v"], Bent()
    x, cond, uncond = given()
    times = schedule.timesteps(STEPS, "trailing")
    results = []
    for recompute in (False, True):
        settings = Gradients(mode, 4, recompute=recompute)
        samples = rollout(network, x, cond, uncond, schedule, times, 3.0, settings, stream(3, "r"))
        results.append((samples, gradient(network, samples.square().sum())))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(results[0][1][name], results[1][1][name]) for name in results[0][1])


def test_recomputing_keeps_memory_flat() -> None:
    """Bytes that autograd keeps, between 1 and 30 steps with gradient."""
    schedule = SCHEDULES["v"]
    times = schedule.timesteps(30, "trailing")
    torch.manual_seed(0)
    deep = torch.nn.Sequential(*[torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU()) for _ in range(8)])

    def kept(k: int, recompute: bool) -> int:
        seen: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            x = torch.randn(256, 64, generator=stream(0, "x"))
            rollout(
                lambda x, t, c: deep(x), x, {}, None, schedule, times, 1.0,
                Gradients("last-k", k, recompute=recompute), stream(0, "r"),
            )  # fmt: skip
        return sum(seen.values())

    assert kept(30, False) > 20 * kept(1, False)
    assert kept(30, True) < 5 * kept(1, False)


def test_a_detached_negative_branch_keeps_samples_and_the_positive_gradient() -> None:
    schedule, network = SCHEDULES["v"], Linear()
    x, cond, uncond = given()
    times = schedule.timesteps(STEPS, "trailing")
    samples, found = [], []
    for detach in (False, True):
        settings = Gradients("last-k", 1, detach_negative=detach)
        samples.append(rollout(network, x, cond, uncond, schedule, times, 3.0, settings, stream(0, "r")))
        found.append(gradient(network, samples[-1].sum()))
    torch.testing.assert_close(samples[0], samples[1])
    # u meets only the positive branch, whose condition is not zero; w meets both, with weights 3 and 1 - 3.
    torch.testing.assert_close(found[0]["u"], found[1]["u"])
    torch.testing.assert_close(found[1]["w"], 3 * found[0]["w"])


def test_lv_makes_the_last_step_again_from_other_noise() -> None:
    schedule, network = SCHEDULES["epsilon"], Bent()
    x, cond, _ = given(2)
    times = schedule.timesteps(STEPS, "trailing")
    samples = rollout(network, x, cond, None, schedule, times, 1.0, Gradients("lv", repeats=3), stream(0, "r"))
    assert samples.shape == (8, 4)
    assert len({tuple(row.tolist()) for row in samples.detach()}) == 8


def test_an_early_stop_returns_the_estimate_of_that_step() -> None:
    schedule, network = SCHEDULES["flow"], Bent()
    x, cond, _ = given()
    times = schedule.timesteps(STEPS, "trailing")
    estimates: list[Tensor] = []
    ddim(network, x, cond, None, schedule, times, 1.0, callback=lambda step: estimates.append(step["x0"]))
    for stop, k in ((1, 1), (4, 2), (STEPS, 2)):
        found = rollout(
            network, x, cond, None, schedule, times, 1.0, Gradients("spaced", k), stream(0, "r"), stop_after=stop
        )
        torch.testing.assert_close(found, estimates[stop - 1])
        assert any(bool(g.abs().sum() > 0) for g in gradient(network, found.sum()).values())


def test_windows() -> None:
    rng = stream(0, "w")
    assert draw_window("last-k", 10, 3, rng) == {7, 8, 9}
    assert draw_window("lv", 10, 3, rng) == {9}
    assert draw_window("spaced", 10, 2, rng) == {4, 9}
    assert draw_window("sparse", 10, 10, rng) == set(range(10))
    counts = [len(draw_window("random-k", 10, 10, rng)) for _ in range(500)]
    assert set(counts) == set(range(1, 11))
    assert sum(counts) / 500 == pytest.approx(5.5, abs=0.5)
    drawn = [draw_window("random-per-step", 9, 9, rng) for _ in range(2000)]
    for step in (0, 4, 8):
        assert sum(step in window for window in drawn) / 2000 == pytest.approx((step + 1) / 10, abs=0.04)


@pytest.mark.parametrize(("mode", "k"), [("last-k", 0), ("last-k", 7), ("sparse", 99), ("all", 1)])
def test_what_does_not_fit_is_refused(mode: str, k: int) -> None:
    with pytest.raises(ConfigError, match=r"1 to 6|is unknown"):
        draw_window(mode, 6, k, stream(0, "w"))  # pyright: ignore[reportArgumentType]


def test_an_early_stop_is_only_for_spaced() -> None:
    schedule, network = SCHEDULES["flow"], Bent()
    x, cond, _ = given()
    cases: list[tuple[Mode, int]] = [("last-k", 2), ("spaced", 0), ("spaced", STEPS + 1)]
    for mode, stop in cases:
        with pytest.raises(ConfigError, match="spaced"):
            rollout(
                network, x, cond, None, schedule, schedule.timesteps(STEPS, "trailing"), 1.0,
                Gradients(mode, 1), stream(0, "r"), stop_after=stop,
            )  # fmt: skip
    with pytest.raises(ConfigError, match="k = 3: of 2 sampling steps"):
        rollout(
            network, x, cond, None, schedule, schedule.timesteps(STEPS, "trailing"), 1.0, Gradients("spaced", 3),
            stream(0, "r"), stop_after=2,
        )  # fmt: skip
    with pytest.raises(ConfigError, match="at least once"):
        Gradients("lv", repeats=0)
