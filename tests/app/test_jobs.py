"""The queue with processes of their own: order, ends, crashes, restarts, stops.

The short trainer keeps the contract of a run directory without torch, so that every end can be played in a second. The
true trainer is killed here once and resumed, and carries out whole runs in test_main.py and test_browser.py.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app import watch
from app.jobs import Queue
from lrdiff.errors import RunError
from tests.app.conftest import ended, submit, wait_for
from trainers.registry import run_config_class
from trainers.rundir import process_identity


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
    assert (len(short.worker._children), len(other.worker._children)) == (1, 0)
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


def test_the_true_trainer_killed_in_the_middle_is_not_finished_and_goes_on(
    queue: Queue, settings: Callable[..., dict[str, Any]], photos: list[Path]
) -> None:
    config = settings(steps=6)
    config["watch"]["checkpoint_every"] = 1
    run = queue.submit("tensor-lora", config, {path.name: path for path in photos})
    queue.start()
    wait_for(lambda: ended(run)() or run.checkpoint_steps())
    os.kill(run.read()["process"]["pid"], signal.SIGKILL)
    wait_for(ended(run))
    view = watch.look(queue, run.path.name)
    assert (view.state, view.record["exit_code"], view.has_artifact) == ("interrupted", -9, False)
    assert "SIGKILL" in watch.card(view)
    assert view.can_resume
    queue.resume(run.path.name)
    wait_for(ended(run))
    view = watch.look(queue, run.path.name)
    assert (view.state, view.step, view.has_artifact) == ("finished", 6, True)
    assert [line["step"] for line in view.metrics if "seconds_per_step" in line] == list(range(1, 7))
