"""The queue with processes of their own: order, ends, crashes, restarts, stops.

The short trainer below keeps the contract of a run directory without torch, so that every end can be played in a
second. The true trainer is killed here once, and carries out whole runs in test_main.py and test_browser.py.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app import watch
from app.jobs import Queue
from lrdiff.errors import RunError
from tests.app.conftest import wait_for
from trainers.registry import run_config_class
from trainers.rundir import RunDir, process_identity

SHORT_TRAINER = """
import hashlib, sys, time
from pathlib import Path
from trainers.rundir import RunDir, now, process_identity

run = RunDir(Path(sys.argv[1]))
how = run.read()["config"]["data"]["prompt"]
print("this is", how, flush=True)
if how == "exit 3":
    raise SystemExit(3)
run.stop_path.unlink(missing_ok=True)
run.update(state="running", process=process_identity(), started=now())
if how == "crash":
    raise RuntimeError("the disk is on fire")
if how == "wait":
    while not run.stop_path.exists():
        run.append_metrics({"step": 1, "loss": 0.5, "seconds_per_step": 0.1, "time": time.time()})
        time.sleep(0.02)
artifact = None
if how != "lie":
    run.artifact_path.write_bytes(b"weights")
    artifact = {"file": run.artifact_path.name, "sha256": hashlib.sha256(b"weights").hexdigest()}
if how == "spoil":
    run.artifact_path.write_bytes(b"other weights")
