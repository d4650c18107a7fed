"""Runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.compare import MAX_RUNS, chart, compare, metrics_of
from lrdiff.errors import RunError
from trainers.registry import run_config_class
from trainers.rundir import RunDir, create, process_identity

Named = tuple[str, RunDir]


def make(root: Path, name: str, record: dict[str, Any] | None = None, **settings: Any) -> Named:
    config = run_config_class("lora").model_validate({"method": {}, "data": {"images": root / name}, **settings})
    run = create(root / name, "lora", config.model_dump(mode="json"))
    run.update(**(record or {}))
    return name, run


def test_only_settings_that_differ_are_listed_and_copies_of_the_same_pictures_do_not(tmp_path: Path) -> None:
    inputs = {"inputs": {"data.images": {"a.png": {"size": 1, "sha256": "x"}}}}
    first = make(tmp_path, "first", inputs, optim={"steps": 100})
    second = make(tmp_path, "second", inputs, optim={"steps": 200})
    found = compare([first, second])
    assert [(row.name, row.values) for row in found.settings] == [("optim.steps", (100, 200))]
    second[1].update(inputs={"data.images": {"a.png": {"size": 1, "sha256": "y"}, "b.png": {"size": 2, "sha256": "z"}}})
    pictures = compare([first, second]).settings[0]
    assert (pictures.name, pictures.values[0].split(" (")[0], pictures.values[1].split(" (")[0]) == (
        "data.images",
        "1 picture",
        "2 pictures",
    )


def test_the_newest_figures_and_true_states_stand_side_by_side(tmp_path: Path) -> None:
    times = {"started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T00:01:30+00:00"}
    done = make(tmp_path, "done", {"state": "stopped", **times})
    gone = make(tmp_path, "gone", {"state": "running", "process": process_identity() | {"started": "1"}})
    liar = make(tmp_path, "liar", {"state": "finished"})
    done[1].append_metrics({"step": 10, "loss": 0.5, "seconds_per_step": 1.0, "time": 1.0})
    done[1].append_metrics({"step": 20, "loss": 0.25, "time": 2.0})
    done[1].append_metrics({"step": 20, "loss_fixed": 0.75})
    gone[1].append_metrics({"step": 5, "loss": 0.5})
    found = compare([done, gone, liar])
    assert (found.names, found.states) == (("done", "gone", "liar"), ("stopped", "interrupted", "failed"))
    assert {row.name: row.values for row in found.metrics} == {
        "step": (20, 5, None),
        "loss": (0.25, 0.5, None),
        "loss_fixed": (0.75, None, None),
        "seconds": (90.0, None, None),
    }
    assert metrics_of([done, gone, liar]) == ["loss", "loss_fixed"]
    frame = chart([done, gone, liar])
    assert frame.values.tolist() == [[10, 0.5, "done"], [20, 0.25, "done"], [5, 0.5, "gone"]]


def test_two_to_eight_different_runs_are_compared(tmp_path: Path) -> None:
    runs = [make(tmp_path, f"run-{number}") for number in range(MAX_RUNS + 1)]
    for some, message in ((runs[:1], "two to 8 runs, not 1"), (runs, "not 9"), ([runs[0]] * 2, "given twice")):
        with pytest.raises(RunError, match=message):
            compare(some)
        with pytest.raises(RunError, match=message):
            chart(some)
    assert len(compare(runs[:MAX_RUNS]).names) == MAX_RUNS


def test_methods_of_different_settings_are_compared(tmp_path: Path) -> None:
    config = run_config_class("tensor-lora").model_validate({"method": {}})
    run = create(tmp_path / "ring", "tensor-lora", config.model_dump(mode="json"))
    rows = {row.name: row.values for row in compare([make(tmp_path, "plain"), ("ring", run)]).settings}
    assert rows["method"] == ("lora", "tensor-lora")
    assert rows["method.transform_rank"][0] is None
