"""What a person may ask of runs: stop, end, resume, repeat, delete, restore; and what is refused."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app import watch
from app.jobs import Queue
from lrdiff.errors import ConfigError, RunError
from tests.app.conftest import SHORT_TRAINER, ended, submit, wait_for
from trainers.registry import run_config_class
from trainers.rundir import RunDir, create, process_identity


def run_to_the_end(queue: Queue, run: RunDir) -> dict[str, Any]:
    queue.start()
    wait_for(lambda: ended(run)() and queue.worker.is_idle())
    queue.close()
    return run.read()


def stopped_in_the_middle(queue: Queue, steps: int = 30) -> RunDir:
    run = submit(queue, "steps", steps)
    queue.start()
    wait_for(lambda: len(run.metrics()) > 2)
    queue.stop(queue.name(run))
    wait_for(lambda: ended(run)() and queue.worker.is_idle())
    queue.close()
    assert run.read()["state"] == "stopped"
    return run


def test_a_stopped_run_goes_on_from_its_checkpoint_behind_those_that_wait(short: Queue) -> None:
    run = stopped_in_the_middle(short)
    done = run.checkpoint_steps()[-1]
    other = submit(short, "finish")
    short.resume(run.path.name)
    assert [short.name(waiting) for waiting in short.waiting()] == [other.path.name, run.path.name]
    assert watch.look(short, run.path.name).ahead == 1
    record = run_to_the_end(short, run)
    assert 2 < done < 30
    assert (record["state"], record["step"], record["outcome"]) == ("finished", 30, None)
    assert [line["step"] for line in run.metrics()] == list(range(1, 31))


def test_a_stop_while_it_waits_to_go_on_is_obeyed(short: Queue) -> None:
    run = stopped_in_the_middle(short)
    short.resume(run.path.name)
    assert not run.stop_path.exists()
    short.stop(run.path.name)
    assert (run.read()["state"], run.read()["outcome"]) == ("stopped", "stopped before it started")
    short.resume(run.path.name)
    assert run_to_the_end(short, run)["state"] == "finished"


def test_a_run_resumed_while_its_last_process_still_ends_goes_on_after_it(short: Queue) -> None:
    run = submit(short, "steps, slow end", 30)
    short.start()
    wait_for(lambda: len(run.metrics()) > 2)
    short.stop(run.path.name)
    wait_for(ended(run))
    assert short.holder(run) is not None
    short.resume(run.path.name)
    wait_for(lambda: run.read()["state"] == "finished" and short.worker.is_idle())
    assert run.read()["exit_code"] is None
    assert [line["step"] for line in run.metrics()] == list(range(1, 31))
    assert list(short.root.glob("**/OVERLAP")) == []


def test_only_what_can_go_on_is_resumed(short: Queue) -> None:
    waiting, failed, running, made = (submit(short, "finish") for _ in range(4))
    failed.update(state="failed", started="2026-01-01T00:00:00+00:00")
    running.update(state="running", process=process_identity())
    made.path.rename(short.root / "never-submitted")
    made = RunDir(short.root / "never-submitted")
    made.record_path.write_text(json.dumps({k: v for k, v in made.read().items() if k != "submitted"}))
    for run, reason in ((waiting, "waits in the queue"), (failed, "no checkpoint"), (running, "is running")):
        with pytest.raises(RunError, match=reason):
            short.resume(run.path.name)
        assert short.why_not_resume(run.path.name)
    assert short.name(made) not in [short.name(run) for run in short.waiting()]
    short.resume("never-submitted")
    assert [short.name(run) for run in short.waiting()] == [waiting.path.name, "never-submitted"]
    running.update(state="stopped", process=None)


def test_a_finished_run_is_repeated_and_not_resumed(short: Queue) -> None:
    run = submit(short, "finish")
    assert run_to_the_end(short, run)["state"] == "finished"
    with pytest.raises(RunError, match="has finished; to train longer, repeat it"):
        short.resume(run.path.name)
    # Its result is gone, so it has not finished in truth, and there is nothing to go on from.
    run.artifact_path.unlink()
    with pytest.raises(RunError, match="no checkpoint"):
        short.resume(run.path.name)


def test_a_run_is_repeated_with_changes_and_its_own_pictures(short: Queue, photos: list[Path]) -> None:
    config = run_config_class("tensor-lora").model_validate({"method": {}, "data": {"prompt": "finish"}})
    first = short.submit("tensor-lora", config.model_dump(mode="json"), {path.name: path for path in photos})
    again = short.repeat(first.path.name, {"optim.steps": 7, "method.r": 2}, "second")
    record = again.read()
    assert (record["state"], record["config"]["optim"]["steps"], record["config"]["method"]["r"]) == ("queued", 7, 2)
    assert record["config"]["data"]["images"] == str(again.path / "images")
    copies = sorted(path.name for path in (again.path / "images").iterdir())
    assert copies == sorted(path.name for path in photos)
    for changes, message in (
        ({"optim.stepps": 7}, "optim.stepps: There is no such setting"),
        ({"seed.x": 1}, "seed.x: no such setting"),
        ({"optim.steps": 0}, "optim.steps: .*greater than 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            short.repeat(first.path.name, changes)
    (first.path / "images").rename(first.path / "elsewhere")
    with pytest.raises(RunError, match="cannot be repeated: its pictures"):
        short.repeat(first.path.name)
    assert len(short.runs()) == 2


def test_a_repeat_has_a_copy_of_the_prompts_that_its_run_kept(short: Queue, tmp_path: Path) -> None:
    other = tmp_path / "mine.txt"
    other.write_text("a green cone\n")
    config = run_config_class("alignprop").model_validate({"method": {"reward": ["brightness"], "held_out": other}})
    texts = {"method.prompts": "a red cube\na blue ball"}
    first = short.submit("alignprop", config.model_dump(mode="json"), {}, "bright", texts)
    again = short.repeat(first.path.name, label="second")
    settings = again.read()["config"]["method"]
    assert settings["prompts"] == str(again.path / "method.prompts.txt")
    assert (again.path / "method.prompts.txt").read_text() == "a red cube\na blue ball\n"
    assert settings["held_out"] == str(other), "a file of the user's own stays where it is"
    changed = short.repeat(first.path.name, {"method.prompts": str(other)}, "third")
    assert changed.read()["config"]["method"]["prompts"] == str(other)
    assert not (changed.path / "method.prompts.txt").exists()


def test_a_deaf_run_is_ended_at_once(short: Queue) -> None:
    run, following = submit(short, "deaf"), submit(short, "finish")
    with pytest.raises(RunError, match="not running"):
        short.kill(run.path.name)
    short.start()
    wait_for(lambda: run.metrics())
    short.stop(run.path.name)
    short.kill(run.path.name)
    assert run.read()["state"] == "interrupted"
    wait_for(ended(following))
    assert "on request" in run.read()["outcome"]
    assert run.read()["exit_code"] == -9


def test_deleting_is_a_move_and_restoring_the_move_back(short: Queue) -> None:
    run = submit(short, "finish")
    name, before = run.path.name, run.read()
    deleted = short.delete(name)
    assert (short.runs(), [item.identity for item in short.trash()]) == ([], [deleted.identity])
    assert deleted.path.is_dir()
    assert (deleted.name, deleted.identity.endswith(f"/{name}")) == (name, True)
    with pytest.raises(RunError, match="there is no run"):
        short.find(name)
    other = submit(short, "finish")
    assert other.path.name == name
    with pytest.raises(RunError, match="cannot come back: there is a run of that name"):
        short.restore(deleted.identity)
    short.purge(short.delete(name).identity)
    back = short.restore(deleted.identity)
    # It was taken out of the queue, so that coming back does not start it.
    assert back.read() | {"state": "queued"} == before | {
        "outcome": "stopped before it started",
        "ended": back.read()["ended"],
        "process": None,
    }
    assert (short.trash(), short.waiting(), (short.root / ".trash").exists()) == ([], [], False)


def test_a_running_run_is_not_deleted_in_any_of_its_moments(short: Queue) -> None:
    run = submit(short, "wait")
    short.tick()
    # The trainer is just starting: the record still says queued.
    assert run.read()["state"] == "queued"
    with pytest.raises(RunError, match="is running; stop it first"):
        short.delete(run.path.name)
    wait_for(lambda: run.metrics())
    with pytest.raises(RunError, match="is running; stop it first"):
        short.delete(run.path.name)
    assert short.trash() == []


def test_a_run_that_says_it_ended_is_deleted_although_its_process_takes_its_time_to_leave(short: Queue) -> None:
    run = submit(short, "steps, slow end")
    short.tick()
    wait_for(lambda: run.read()["state"] == "finished")
    assert short.is_alive(run, run.read())
    deleted = short.delete(run.path.name)
    assert [item.identity for item in short.trash()] == [deleted.identity]


def test_an_unreadable_run_can_be_deleted_and_one_deep_down_comes_back_to_its_place(short: Queue) -> None:
    create(short.root / "demo-1" / "lora", "lora", {})
    (short.root / "broken").mkdir()
    (short.root / "broken" / "run.json").write_text("{")
    assert [short.name(run) for run, _ in short.runs()] == ["demo-1/lora"]
    assert "cannot be read" in short.troubles()[0]
    for name in ("demo-1/lora", "broken"):
        short.delete(name)
    assert short.runs() == []
    assert short.troubles() == []
    assert sorted(item.name for item in short.trash()) == ["broken", "demo-1/lora"]
    for item in short.trash():
        short.restore(item.identity)
    assert (short.root / "demo-1" / "lora" / "run.json").is_file()
    assert (short.root / "broken" / "run.json").read_text() == "{"


@pytest.mark.parametrize(
    "identity",
    ["", ".", "..", "../mug", "/etc", "20260101-000000-000000/..", "20260101-000000-000000/../../mug", "x/mug"],
)
def test_nothing_outside_the_trash_is_purged(short: Queue, identity: str) -> None:
    run = submit(short, "finish", label="mug")
    short.delete(submit(short, "finish").path.name)
    with pytest.raises(RunError, match="not in the trash"):
        short.purge(identity)
    with pytest.raises(RunError, match="not in the trash"):
        short.restore(identity)
    assert run.read()["state"] == "queued"
    assert len(short.trash()) == 1


def test_links_are_not_followed_and_foreign_folders_are_no_runs(short: Queue, tmp_path: Path) -> None:
    outside = create(tmp_path / "outside", "lora", {})
    run = submit(short, "finish")
    (short.root / "link").symlink_to(outside.path)
    (short.root / "loop").symlink_to(short.root)
    (short.root / "holiday" / "2026").mkdir(parents=True)
    (short.root / "notes.txt").write_text("mine")
    (short.root / ".new-1").mkdir()
    (short.root / ".new-1" / "run.json").write_text(run.record_path.read_text())
    foreign = short.root / "foreign"
    foreign.mkdir()
    (foreign / "run.json").write_text(json.dumps({"schema": 1, "state": ["odd"], "config": {}, "method": "lora"}))
    assert [found.path.name for found, _ in short.runs()] == [run.path.name]
    reasons = short.unreadable()
    assert (sorted(reasons), "is a link" in reasons["link"]) == (["foreign", "link"], True)
    for name in ("link", "loop", f"loop/{run.path.name}", ".new-1", "a/b/c"):
        with pytest.raises(RunError, match="there is no run"):
            short.find(name)
    short.tick()
    wait_for(ended(run))


def test_a_run_made_in_a_terminal_is_not_taken_from_it(short: Queue) -> None:
    # `lrdiff train` makes the run and trains it itself a moment later.
    config = run_config_class("tensor-lora").model_validate({"method": {}, "data": {"prompt": "finish"}})
    run = create(short.root / "mine", "tensor-lora", config.model_dump(mode="json"))
    short.tick()
    time.sleep(0.3)
    short.tick()
    assert run.read()["state"] == "queued"
    assert not (run.path / "console.txt").exists()


def test_a_terminal_and_the_queue_never_have_a_run_both(short: Queue) -> None:
    run = submit(short, "wait")
    # Both were told of the run while it waited; the worker's trainer starts at the same moment.
    terminals = [
        subprocess.Popen([*SHORT_TRAINER, str(run.path)], env=os.environ | {"CUDA_VISIBLE_DEVICES": str(number)})
        for number in range(2)
    ]
    short.start()
    wait_for(lambda: run.metrics())
    wait_for(lambda: sum(process.poll() is not None for process in terminals) >= 1)
    time.sleep(1.0)
    assert run.read()["state"] == "running"
    short.stop(run.path.name)
    wait_for(lambda: ended(run)() and all(process.poll() is not None for process in terminals))
    assert run.read()["state"] == "stopped"
    assert list(short.root.glob("**/OVERLAP")) == []


def test_nobody_starts_what_somebody_works_at(short: Queue) -> None:
    assert not short.is_attended()
    short.start()
    other = Queue(short.root, trainer=short.trainer)
    assert other.is_attended()
    short.close()
    assert not other.is_attended()


def test_a_worker_without_space_says_so_and_goes_on(tmp_path: Path) -> None:
    """Files larger than nothing cannot be written, which is a full disk as far as a program can tell."""
    queue = Queue(tmp_path / "runs", trainer=SHORT_TRAINER)
    run = submit(queue, "finish")
    gone = submit(queue, "finish")
    gone.update(state="running", process={"pid": os.getpid(), "started": "1"})
    script = f"""