run.update(state="stopped" if how == "wait" else "finished", artifact=artifact, process=None, ended=now())
raise SystemExit(5 if how == "late" else 0)
"""


@pytest.fixture
def short(tmp_path: Path) -> Iterator[Queue]:
    """Return a queue with the short trainer whose worker does not run yet."""
    queue = Queue(tmp_path / "runs", trainer=(sys.executable, "-c", SHORT_TRAINER), interval=0.02)
    yield queue
    queue.close()
    for run, record in queue.runs():
        if record["state"] in ("queued", "running"):
            run.stop_path.touch()
    wait_for(lambda: queue.device.holder() is None)
    queue.tick()


def submit(queue: Queue, how: str) -> RunDir:
    config = run_config_class("tensor-lora").model_validate({"method": {}, "data": {"prompt": how}})
    return queue.submit("tensor-lora", config.model_dump(mode="json"), {})


def ended(run: RunDir) -> Callable[[], bool]:
    return lambda: run.read()["state"] not in ("queued", "running")


def test_submitting_writes_a_complete_waiting_run(short: Queue) -> None:
    run = submit(short, "finish")
    assert run.read()["state"] == "queued"
    assert [path.name for path in short.root.iterdir()] == [run.path.name]
    assert [found.path for found, _ in short.runs()] == [run.path]


def test_runs_go_one_after_the_other_oldest_first(short: Queue) -> None:
    # The names sort the other way round than the times.
    config = run_config_class("tensor-lora").model_validate({"method": {}, "data": {"prompt": "wait"}})
    first = short.submit("tensor-lora", config.model_dump(mode="json"), {}, "zebra")
    second = submit(short, "finish")
    assert watch.look(short, second.path.name).ahead == 1
    short.start()
    wait_for(lambda: first.read()["state"] == "running" and first.metrics())
    assert second.read()["state"] == "queued"
    short.stop(first.path.name)
    wait_for(ended(second))
    assert (first.read()["state"], second.read()["state"]) == ("stopped", "finished")
    assert watch.look(short, first.path.name).has_artifact
    assert watch.look(short, second.path.name).has_artifact


@pytest.mark.parametrize(
    ("how", "code", "outcome", "line"),
    [
        ("exit 3", 3, "ended with exit code 3", "this is exit 3"),
        ("crash", 1, "ended with exit code 1", "RuntimeError: the disk is on fire"),
        ("lie", 0, "there is no adapter file", "this is lie"),
        ("spoil", 0, "not the one that was written", "this is spoil"),
        ("late", 5, "exit code 5 after the last step", "this is late"),
    ],
)
def test_an_end_without_a_working_artifact_is_a_failure(
    short: Queue, how: str, code: int, outcome: str, line: str
) -> None:
    run = submit(short, how)
    short.start()
    wait_for(lambda: run.read().get("exit_code") is not None)
    record = run.read()
    assert (record["state"], record["exit_code"]) == ("failed", code)
    assert outcome in record["outcome"]
    view = watch.look(short, run.path.name)
    assert not view.has_artifact
    assert line in watch.card(view)


def test_a_trainer_that_is_no_program_is_a_failure(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "runs", trainer=(str(tmp_path / "absent"),))
    run = submit(queue, "finish")
    queue.tick()
    assert run.read()["state"] == "failed"
    assert "could not be started" in run.read()["outcome"]


def test_a_killed_trainer_is_interrupted_and_the_next_run_starts(short: Queue) -> None:
    run, following = submit(short, "wait"), submit(short, "finish")
    short.start()
    wait_for(lambda: run.read()["state"] == "running")
    os.kill(run.read()["process"]["pid"], signal.SIGKILL)
    wait_for(ended(run))
    assert (run.read()["state"], run.read()["exit_code"]) == ("interrupted", -9)
    assert "SIGKILL" in run.read()["outcome"]
    wait_for(ended(following))
    assert following.read()["state"] == "finished"


def test_a_server_that_starts_again_finds_the_run_by_its_process(short: Queue) -> None:
    run, waiting = submit(short, "wait"), submit(short, "finish")
    short.start()
    wait_for(lambda: run.read()["state"] == "running" and run.metrics())
    process = run.read()["process"]
    short.close()
    again = Queue(short.root, trainer=short.trainer, interval=0.02)
    assert again.device.holder() == {"run": run.path.name, **process}
    assert process == process_identity(process["pid"])
    again.start()
    try:
        seen = len(run.metrics())
        wait_for(lambda: len(run.metrics()) > seen)
        assert (run.read()["state"], waiting.read()["state"]) == ("running", "queued")
        assert watch.newest(again) == run.path.name
        again.stop(run.path.name)
        wait_for(ended(waiting))
        assert (run.read()["state"], waiting.read()["state"]) == ("stopped", "finished")
    finally:
        again.close()


def test_a_run_whose_process_died_with_the_server_is_interrupted(short: Queue) -> None:
    run = submit(short, "wait")
    # A pid that is in use again, by a process that started at another time.
    run.update(state="running", process=process_identity() | {"started": "1"})
    short.tick()
    assert run.read()["state"] == "interrupted"
    assert "exit code is not known" in run.read()["outcome"]


def test_a_run_from_a_terminal_is_left_alone_and_waited_for(short: Queue) -> None:
    other, waiting = submit(short, "wait"), submit(short, "finish")
    other.update(state="running", process=process_identity())
    short.tick()
    assert (other.read()["state"], waiting.read()["state"]) == ("running", "queued")
    assert short.device.holder() is None


def test_two_servers_start_a_run_once(short: Queue) -> None:
    run = submit(short, "wait")
    other = Queue(short.root, trainer=short.trainer)
    short.tick()
    other.tick()
    assert (len(short._children), len(other._children)) == (1, 0)
    wait_for(lambda: run.read()["state"] == "running")


def test_nothing_starts_while_a_generation_holds_the_device(short: Queue) -> None:
    run = submit(short, "finish")
    with short.device.held() as free:
        assert free
        short.tick()
        assert run.read()["state"] == "queued"
        with short.device.held() as again:
            assert not again
    short.tick()
    wait_for(ended(run))


def test_a_waiting_run_is_stopped_without_being_started(short: Queue) -> None:
    run = submit(short, "finish")
    short.stop(run.path.name)
    short.tick()
    assert (run.read()["state"], run.read()["outcome"]) == ("stopped", "stopped before it started")
    with pytest.raises(RunError, match="ended already"):
        short.stop(run.path.name)


def test_a_stop_in_the_moment_of_starting_is_not_lost(short: Queue) -> None:
    run = submit(short, "wait")
    short.tick()
    short.stop(run.path.name)
    short.start()
    wait_for(ended(run))
    assert run.read()["state"] == "stopped"


@pytest.mark.parametrize("name", ["", ".", "..", "../runs", "/etc", ".device.lock", "absent"])
def test_a_name_that_is_no_run_is_refused(short: Queue, name: str) -> None:
    submit(short, "finish")
    with pytest.raises(RunError, match="there is no run"):
        short.find(name)


def test_a_file_name_that_leaves_the_folder_is_refused(short: Queue, tmp_path: Path) -> None:
    config = run_config_class("tensor-lora")(method={}).model_dump(mode="json")
    with pytest.raises(RunError, match="no plain file name"):
        short.submit("tensor-lora", config, {"../../out.png": tmp_path / "x.png"})
    assert list(short.root.iterdir()) == []


def test_a_damaged_record_does_not_hide_the_others(short: Queue) -> None:
    run = submit(short, "finish")
    broken = short.root / "broken"
    broken.mkdir()
    (broken / "run.json").write_text("{")
    short.tick()
    wait_for(ended(run))
    assert [found.path.name for found, _ in short.runs()] == [run.path.name]


def test_the_true_trainer_killed_in_the_middle_is_never_finished(
    queue: Queue, settings: Callable[..., dict[str, Any]], photos: list[Path]
) -> None:
    run = queue.submit("tensor-lora", settings(steps=1_000_000), {path.name: path for path in photos})
    queue.start()
    wait_for(lambda: ended(run)() or len(run.metrics()) > 2)
    os.kill(run.read()["process"]["pid"], signal.SIGKILL)
    wait_for(ended(run))
    view = watch.look(queue, run.path.name)
    assert (view.state, view.record["exit_code"], view.has_artifact) == ("interrupted", -9, False)
    assert "SIGKILL" in watch.card(view)
