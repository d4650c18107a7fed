"""`lrdiff runs`: listing, showing and stopping, from run directories alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.app.cli.conftest import Lrdiff
from trainers.registry import run_config_class
from trainers.rundir import RunDir, create, process_identity


def make(name: str, **changes: object) -> RunDir:
    config = run_config_class("lora").model_validate({"method": {}, "data": {"images": "photos"}})
    run = create(Path("runs") / name, "lora", config.model_dump(mode="json"))
    run.update(**changes)
    return run


def test_list_shows_every_run_newest_first_with_its_true_state(lrdiff: Lrdiff) -> None:
    make("old", state="finished", step=300, created="2024-01-01T00:00:00+00:00")
    make("alive", state="running", process=process_identity(), created="2024-01-03T00:00:00+00:00")
    gone = {"pid": os.getpid(), "started": "1"}
    run = make("group/gone", state="running", process=gone, created="2024-01-02T00:00:00+00:00")
    run.append_metrics({"step": 40, "loss": 0.5})
    code, out, err = lrdiff("runs", "list")
    assert (code, err) == (0, "")
    assert [line.split()[:4] for line in out.splitlines()] == [
        ["runs/alive", "lora", "running", "0/300"],
        ["runs/group/gone", "lora", "interrupted", "40/300"],
        ["runs/old", "lora", "finished", "300/300"],
    ]
    records = json.loads(lrdiff("runs", "list", "--json")[1])
    assert [record["state"] for record in records] == ["running", "interrupted", "finished"]


def test_a_damaged_record_does_not_hide_the_others(lrdiff: Lrdiff) -> None:
    make("good")
    make("bad").record_path.write_text("{")
    code, out, _ = lrdiff("runs", "list")
    assert code == 0
    assert {tuple(line.split()[:3]) for line in out.splitlines()} == {
        ("runs/good", "lora", "queued"),
        ("runs/bad", "?", "unreadable"),
    }


def test_no_runs(lrdiff: Lrdiff) -> None:
    code, out, err = lrdiff("runs", "list", "--root", "elsewhere")
    assert (code, out) == (0, "")
    assert "no runs in elsewhere" in err


def test_show_says_what_matters(finished: Path, lrdiff: Lrdiff) -> None:
    code, out, _ = lrdiff("runs", "show", finished)
    assert code == 0
    assert "finished: all steps done" in out
    assert "steps       4/4" in " ".join(out.split("  ")) or "4/4" in out
    assert str(finished / "adapter.safetensors") in out
    assert json.loads(lrdiff("runs", "show", "--json", finished)[1])["state"] == "finished"


def test_stop_asks_a_running_run(lrdiff: Lrdiff) -> None:
    run = make("alive", state="running", process=process_identity())
    code, out, _ = lrdiff("runs", "stop", run.path)
    assert code == 0
    assert "asked to stop" in out
    assert run.stop_path.is_file()


def test_stop_refuses_what_does_not_run(lrdiff: Lrdiff) -> None:
    run = make("done", state="finished")
    code, _, err = lrdiff("runs", "stop", run.path)
    assert (code, "is finished, not running" in err) == (2, True)
    assert not run.stop_path.exists()


def test_refused(lrdiff: Lrdiff) -> None:
    for words, message in (
        (["runs"], "lrdiff runs what? list, show, stop"),
        (["runs", "lst"], "lrdiff runs what?"),
        (["runs", "show"], "takes one run directory, not 0"),
        (["runs", "show", "nowhere"], "nowhere: no run.json"),
        (["runs", "list", "somewhere"], "lrdiff runs list --root DIR"),
    ):
        code, out, err = lrdiff(*words)
        assert (code, out) == (2, "")
        assert message in err
