"""`lrdiff runs`: looking at runs and changing what becomes of them, from run directories alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.app.cli.conftest import Lrdiff
from trainers.registry import run_config_class
from trainers.rundir import RunDir, create, process_identity


def make(name: str, *, steps: int = 300, **changes: object) -> RunDir:
    values = {"method": {}, "data": {"images": "photos"}, "optim": {"steps": steps}}
    config = run_config_class("lora").model_validate(values)
    run = create(Path("runs") / name, "lora", config.model_dump(mode="json"))
    run.update(**changes)
    return run


def test_list_shows_every_run_newest_first_with_its_true_state(lrdiff: Lrdiff) -> None:
    make("old", state="stopped", step=300, created="2024-01-01T00:00:00+00:00")
    make("alive", state="running", process=process_identity(), created="2024-01-03T00:00:00+00:00")
    gone = {"pid": os.getpid(), "started": "1"}
    run = make("group/gone", state="running", process=gone, created="2024-01-02T00:00:00+00:00")
    run.append_metrics({"step": 40, "loss": 0.5})
    code, out, err = lrdiff("runs", "list")
    assert (code, err) == (0, "")
    assert [line.split()[:4] for line in out.splitlines()] == [
        ["runs/alive", "lora", "running", "0/300"],
        ["runs/group/gone", "lora", "interrupted", "40/300"],
        ["runs/old", "lora", "stopped", "300/300"],
    ]
    records = json.loads(lrdiff("runs", "list", "--json")[1])
    assert [record["state"] for record in records] == ["running", "interrupted", "stopped"]


def test_a_damaged_record_does_not_hide_the_others(lrdiff: Lrdiff) -> None:
    make("good")
    make("bad").record_path.write_text("{")
    (Path("runs") / ".new-1").mkdir()
    (Path("runs") / ".new-1" / "run.json").write_text("{}")
    code, out, err = lrdiff("runs", "list")
    assert (code, "run.json: cannot be read" in err) == (0, True)
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
    run = make("done", state="stopped")
    code, _, err = lrdiff("runs", "stop", run.path)
    assert (code, "has ended already (stopped)" in err) == (2, True)
    assert not run.stop_path.exists()
    code, _, err = lrdiff("runs", "stop", run.path, "--kill")
    assert (code, "done is not running, so there is nothing to end" in err) == (2, True)


def test_stop_takes_a_waiting_run_out_of_the_queue(lrdiff: Lrdiff) -> None:
    run = make("waiting", submitted=1.0)
    code, out, _ = lrdiff("runs", "stop", "waiting")
    assert (code, out) == (0, f"{run.path.absolute()}: stopped before it started\n")
    assert run.read()["state"] == "stopped"


def test_stop_kill_ends_a_process(lrdiff: Lrdiff) -> None:
    run = make("deaf")
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        run.update(state="running", process=process_identity(sleeper.pid))
        code, out, _ = lrdiff("runs", "stop", "deaf", "--kill")
        assert (code, "ended at once" in out) == (0, True)
        assert sleeper.wait(timeout=10) == -signal.SIGKILL
    finally:
        sleeper.kill()
    assert (run.read()["state"], run.read()["exit_code"]) == ("interrupted", -9)


def test_a_finished_run_without_its_result_has_failed(lrdiff: Lrdiff) -> None:
    make("liar", state="finished")
    assert "failed" in lrdiff("runs", "list")[1]
    assert "there is no adapter file" in lrdiff("runs", "show", "liar")[1]


def test_a_crashed_run_shows_exit_code_and_last_lines(lrdiff: Lrdiff) -> None:
    run = make("crashed", state="failed", outcome="out of memory", exit_code=7)
    (run.path / "console.txt").write_text("".join(f"line {number}\n" for number in range(30)))
    code, out, _ = lrdiff("runs", "show", "crashed")
    assert code == 0
    assert ("exit code  7" in out, "failed: out of memory" in out) == (True, True)
    assert ("line 29" in out, "line 20" in out, "line 19" in out) == (True, True, False)
    assert "line 3\n" in lrdiff("runs", "show", "crashed", "--log", "28")[1]
    assert json.loads(lrdiff("runs", "show", "crashed", "--log", "2", "--json")[1])["log"] == ["line 28", "line 29"]


def test_compare_prints_what_differs(lrdiff: Lrdiff) -> None:
    first, second = make("first", steps=100), make("group/second", steps=200, state="stopped")
    first.append_metrics({"step": 10, "loss": 0.5})
    code, out, err = lrdiff("runs", "compare", "first", second.path)
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["first", "runs/group/second"],
        ["state", "queued", "stopped"],
        ["settings", "that", "differ:"],
        ["optim.steps", "100", "200"],
        ["last", "figures:"],
        ["step", "10", "-"],
        ["loss", "0.5", "-"],
    ]
    found = json.loads(lrdiff("runs", "compare", "first", second.path, "--json")[1])
    assert (found["settings"], found["metrics"]["loss"]) == ({"optim.steps": [100, 200]}, [0.5, None])


def test_resume_puts_a_run_back_into_the_queue_and_says_who_carries_it_out(lrdiff: Lrdiff) -> None:
    run = make("mug", state="stopped", started="2026-01-01T00:00:00+00:00")
    code, _, err = lrdiff("runs", "resume", "mug")
    assert (code, "mug has no checkpoint to go on from" in err) == (2, True)
    run.checkpoint(5).mkdir(parents=True)
    run.stop_path.touch()
    code, out, err = lrdiff("runs", "resume", run.path)
    assert (code, out) == (0, f"{run.path.absolute()}: waits in the queue\n")
    assert "lrdiff runs work --root" in err
    record = run.read()
    assert (record["state"], record["resume"], run.stop_path.exists()) == ("queued", True, False)
    assert "waits in the queue already" in lrdiff("runs", "resume", "mug")[2]


def test_delete_restore_and_purge(lrdiff: Lrdiff) -> None:
    run, deep = make("mug", state="stopped"), make("demo/lora", state="stopped")
    code, out, _ = lrdiff("runs", "delete", "mug", deep.path)
    assert (code, run.path.exists(), deep.path.exists()) == (0, False, False)
    commands = [line.partition(": ")[2].split() for line in out.splitlines() if "bring it back" in line]
    assert [words[:3] for words in commands] == [["lrdiff", "runs", "restore"]] * 2
    assert lrdiff("runs", "list")[1] == ""
    trashed = json.loads(lrdiff("runs", "list", "--trash", "--json")[1])
    assert sorted(item["name"] for item in trashed) == ["demo/lora", "mug"]
    assert lrdiff(*commands[1][1:])[0] == 0
    assert deep.read()["state"] == "stopped"
    path = next(item["path"] for item in trashed if item["name"] == "mug")
    assert lrdiff("runs", "delete", "--purge", deep.path)[0] == 2
    code, out, _ = lrdiff("runs", "delete", "--purge", path)
    assert (code, "mug, deleted" in out, Path(path).exists()) == (0, True, False)
    assert deep.path.exists()
    assert "nothing in the trash" in lrdiff("runs", "list", "--trash")[2]


def test_a_running_run_is_not_deleted(lrdiff: Lrdiff) -> None:
    run = make("alive", state="running", process=process_identity())
    code, _, err = lrdiff("runs", "delete", "alive")
    assert (code, "alive is running; stop it first" in err, run.path.exists()) == (2, True, True)


def test_work_carries_out_the_queue_of_a_folder(
    tiny: Path, photos: Path, lrdiff: Lrdiff, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    values = {"method": {}, "model": str(tiny), "data": {"images": photos}, "optim": {"steps": 2, "warmup": 0}}
    config = run_config_class("lora").model_validate({**values, "watch": {"preview_every": 0, "evaluate_every": 0}})
    run = create(Path("runs") / "mug", "lora", config.model_dump(mode="json"))
    assert lrdiff("runs", "resume", "mug")[0] == 0
    code, out, err = lrdiff("runs", "work", "--devices", "cpu", "--until-empty")
    assert (code, out) == (0, "")
    assert ("mug: started as process" in err, "on cpu" in err, "mug: finished" in err) == (True, True, True)
    assert (run.read()["state"], run.artifact_path.is_file()) == ("finished", True)


def test_refused(lrdiff: Lrdiff) -> None:
    for words, message in (
        (["runs"], "lrdiff runs what? list, show, compare, stop, resume, delete, restore, work"),
        (["runs", "lst"], "lrdiff runs what?"),
        (["runs", "show"], "takes one run directory, not 0"),
        (["runs", "show", "nowhere"], "nowhere: no run.json"),
        (["runs", "list", "somewhere"], "lrdiff runs list --root DIR"),
        (["runs", "compare"], "compare takes two to 8 runs, not 0"),
        (["runs", "delete"], "lrdiff runs delete which?"),
        (["runs", "restore"], "lrdiff runs restore which?"),
        (["runs", "restore", "../x"], "'../x' is not in the trash"),
        (["runs", "resume", "nowhere"], "nowhere: no run.json"),
        (["runs", "work", "here"], "lrdiff runs work --root DIR"),
        (["runs", "work", "--devices", "gpu"], "'gpu' is no device"),
    ):
        code, out, err = lrdiff(*words)
        assert (code, out) == (2, "")
        assert message in err
