"""The run directory: what a reader may rely on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lrdiff.errors import RunError
from trainers import rundir
from trainers.rundir import SCHEMA, RunDir, create, is_alive, open_run, process_identity


def test_a_new_run_is_queued_and_complete(tmp_path: Path) -> None:
    config = {"seed": 3, "data": {"images": Path("pictures/größe")}, "optim": {"lr": 0.1}}
    run = create(tmp_path / "runs" / "deep" / "a", "lora", config)
    record = run.read()
    assert record["schema"] == SCHEMA
    assert record["state"] == "queued"
    assert record["method"] == "lora"
    assert record["config"] == {"seed": 3, "data": {"images": "pictures/größe"}, "optim": {"lr": 0.1}}
    assert record["seed"] == 3
    assert record["created"].endswith("+00:00")
    assert record["git"]
    assert open_run(run.path).read() == record
    assert [entry.name for entry in run.path.iterdir()] == ["run.json"]


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    assert create(tmp_path, "lora", {}).read()["state"] == "queued"


def test_what_is_there_already_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(RunError, match=rf"{name}: already exists and is not empty"):
            create(tmp_path / name, "lora", {})
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
    assert (tmp_path / "file").read_text() == "mine"


def test_unwritable_places_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written .*choose another"):
        create(tmp_path / "file" / "run", "lora", {})
    with pytest.raises(RunError, match="cannot be written"):
        create(Path("/proc/run"), "lora", {})


def test_update_changes_only_what_it_names(tmp_path: Path) -> None:
    run = create(tmp_path / "a", "lora", {"seed": 0})
    before = run.read()
    after = run.update(state="running", device="CPU")
    assert after == before | {"state": "running", "device": "CPU"} == run.read()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "not a run directory"),
        ("", "cannot be read"),
        ('{"schema": 1, "sta', "cannot be read"),
        ("\udcff", "cannot be read"),
        ("[1]", "schema"),
        ("{}", "schema"),
        (json.dumps({"schema": SCHEMA + 1, "state": "queued"}), "update lrdiff"),
    ],
)
def test_bad_records_are_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "run.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(RunError, match=message):
        open_run(tmp_path)


def test_a_reader_never_sees_half_a_record(tmp_path: Path) -> None:
    run = create(tmp_path / "a", "lora", {"filler": ["x" * 100] * 200})
    done = threading.Event()

    def write() -> None:
        step = 0
        while not done.is_set():
            step += 1
            run.update(step=step)

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        seen.add(open_run(run.path).read().get("step"))
    done.set()
    writer.join()
    assert len(seen) > 5
    assert [entry.name for entry in run.path.iterdir()] == ["run.json"]


def test_metrics_leave_out_a_line_that_is_being_written(tmp_path: Path) -> None:
    run = create(tmp_path / "a", "lora", {})
    assert run.metrics() == []
    run.append_metrics({"step": 1, "loss": 0.5})
    run.append_metrics({"step": 2, "loss": 0.25})
    with run.metrics_path.open("a") as file:
        file.write('{"step": 3, "lo')
    assert [row["step"] for row in run.metrics()] == [1, 2]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    run = create(tmp_path / "a", "lora", {})
    run.metrics_path.write_text('{"step": 1}\nrubbish\n{"step": 2}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl: damaged"):
        run.metrics()


def test_metrics_after_a_step_are_forgotten(tmp_path: Path) -> None:
    run = create(tmp_path / "a", "lora", {})
    run.drop_metrics_after(0)
    for step in (0, 10, 20, 30):
        run.append_metrics({"step": step, "loss": 1 / 3})
    with run.metrics_path.open("a") as file:
        file.write('{"step": 40, "lo')
    run.drop_metrics_after(20)
    run.append_metrics({"step": 30, "loss": 0.1})
    assert run.metrics() == [{"step": s, "loss": 1 / 3} for s in (0, 10, 20)] + [{"step": 30, "loss": 0.1}]


def test_only_complete_checkpoints_count(tmp_path: Path) -> None:
    run = create(tmp_path / "a", "lora", {})
    assert run.checkpoint_steps() == []
    for name in ("000200", "000030", ".000300.tmp", ".000010.old", "notes"):
        (run.checkpoints / name).mkdir(parents=True)
    assert run.checkpoint_steps() == [30, 200]
    assert run.checkpoint(30).is_dir()


def test_default_paths_are_new_and_readable(tmp_path: Path) -> None:
    first = rundir.default_path(tmp_path, "lora", "Mein süßer Hund!")
    assert first == tmp_path / "lora-mein-s-er-hund-001"
    create(first, "lora", {})
    assert rundir.default_path(tmp_path, "lora", "Mein süßer Hund!").name == "lora-mein-s-er-hund-002"
    assert rundir.default_path(tmp_path, "lora", "…").name == "lora-run-001"


def test_this_process_is_alive() -> None:
    assert is_alive(process_identity())
    assert is_alive(json.loads(json.dumps(process_identity())))


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def test_a_killed_process_is_not_alive_even_before_it_is_waited_for(sleeper: subprocess.Popen) -> None:
    identity = process_identity(sleeper.pid)
    assert is_alive(identity)
    os.kill(sleeper.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while is_alive(identity) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(identity), "a zombie does not train"
    sleeper.wait()
    assert not is_alive(identity)


def test_a_used_again_pid_is_another_process(sleeper: subprocess.Popen) -> None:
    identity = process_identity(sleeper.pid)
    assert not is_alive(identity | {"started": "1"})
    assert not is_alive(None)
    assert not is_alive({})


def test_git_state_names_the_commit() -> None:
    state = rundir.git_state()
    commit = state.removesuffix("+changes")
    assert state == "unknown" or (len(commit) == 40 and int(commit, 16) >= 0)


def test_a_run_is_had_by_one_at_a_time_and_given_back(tmp_path: Path) -> None:
    run = create(tmp_path / "a", "lora", {})
    with run.locked():
        for _ in range(2):
            with pytest.raises(RunError, match=f"a: is being trained by process {os.getpid()}; stop that first"):
                run.locked().__enter__()
    with pytest.raises(KeyError), run.locked():
        raise KeyError
    with run.locked():
        assert json.loads(run.lock_path.read_text()) == process_identity()


HOLD = """
import sys, time
from pathlib import Path
from trainers.rundir import RunDir
with RunDir(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Return a process that has the run `tmp_path / "a"`."""
    run = create(tmp_path / "a", "lora", {})
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def test_a_killed_process_gives_the_run_back(tmp_path: Path, holder: subprocess.Popen) -> None:
    run = RunDir(tmp_path / "a")
    with pytest.raises(RunError, match=f"trained by process {holder.pid};"):
        run.locked().__enter__()
    holder.kill()
    holder.wait()
    with run.locked():
        assert json.loads(run.lock_path.read_text())["pid"] == os.getpid(), "the dead one's name is gone"


@pytest.mark.parametrize("left", ["", "{", "[]", "{}", '{"pid": 4194303, "started": "1"}'])
def test_the_name_is_waited_for_while_the_file_holds_none_or_a_dead_one(
    tmp_path: Path, holder: subprocess.Popen, left: str
) -> None:
    run = RunDir(tmp_path / "a")
    name = run.lock_path.read_text()
    run.lock_path.write_text(left)
    later = threading.Timer(0.2, lambda: run.lock_path.write_text(name))
    later.start()
    with pytest.raises(RunError, match=f"trained by process {holder.pid};"):
        run.locked().__enter__()
    later.join()


def test_a_process_of_another_machine_is_said(
    tmp_path: Path, holder: subprocess.Popen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rundir, "HOLDER_SECONDS", 0.05)
    run = RunDir(tmp_path / "a")
    run.lock_path.write_text('{"pid": 4194303, "started": "1"}')
    with pytest.raises(RunError, match="trained by a process of another machine"):
        run.locked().__enter__()


def test_a_folder_that_cannot_be_locked_is_refused(tmp_path: Path) -> None:
    run = create(tmp_path / "a", "lora", {})
    run.lock_path.mkdir()
    with pytest.raises(RunError, match="a: cannot be written"):
        run.locked().__enter__()
