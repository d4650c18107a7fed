"""The queue: everything a person may ask of runs.

Their state lives in the run directories and in locks alone, so a server may die at any time, and the page and the
terminal can be used side by side.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from app import text, text_runs, trash
from app.device import Device
from app.device import devices as devices_of
from app.folder import Folder, Record, text_file
from app.trash import Trashed
from app.worker import Worker, is_attended
from lrdiff.errors import RunError
from trainers.rundir import ENDED, RunDir, create, default_path, is_alive, now

__all__ = ["Device", "Queue", "Trashed"]

TRAINER = (sys.executable, "-m", "trainers")
KILL_SECONDS = 5.0
"""How long a killed process may take to be gone."""
LEAVE_SECONDS = 10.0
"""How long one that wrote down its end may take to be gone, until it counts as still there."""


class Queue(Folder):
    """Runs below one folder, carried out one after the other on each device, oldest first."""

    def __init__(
        self,
        root: Path,
        trainer: Sequence[str] = TRAINER,
        interval: float = 0.5,
        devices: Sequence[str] = (),
    ) -> None:
        """Look at a folder of runs without touching it.

        Args:
            root: Folder of the run directories; made when the first run is submitted.
            trainer: Command that carries out a run; the run directory is appended to it.
            interval: Seconds between two looks of the worker.
            devices: Numbers of GPUs, or "cpu": each gets a trainer of its own. None: the machine does one thing at a
                time.

        Raises:
            ConfigError: A name is no device's, or is given twice.
        """
        super().__init__(root)
        self.trainer = tuple(trainer)
        self.devices = devices_of(self.root, devices)
        self.worker = Worker(self, self.devices, trainer, interval)

    @property
    def device(self) -> Device:
        """The first device: the one that a generation in this process takes."""
        return self.devices[0]

    def start(self) -> None:
        """Start the worker thread. Runs that an earlier server left behind are taken up."""
        self.worker.start()

    def close(self) -> None:
        """End the worker thread. A trainer that is under way goes on."""
        self.worker.close()

    def tick(self) -> None:
        """Let the worker look once. Raises as `Worker.tick` does."""
        self.worker.tick()

    def troubles(self) -> list[str]:
        """Return what is wrong with the folder at present: records that cannot be read, work that cannot be done."""
        return [*self.unreadable().values(), *self.worker.troubles()]

    def is_attended(self) -> bool:
        """Tell whether a worker, of this process or of another, starts waiting runs."""
        return is_attended(self.root)

    def submit(
        self,
        method: str,
        config: dict[str, Any],
        files: Mapping[str, Path],
        label: str = "",
        texts: Mapping[str, str] | None = None,
    ) -> RunDir:
        """Make a run with its own copy of the images and put it into the queue.

        Args:
            method: Registry name of the method.
            config: The run configuration as JSON values; `data.images` is set to the copies.
            files: Pictures and captions to copy, by the names they get; the originals stay as they are.
            label: Becomes part of the run's name; the prompt when empty.
            texts: Text by setting, for settings that name a text file: "method.prompts". Each is written into the run.

        Raises:
            RunError: The folder cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            staged = Path(tempfile.mkdtemp(prefix=".new-", dir=self.root))
        except OSError as error:
            raise RunError(text.CANNOT_WRITE.format(path=self.root, reason=error.strerror or error)) from error
        try:
            return self._submit(staged, method, config, files, label or config["data"]["prompt"], texts or {})
        except OSError as error:
            raise RunError(text.CANNOT_WRITE.format(path=self.root, reason=error.strerror or error)) from error
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def _submit(
        self,
        staged: Path,
        method: str,
        config: dict[str, Any],
        files: Mapping[str, Path],
        label: str,
        texts: Mapping[str, str],
    ) -> RunDir:
        # Everything is made under a hidden name and appears in the queue by one rename, complete.
        while True:
            target = default_path(self.root, method, label)
            own = {"images": str(target / "images")} if files else {}
            complete = config | {"data": config["data"] | own}
            for setting in texts:
                part, name = setting.split(".")
                complete[part] = complete[part] | {name: str(text_file(target, setting))}
            run = create(staged / "run", method, complete)
            run.update(submitted=time.time())
            for setting, content in texts.items():
                text_file(run.path, setting).write_text(content + "\n", encoding="utf-8")
            if files:
                copy_files(files, run.path / "images")
            try:
                run.path.rename(target)
            except OSError:
                if not target.exists():
                    raise
                shutil.rmtree(run.path)
            else:
                return RunDir(target)

    def repeat(self, name: str, changes: Mapping[str, Any] | None = None, label: str = "") -> RunDir:
        """Put a new run with the method, the settings and copies of the pictures of an earlier one into the queue.

        Args:
            name: The earlier run, in whatever state.
            changes: Settings that differ, by dotted name: {"optim.steps": 500}.
            label: Becomes part of the new run's name; the prompt when empty.

        Raises:
            ConfigError: A changed setting is unknown or does not fit.
            RunError: There is no such run, its pictures cannot be read, or the folder cannot be written.
        """
        from app.repeat import changed, pictures_of, texts_of

        run = self.find(name)
        record = run.read()
        config = changed(record, changes or {})
        files, texts = pictures_of(name, config), texts_of(run, config)
        return self.submit(
            record["method"], config, files, label or config.get("data", {}).get("prompt") or "run", texts
        )

    def stop(self, name: str) -> None:
        """Ask a run to finish its step, save and end; one that waits ends at once. Raises `RunError` when it ended."""
        with self.exclusive():
            run = self.find(name)
            record = self._present(run)
            if record["state"] in ENDED:
                raise RunError(text.ALREADY_ENDED.format(name=name, state=text.STATES[record["state"]].lower()))
            with _telling(run):
                run.stop_path.touch()
                self.settle(run, record)

    def kill(self, name: str) -> None:
        """End the process of a run at once, without saving: for one that does not answer to `stop`.

        Raises:
            RunError: It has no process, or one that does not end.
        """
        # No worker looks meanwhile, so none finds the process gone before it is written down who ended it.
        with self.exclusive():
            run = self.find(name)
            record = self._present(run)
            process = next((p for p in (record.get("process"), self.holder(run)) if is_alive(_identity(p))), None)
            if process is None:
                known = self.is_alive(run, record)
                raise RunError((text_runs.NO_PROCESS if known else text_runs.NOT_RUNNING).format(name=name))
            _end(_identity(process) or {}, name)
            with run.locked(), _telling(run):
                if run.read()["state"] not in ENDED:
                    outcome = {"outcome": text_runs.KILLED_ON_REQUEST, "exit_code": -signal.SIGKILL}
                    run.update(state="interrupted", ended=now(), process=None, **outcome)

    def why_not_resume(self, name: str) -> str:
        """Return why a run cannot be put back into the queue, or "" when it can."""
        run = self.find(name)
        # One that says finished, but whose result is damaged, has failed and may go on.
        record = self.present(run, run.read())
        state = record["state"]
        if state == "queued" and "submitted" in record:
            return text_runs.IS_WAITING.format(name=name)
        if state in ("queued", "running") and self.is_alive(run, record):
            return text_runs.IS_RUNNING.format(name=name)
        if state == "finished":
            return text_runs.HAS_FINISHED.format(name=name)
        if not run.checkpoint_steps() and record.get("started"):
            return text_runs.NO_CHECKPOINT.format(name=name)
        return ""

    def resume(self, name: str) -> None:
        """Put a run back into the queue, behind those that wait: it goes on from its newest checkpoint.

        One that never began starts at its beginning.

        Raises:
            RunError: It waits, runs, has finished, or has no checkpoint.
        """
        self._let_leave(name)
        with self.exclusive():
            run = self.find(name)
            self._present(run)
            problem = self.why_not_resume(name)
            if problem:
                raise RunError(problem)
            changes = {"submitted": time.time(), "resume": bool(run.checkpoint_steps())}
            with run.locked(), _telling(run):
                # The wish that ended it last time.
                run.stop_path.unlink(missing_ok=True)
                run.update(state="queued", outcome=None, exit_code=None, ended=None, process=None, **changes)

    def delete(self, name: str) -> Trashed:
        """Move a run into the trash; one that waits is taken out of the queue first.

        Raises:
            RunError: It is running, or cannot be moved.
        """
        self._let_leave(name)
        with self.exclusive():
            run = self.find(name)
            try:
                record = run.read()
            except RunError:
                # What cannot be read can be deleted as well; a process that has it holds its lock.
                record = {"state": "failed"}
            if self.is_alive(run, record):
                raise RunError(text_runs.DELETE_RUNNING.format(name=name))
            with run.locked(), _telling(run):
                if record["state"] not in ENDED:
                    state = "stopped" if record["state"] == "queued" else "interrupted"
                    outcome = text.STOPPED_BEFORE if state == "stopped" else text.GONE
                    run.update(state=state, outcome=outcome, ended=now(), process=None)
                return trash.put(self.root, name)

    def trash(self) -> list[Trashed]:
        """Return the deleted runs, newest first."""
        return trash.listed(self.root)

    def restore(self, identity: str) -> RunDir:
        """Bring a deleted run back under its name. Raises `RunError` when it is not there or the name is taken."""
        with self.exclusive():
            return RunDir(trash.restore(self.root, identity))

    def purge(self, identity: str) -> None:
        """Remove a deleted run for good. Raises `RunError` when it is not in the trash."""
        with self.exclusive():
            trash.purge(self.root, identity)

    def _let_leave(self, name: str) -> None:
        """Wait for the process of a run that has ended: it writes that down a moment before it is gone."""
        run, deadline = self.find(name), time.monotonic() + LEAVE_SECONDS
        with contextlib.suppress(RunError):  # What cannot be read has no process that could be waited for.
            while time.monotonic() < deadline:
                record = run.read()
                if record["state"] not in ENDED or not self.is_alive(run, record):
                    return
                time.sleep(0.05)

    def _present(self, run: RunDir) -> Record:
        """Return a run's record, corrected where its process is gone and nobody has written that down."""
        record = run.read()
        if record["state"] == "running":
            with _telling(run):
                self.settle(run, record)
            record = run.read()
        return record


