"""What happens around a step."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from lrdiff.errors import NonFiniteError
from lrdiff.images import read_image
from tests.trainers.line import Line, cpu, train
from trainers import hooks
from trainers.hooks import every
from trainers.loop import State
from trainers.rundir import RunDir


def steps_of(interval: int, total: int = 7, **options: Any) -> list[int]:
    acted: list[int] = []
    train(Line(), (every(interval, lambda state: acted.append(state.step), **options),), steps=total)
    return acted


def test_every_interval() -> None:
    assert steps_of(3) == [3, 6]
    assert steps_of(1, 3) == [1, 2, 3]
    assert steps_of(100) == []


def test_every_also_first_and_last() -> None:
    assert steps_of(3, first=True) == [0, 3, 6]
    assert steps_of(3, last=7) == [3, 6, 7]
    assert steps_of(7, last=7, first=True) == [0, 7], "the last step is told once"
    assert steps_of(100, last=7, first=True) == [0, 7]


def test_every_zero_is_never() -> None:
    assert steps_of(0, last=7, first=True) == []


def test_nothing_is_done_twice_at_a_resumed_step() -> None:
    acted: list[int] = []
    hook = every(2, lambda state: acted.append(state.step), last=6, first=True)

    def restore(state: State) -> None:
        state.step = 4

    train(Line(), (hook,), restore=restore, steps=6)
    assert acted == [6]


def test_metrics_are_averaged_between_lines(run_dir: RunDir) -> None:
    losses: list[float] = []

    def collect(state: State) -> None:
        if state.metrics:
            losses.append(state.metrics["loss"])

    train(Line(), (collect, hooks.LogMetrics(run_dir, total=7, interval=3)), steps=7)
    rows = run_dir.metrics()
    assert [row["step"] for row in rows] == [3, 6, 7]
    means = [sum(losses[:3]) / 3, sum(losses[3:6]) / 3, losses[6]]
    assert [row["loss"] for row in rows] == pytest.approx(means)
    for row in rows:
        assert {"absolute", "grad_norm", "lr", "seconds_per_step", "time"} <= row.keys()
        assert row["seconds_per_step"] > 0


def test_a_stop_writes_the_steps_since_the_last_line(run_dir: RunDir) -> None:
    def stop(state: State) -> None:
        state.stop = "enough" if state.step == 4 else ""

    train(Line(), (stop, hooks.LogMetrics(run_dir, total=7, interval=3)), steps=7)
    assert [row["step"] for row in run_dir.metrics()] == [3, 4]


def test_the_log_says_where_the_run_is(run_dir: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "trainers")
    train(Line(), (hooks.LogMetrics(run_dir, total=2, interval=2),), steps=2)
    assert "step 2/2  loss " in caplog.text


def test_evaluation_is_repeatable_without_gradient_and_in_eval_mode(run_dir: RunDir) -> None:
    class Watched(Line):
        modes: list[tuple[bool, bool]]

        def evaluate(self, rng: torch.Generator) -> dict[str, float]:
            self.modes.append((self.training, torch.is_grad_enabled()))
            return super().evaluate(rng)

    method = Watched()
    method.modes = []
    train(method, (every(2, hooks.evaluate(run_dir, seed=0), last=3, first=True),), steps=3)
    rows = run_dir.metrics()
    assert [row["step"] for row in rows] == [0, 2, 3]
    assert len({row["draw"] for row in rows}) == 1
    assert rows[-1]["fixed"] < rows[0]["fixed"]
    assert method.modes == [(False, False)] * 3
    assert method.training


def test_a_metric_that_is_not_finite_is_named(run_dir: RunDir) -> None:
    class Broken(Line):
        def evaluate(self, rng: torch.Generator) -> dict[str, float]:
            return {"fixed": float("nan"), "other": 1.0}

    with pytest.raises(NonFiniteError, match="fixed of step 2 is not finite"):
        train(Broken(), (every(2, hooks.evaluate(run_dir, seed=0)),))
    assert run_dir.metrics() == []


def test_previews_are_png_files_that_do_not_change_by_themselves(run_dir: RunDir) -> None:
    train(Line(), (every(2, hooks.preview(run_dir, seed=0), first=True),), steps=2)
    folders = sorted(entry.name for entry in run_dir.previews.iterdir())
    assert folders == ["000000", "000002"]
    for folder in folders:
        names = sorted(entry.name for entry in (run_dir.previews / folder).iterdir())
        assert names == ["line-00.png", "line-01.png"]
        assert read_image(run_dir.previews / folder / names[0]).size == (4, 4)
    first, second = ((run_dir.previews / folder / "line-01.png").read_bytes() for folder in folders)
    assert first == second


def test_watching_does_not_change_the_training(run_dir: RunDir) -> None:
    plain, watched = Line(), Line()
    train(plain)
    train(watched, (every(1, hooks.evaluate(run_dir, 0), first=True), every(1, hooks.preview(run_dir, 0))))
    assert torch.equal(plain.slope, watched.slope)


def test_stop_file_and_asked_reasons(run_dir: RunDir) -> None:
    assert train(Line(), (hooks.stop_when(hooks.stop_file(run_dir)),), steps=3).stop == ""
    run_dir.stop_path.touch()
    state = train(Line(), (hooks.stop_when(hooks.stop_file(run_dir)), hooks.stop_when(lambda: "another")), steps=3)
    assert "STOP" in state.stop, "the first reason stays"
    assert state.step == 0


def test_the_agreed_reason_is_the_first_there_is() -> None:
    engine = cpu()
    assert hooks.agreed(engine, lambda: "", lambda: "")() == ""
    assert hooks.agreed(engine, lambda: "", lambda: "second", lambda: "third")() == "second"


def test_at_stop_acts_only_then(run_dir: RunDir) -> None:
    acted: list[int] = []

    def stop(state: State) -> None:
        state.stop = "enough" if state.step == 3 else ""

    train(Line(), (stop, hooks.at_stop(lambda state: acted.append(state.step))))
    assert acted == [3]


def test_only_the_main_process_writes() -> None:
    engine, acted = cpu(), []
    hook = hooks.on_main(engine, lambda state: acted.append(state.step))
    train(Line(), (hook,), steps=1)
    assert acted == [0, 1]
    engine.rank = 1
    train(Line(), (hooks.on_main(engine, lambda state: acted.append(state.step)),), steps=1)
    assert acted == [0, 1]
