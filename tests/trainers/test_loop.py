"""The loop: accumulation, learning rate, groups, finite checks, hooks, random numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lrdiff.errors import ConfigError, NonFiniteError
from tests.trainers.line import Line, LineSettings, cpu, record_metrics, train
from trainers.config import OptimConfig
from trainers.loop import State, build_optimizer, checked_groups, lr_factor
from trainers.method import ParamGroup


def test_four_micro_batches_of_one_equal_one_of_four() -> None:
    logs: dict[int, list[dict[str, float]]] = {1: [], 4: []}
    methods = {1: Line(batch_size=4), 4: Line(batch_size=1)}
    for parts, method in methods.items():
        train(method, (record_metrics(logs[parts]),), accumulate=parts, clip=0.5)
    for whole, parts in zip(logs[1], logs[4], strict=True):
        assert whole.keys() == parts.keys() == {"step", "loss", "absolute", "grad_norm", "lr"}
        assert parts == pytest.approx(whole, rel=1e-5)
    assert torch.allclose(methods[1].slope, methods[4].slope, rtol=1e-5)
    assert len(logs[1]) == 6
    assert any(row["grad_norm"] > 0.5 for row in logs[1]), "the norm before clipping is reported"


def test_metrics_are_those_of_the_step() -> None:
    method, log = Line(), []
    start = {name: p.detach().clone() for name, p in method.named_parameters()}
    train(method, (record_metrics(log),), steps=1, lr=1e-9)
    for name, parameter in method.named_parameters():
        parameter.data = start[name]
    loss, metrics = method(method.batch(0, torch.Generator()), torch.Generator())
    loss.backward()
    norm = torch.cat([method.slope.grad, method.offset.grad.reshape(1)]).norm()  # pyright: ignore
    assert log[0]["loss"] == pytest.approx(float(loss.detach()))
    assert log[0]["absolute"] == pytest.approx(float(metrics["absolute"]))
    assert log[0]["grad_norm"] == pytest.approx(float(norm))


def test_clipping_changes_the_gradient_that_is_used() -> None:
    # With beta1 = beta2 = 0 AdamW would hide the scale, so its first moment is looked at.
    moments = []
    for clip in (1e6, 0.01):
        state = train(Line(), steps=1, clip=clip)
        moments.append(torch.cat([m["exp_avg"].reshape(-1) for m in state.optimizer.state.values()]).norm() / 0.1)
    assert float(moments[1]) == pytest.approx(0.01, rel=1e-3)
    assert float(moments[0]) > 0.1


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_shape_of_the_learning_rate(schedule: str) -> None:
    optim = OptimConfig.model_validate({"steps": 50, "warmup": 10, "schedule": schedule})
    factors = [lr_factor(step, optim) for step in range(50)]
    assert factors[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert factors[10] == 1.0
    assert all(0.0 < factor <= 1.0 for factor in factors)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    middle = {"constant": 1.0, "linear": 0.5, "cosine": 0.5}[schedule]
    assert lr_factor(30, optim) == pytest.approx(middle)
    end = {"constant": 1.0, "linear": 0.0, "cosine": 0.0}[schedule]
    assert lr_factor(50, optim) == pytest.approx(end, abs=1e-12)


def test_cosine_is_a_cosine() -> None:
    optim = OptimConfig(steps=8, warmup=0)
    assert [lr_factor(s, optim) for s in range(8)] == pytest.approx(
        [(1 + math.cos(math.pi * s / 8)) / 2 for s in range(8)]
    )


def test_learning_rate_reaches_the_optimizer_per_group() -> None:
    seen = []

    def hook(state: State) -> None:
        seen.append([group["lr"] for group in state.optimizer.param_groups])

    state = train(Line(), (hook,), steps=4, warmup=1, schedule="constant", lr=0.1)
    assert seen[1:] == [pytest.approx(row) for row in ([0.05, 0.025], [0.1, 0.05], [0.1, 0.05], [0.1, 0.05])]
    assert state.metrics["lr"] == pytest.approx(0.1)


def test_weight_decay_leaves_out_the_groups_that_say_so() -> None:
    optim = OptimConfig(weight_decay=0.25, lr=1e-3, beta1=0.8, beta2=0.7)
    optimizer = build_optimizer(checked_groups(Line()), optim, cpu())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25, 0.0]
    assert [group["betas"] for group in optimizer.param_groups] == [(0.8, 0.7)] * 2
    plain, decayed = Line(), Line()
    train(plain, steps=1)
    train(decayed, steps=1, weight_decay=0.25)
    assert torch.allclose(plain.slope - decayed.slope, 0.25 * 0.05 * Line().slope, atol=1e-6)
    assert torch.equal(plain.offset, decayed.offset)


class Grouped(Line):
    """A line whose groups a test chooses."""

    groups: list[ParamGroup]

    def param_groups(self) -> list[ParamGroup]:
        return self.groups


def test_bad_groups_are_refused() -> None:
    method = Grouped()
    cases = [
        ([], "nothing to train"),
        ([ParamGroup("none", [])], "nothing to train"),
        ([ParamGroup("a", [method.slope]), ParamGroup("twice", [method.slope])], "'twice' repeats"),
        ([ParamGroup("twice", [method.slope, method.slope])], "'twice' repeats"),
        ([ParamGroup("cold", [method.slope, method.frozen])], "'cold' holds a frozen"),
    ]
    for groups, message in cases:
        method.groups = groups
        with pytest.raises(ConfigError, match=message):
            train(method)


def test_an_empty_group_beside_a_full_one_is_left_out() -> None:
    method = Grouped()
    method.groups = [ParamGroup("none", []), ParamGroup("slope", [method.slope])]
    state = train(method)
    assert [group.name for group in state.groups] == ["slope"]


def snapshot(method: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in method.parameters()]


def unchanged(method: nn.Module, before: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(method.parameters(), before, strict=True))


@pytest.mark.parametrize(("parts", "index"), [(1, 2), (4, 8), (4, 11)])
def test_a_bad_loss_stops_before_the_step(parts: int, index: int) -> None:
    method, kept = Line(), []
    method.bad_loss_at = index
    with pytest.raises(NonFiniteError, match=r"loss of step 3 is nan; the weights of step 2 are kept"):
        train(method, (lambda state: kept.append(snapshot(state.method)),), accumulate=parts)
    assert len(kept) == 3
    assert unchanged(method, kept[-1])


def test_a_bad_gradient_stops_before_the_step_and_names_the_group() -> None:
    method, kept = Line(), []
    method.bad_offset_at = 2
    with pytest.raises(NonFiniteError, match=r"gradient of step 3 is not finite in: offset;"):
        train(method, (lambda state: kept.append(snapshot(state.method)),))
    assert len(kept) == 3
    assert unchanged(method, kept[-1])


def test_frozen_parameters_stay() -> None:
    method = Line()
    train(method)
    assert float(method.frozen) == 2.0
    assert method.frozen.grad is None


def test_hooks_come_in_order_and_once_before_the_first_step() -> None:
    calls = []
    hooks = tuple(lambda state, name=name: calls.append((state.step, name)) for name in ("first", "second"))
    state = train(Line(), hooks, steps=2)
    assert calls == [(step, name) for step in range(3) for name in ("first", "second")]
    assert state.stop == ""


def test_a_reason_to_stop_ends_after_the_step() -> None:
    calls = []

    def stop(state: State) -> None:
        if state.step == 2:
            state.stop = "enough"

    state = train(Line(), (stop, lambda state: calls.append((state.step, state.stop))))
    assert (state.step, state.stop) == (2, "enough")
    assert calls[-1] == (2, "enough"), "later hooks see the reason at the same step"


def test_a_stop_before_the_first_step_trains_nothing() -> None:
    method = Line()
    before = snapshot(method)

    def stop(state: State) -> None:
        state.stop = "no"

    assert train(method, (stop,)).step == 0
    assert unchanged(method, before)


def test_method_is_in_training_mode_and_hears_of_every_step() -> None:
    class Listening(Line):
        heard: list[int]

        def stepped(self, step: int) -> None:
            self.heard.append(step)
            assert self.training

    method = Listening()
    method.heard = []
    method.eval()
    train(method, steps=3)
    assert method.heard == [1, 2, 3]
    assert method.seen == [0, 1, 2]


def test_global_randomness_is_seeded_by_position() -> None:
    """Dropout draws from the global generator: what others drew before must not matter."""
    results = []
    for disturbance in (0, 17):
        method = Line(LineSettings(dropout=0.5, noise=0.3))

        def disturb(state: State, count: int = disturbance) -> None:
            torch.rand(count + state.step)

        torch.manual_seed(disturbance)
        train(method, (disturb,))
        results.append(method.slope.detach().clone())
    assert torch.equal(*results)


def test_dropout_differs_from_step_to_step_and_from_seed_to_seed() -> None:
    from trainers.loop import fit

    method, seen = Line(LineSettings(dropout=0.5), batch_size=8), []
    method.dropout.register_forward_hook(lambda module, args, out: seen.append(out == 0))
    train(method, steps=3)
    fit(method, OptimConfig(steps=1, warmup=0), engine=cpu(), seed=1)
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


def test_the_fit_approaches_least_squares() -> None:
    method = Line(batch_size=8)
    train(method, steps=400, lr=0.05)
    design = torch.cat([method.inputs, torch.ones(8, 1)], dim=1)
    best = torch.linalg.lstsq(design, method.targets[:, None]).solution.squeeze(1)
    assert torch.allclose(torch.cat([method.slope, method.offset.reshape(1)]), best, atol=1e-3)