def copy_files(files: Mapping[str, Path], folder: Path) -> None:
    """Copy files byte by byte into a new folder. Raises `RunError` for a name that leaves the folder."""
    folder.mkdir()
    for name, source in files.items():
        if name != Path(name).name:
            raise RunError(text.BAD_NAME.format(name=name))
        shutil.copyfile(source, folder / name)


def _end(process: Mapping[str, Any], name: str) -> None:
    """Kill the process of a run and wait until it is gone. Raises `RunError` when it stays."""
    pid = int(process["pid"])
    # One that ends by itself in this moment is as good.
    with contextlib.suppress(ProcessLookupError):
        # The trainer of a worker leads a group of its own; one from a terminal may share it with the shell.
        if os.getpgid(pid) == pid and pid != os.getpgrp():
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + KILL_SECONDS
    while is_alive(process):
        if time.monotonic() > deadline:
            raise RunError(text_runs.STILL_THERE.format(name=name, pid=pid, seconds=KILL_SECONDS))
        time.sleep(0.02)


def _identity(process: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return pid and start time of what a record or a device's lock says, or None where it says neither."""
    if not process or "pid" not in process or "started" not in process:
        return None
    return {"pid": process["pid"], "started": process["started"]}


@contextlib.contextmanager
def _telling(run: RunDir) -> Iterator[None]:
    """Say which run could not be changed, and why."""
    try:
        yield
    except OSError as error:
        raise RunError(text_runs.CANNOT_CHANGE.format(path=run.path, reason=error.strerror or error)) from error