import resource
from pathlib import Path
from app.jobs import Queue
queue = Queue(Path({str(queue.root)!r}), trainer={SHORT_TRAINER!r}, interval=0.02)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, {resource.RLIM_INFINITY}))
queue.start()
import time
time.sleep(0.5)
print(queue.troubles())
resource.setrlimit(resource.RLIMIT_FSIZE, ({resource.RLIM_INFINITY}, {resource.RLIM_INFINITY}))
while not queue.worker.is_idle():
    time.sleep(0.02)
print(queue.troubles())
queue.close()
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, "Traceback" in result.stderr) == (0, False), result.stderr
    full, free = result.stdout.splitlines()
    assert "File too large" in full or "cannot be written" in full
    assert free == "[]"
    assert (gone.read()["state"], run.read()["state"]) == ("interrupted", "finished")


def test_a_page_that_cannot_write_a_run_says_so(tmp_path: Path, photos: list[Path]) -> None:
    (tmp_path / "file").write_text("")
    queue = Queue(tmp_path / "file" / "runs", trainer=SHORT_TRAINER)
    config = run_config_class("tensor-lora").model_validate({"method": {}}).model_dump(mode="json")
    with pytest.raises(RunError, match="cannot be written"):
        queue.submit("tensor-lora", config, {path.name: path for path in photos})
    assert queue.runs() == []
    with pytest.raises(RunError, match="cannot be written"), queue.exclusive():
        raise AssertionError("it was had")


@pytest.fixture
def two(tmp_path: Path) -> Callable[..., Queue]:
    def make(*devices: str) -> Queue:
        return Queue(tmp_path / "runs", trainer=SHORT_TRAINER, interval=0.02, devices=devices)

    return make


def test_each_device_has_a_run_of_its_own(two: Callable[..., Queue]) -> None:
    queue = two("0", "1")
    runs = [submit(queue, "wait") for _ in range(3)]
    queue.start()
    try:
        wait_for(lambda: runs[0].metrics() and runs[1].metrics())
        time.sleep(0.2)
        assert [run.read()["state"] for run in runs] == ["running", "running", "queued"]
        for run in runs:
            if run is runs[2]:
                wait_for(lambda: runs[2].metrics())
            queue.stop(run.path.name)
        wait_for(lambda: all(ended(run)() for run in runs))
    finally:
        queue.close()
    # Each saw one device, and none met another there.
    assert sorted(path.name for path in queue.root.glob("seen-*")) == ["seen-0", "seen-1"]
    assert list(queue.root.glob("**/OVERLAP")) == []
