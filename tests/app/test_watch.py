"""What is read off a run directory."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from app import text, watch
from app.commands.runs import progress
from app.jobs import Queue
from app.tabs.run_list import listed
from trainers.registry import run_config_class
from trainers.rundir import RunDir, process_identity


@pytest.fixture
def waiting(tmp_path: Path) -> Queue:
    return Queue(tmp_path / "runs")


@pytest.fixture
def run(waiting: Queue) -> RunDir:
    config = run_config_class("tensor-lora").model_validate({"method": {}, "optim": {"steps": 100}})
    return waiting.submit("tensor-lora", config.model_dump(mode="json"), {}, "mug")


def test_step_speed_and_time_left_come_from_the_newest_line(waiting: Queue, run: RunDir) -> None:
    run.update(state="running", process=process_identity())
    run.append_metrics({"step": 10, "loss": 0.5, "seconds_per_step": 9.0, "time": time.time() - 100})
    run.append_metrics({"step": 20, "loss": 0.4, "seconds_per_step": 2.0, "time": time.time()})
    run.append_metrics({"step": 25, "loss_fixed": 0.3, "time": time.time()})
    view = watch.look(waiting, run.path.name)
    assert (view.step, view.total, view.speed) == (20, 100, 2.0)
    assert view.left == pytest.approx(160, abs=5)
    assert "about 2 min 40 s left" in watch.card(view) or "about 2 min 39 s left" in watch.card(view)


def test_a_finished_run_without_its_adapter_is_shown_as_failed(waiting: Queue, run: RunDir) -> None:
    run.update(state="finished", step=100, artifact={"file": "adapter.safetensors", "sha256": "0" * 64})
    view = watch.look(waiting, run.path.name)
    assert (view.state, view.has_artifact) == ("failed", False)
    assert text.NO_ARTIFACT in watch.card(view)


def test_damaged_figures_are_told_and_do_not_hide_the_run(waiting: Queue, run: RunDir) -> None:
    run.update(state="running", process=process_identity())
    run.append_metrics({"step": 10, "loss": 0.5, "seconds_per_step": 9.0, "time": time.time()})
    run.metrics_path.write_text("{broken\n" + run.metrics_path.read_text())
    view = watch.look(waiting, run.path.name)
    assert (view.state, view.metrics) == ("running", ())
    assert "metrics.jsonl" in view.outcome
    assert progress(run, run.read()) == "metrics.jsonl is damaged"


def test_what_a_run_says_cannot_become_a_part_of_the_page(waiting: Queue, run: RunDir) -> None:
    run.update(state="failed", outcome="<script>alert(1)</script>", preflight=["<img src=x>"])
    run.log_path.write_text("</pre><script>alert(2)</script>\n")
    card = watch.card(watch.look(waiting, run.path.name))
    assert "<script" not in card
    assert "<img" not in card
    assert "&lt;script&gt;alert(2)" in card


def test_the_chart_has_a_row_for_each_figure_and_long_runs_are_thinned() -> None:
    lines = [{"step": step, "loss": 1.0 / step} for step in range(1, 10_001)]
    frame = watch.chart([*lines, {"step": 5000, "loss_fixed": 0.5}])
    counts = frame["series"].value_counts().to_dict()
    assert counts["fixed noise"] == 1
    assert 1000 <= counts["training"] <= watch.MAX_POINTS
    assert watch.chart([]).empty


def test_previews_are_in_order_of_steps(run: RunDir) -> None:
    for name in ("000100/a-00.png", "000000/a-00.png", "000000/a-01.png", "000000/.half.png", "junk/a.png"):
        file = run.previews / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert [caption for _, caption in watch.previews(run)] == ["step 0", "step 0", "step 100"]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0 s"), (59, "59 s"), (200, "3 min 20 s"), (1234, "21 min"), (7500, "2 h 5 min")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert text.duration(seconds) == shown


def test_losses_are_drawn_from_the_first_training_loss_on() -> None:
    assert watch.losses([{"step": 0, "loss_fixed": 0.5}]).empty
    found = watch.losses([{"step": 0, "loss_fixed": 0.5}, {"step": 10, "loss": 0.4}])
    assert set(found["series"]) == {text.SERIES["loss_fixed"], text.SERIES["loss"]}


def test_a_list_of_runs_calls_nothing_finished_that_has_no_adapter(waiting: Queue, run: RunDir) -> None:
    run.update(state="finished", step=100, artifact={"sha256": "0" * 64})
    assert listed(waiting, run.path.name).count(text.STATES["failed"]) == 1
    assert text.STATES["finished"] not in listed(waiting, run.path.name)
    assert watch.choices(waiting) == [(f"{run.path.name} · failed", run.path.name)]
