"""The worker: starts waiting runs on free devices and writes down what became of them.

A trainer is a process of its own. It inherits the lock of its device and so holds it exactly as long as it lives,
whoever started it and whatever became of the worker; the lock file says which run that is. A worker that starts again
finds the run by it, and any number of workers on one folder never start a run twice.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app import text, text_runs
from app.device import Device, Hold, holders
from app.folder import Folder, Record
from app.outcome import broken_promise, console
from app.priority import lower_process
from lrdiff.errors import LrdiffError, RunError
from trainers.locks import lock_within, open_lock, try_lock
from trainers.rundir import ENDED, RunDir, now, process_identity

log = logging.getLogger(__name__)

SPACE = 50_000_000
"""Bytes that must be free before a run is started; a trainer asks for its checkpoints on top."""
LEFTOVER_SECONDS = 24 * 3600
"""Age at which the copy that a killed server never finished making is removed."""


@dataclass(frozen=True, slots=True)
class Child:
    """A trainer that was started here.

    Attributes:
        process: It.
        submitted: When its run had been put into the queue: one that was put there again is another story.
    """

    process: subprocess.Popen[bytes]
    submitted: float


class Worker:
    """Carries out the waiting runs of one folder, oldest first, one at a time on each of its devices."""

    def __init__(self, folder: Folder, devices: Sequence[Device], trainer: Sequence[str], interval: float) -> None:
        """Nothing is started yet.

        Args:
            folder: The runs.
            devices: Where it may compute.
            trainer: Command that carries out a run; the run directory is appended to it.
            interval: Seconds between two looks.
        """
        self._folder = folder
        self._devices = tuple(devices)
        self._trainer = tuple(trainer)
        self._interval = interval
        self._children: dict[str, Child] = {}
        self._troubles: dict[str, str] = {}
        self._turn = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._presence: int | None = None

    def start(self) -> None:
        """Start looking, in a thread. Runs that an earlier worker left behind are taken up."""
        self._folder.root.mkdir(parents=True, exist_ok=True)
        self._presence = open_lock(_presence_path(self._folder.root))
        lock_within(self._presence, 1.0, shared=True)
        _remove_leftovers(self._folder.root)
        self._closing.clear()
        self._thread = threading.Thread(target=self._work, name="lrdiff-queue", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more. Trainers that are under way go on."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._presence is not None:
            os.close(self._presence)
            self._presence = None

    def is_idle(self) -> bool:
        """Tell whether nothing waits and nothing that this worker started is under way."""
        return not self._children and not self._folder.waiting()

    def troubles(self) -> list[str]:
        """Return what keeps the worker from its work at present."""
        return list(self._troubles.values())

    def tick(self) -> None:
        """Look once: settle runs whose process is gone, then start waiting ones on free devices.

        Raises:
            RunError: The folder cannot be written.
            OSError: A lock file cannot be written.
        """
        with self._turn, self._folder.exclusive():
            before, self._troubles = self._troubles, {}
            try:
                self._settle_all()
                self._launch_waiting()
            finally:
                for key, message in self._troubles.items():
                    # The worker meets the same trouble twice a second.
                    if before.get(key) != message:
                        log.warning("%s", message)

    def _work(self) -> None:
        while not self._closing.is_set():
            try:
                self.tick()
            except (LrdiffError, OSError) as error:
                message = text_runs.TRIES_AGAIN.format(error=error)
                if self._troubles.get("") != message:
                    log.warning("%s", message)
                self._troubles[""] = message
            self._closing.wait(self._interval)

    def _settle_all(self) -> None:
        """Write down what became of runs. One whose record cannot be written does not hold up the others."""
        for run, record in self._folder.runs():
            name = self._folder.name(run)
            child = self._children.get(name)
            code = child.process.poll() if child else None
            if child is not None and code is None:
                continue
            try:
                if child is not None:
                    self._close_books(run, child, code or 0)
                    del self._children[name]
                    log.info("%s: %s", name, run.read()["state"])
                elif record["state"] not in ENDED:
                    self._folder.settle(run, record)
            except (RunError, OSError) as error:
                self._troubles[name] = text_runs.CANNOT_SETTLE.format(name=name, error=error)
        # Deleted, or no longer readable; the process is gone in any case.
        present = {self._folder.name(run) for run, _ in self._folder.runs()}
        for name in [name for name, child in self._children.items() if child.process.poll() is not None]:
            if name not in present:
                del self._children[name]

    def _close_books(self, run: RunDir, child: Child, code: int) -> None:
        """Check how a trainer ended that was started here: success is exit code 0 and the artifact it speaks of."""
        record = run.read()
        if record.get("submitted") != child.submitted:
            return
        if record["state"] not in ENDED or record.get("outcome") == text.GONE:
            self._folder.settle(run, record, code)
            return
        problem = broken_promise(run, record, code)
        changes = {"state": "failed", "outcome": problem, "exit_code": code} if problem else {"exit_code": code}
        if problem or code:
            with run.locked():
                run.update(**changes)

    def _launch_waiting(self) -> None:
        # A trainer that was stopped and whose run is to go on may still be ending.
        held = {str(holder.get("run")) for holder in holders(self._folder.root)} | self._children.keys()
        waiting = [run for run in self._folder.waiting() if self._folder.name(run) not in held]
        if not waiting:
            return
        free = shutil.disk_usage(self._folder.root).free
        if free < SPACE:
            message = text_runs.LITTLE_SPACE.format(path=self._folder.root, free=text.size(free))
            self._troubles["space"] = message
            return
        foreign = self._foreign()
        if foreign:
            self._troubles["foreign"] = text_runs.WAITS_FOR_FOREIGN.format(names=", ".join(foreign))
            return
        for device in self._devices:
            hold = device.acquire("")
            if hold is None:
                continue
            try:
                while waiting and not self._launch(waiting.pop(0), device, hold):
                    continue
            finally:
                hold.close()

    def _foreign(self) -> list[str]:
        """Return the runs that compute without a device of ours: on which one, a terminal does not tell."""
        held = {str(holder.get("run")) for holder in holders(self._folder.root)}
        running = [(self._folder.name(run), run, record) for run, record in self._folder.runs()]
        return [
            name
            for name, run, record in running
            if record["state"] == "running" and name not in held and self._folder.is_alive(run, record)
        ]

    def _launch(self, run: RunDir, device: Device, hold: Hold) -> bool:
        """Start the process of a run. Returns whether it was started; why not is in its record, or in the troubles."""
        name = self._folder.name(run)
        try:
            record = run.read()
            if record["state"] != "queued" or "submitted" not in record:
                return False
            try:
                child = self._spawn(run, record, device, hold)
            except OSError as error:
                with run.locked():
                    run.update(state="failed", outcome=text.CANNOT_START.format(reason=error), ended=now())
                return False
        except (RunError, OSError) as error:
            self._troubles[name] = text_runs.CANNOT_SETTLE.format(name=name, error=error)
            return False
        lower_process(child.pid)
        self._children[name] = Child(child, record["submitted"])
        hold.describe({"run": name, **process_identity(child.pid)})
        log.info("%s: started as process %d%s", name, child.pid, f" on {device.name}" if device.name else "")
        return True

    def _spawn(self, run: RunDir, record: Record, device: Device, hold: Hold) -> subprocess.Popen[bytes]:
        # Before the process is there: a worker that is killed right after leaves a lock that says whose it is.
        hold.describe({"run": self._folder.name(run)})
        resume = ["--resume"] if record.get("resume") else []
        with console(run).open("ab") as output:
            return subprocess.Popen(
                [*self._trainer, str(run.path), *resume],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | device.environment,
                start_new_session=True,
                pass_fds=hold.handles,
            )


def is_attended(root: Path) -> bool:
    """Tell whether a worker, of this process or of another, looks after a folder."""
    try:
        handle = os.open(_presence_path(root), os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(handle)
    finally:
        os.close(handle)


def was_attended(root: Path) -> bool:
    """Tell whether a worker ever looked after a folder."""
    return _presence_path(root).is_file()


def _presence_path(root: Path) -> Path:
    return root / ".worker.lock"


def _remove_leftovers(root: Path) -> None:
    """Remove what a server that was killed had begun to copy."""
    for path in root.glob(".new-*"):
        if path.is_dir() and not path.is_symlink() and time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
            shutil.rmtree(path, ignore_errors=True)
