"""The queue and its worker. The state lives in the run directories and in one lock, so a server may die at any time.

A trainer is a process of its own. It inherits the lock of the device and so holds it exactly as long as it lives,
whoever started it and whatever became of the server; the lock file says which run that is. A server that starts again
finds the run by it, and two servers on one folder never start two.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from app import text
from lrdiff.artifact import sha256
from lrdiff.errors import LrdiffError, RunError
from trainers.rundir import ENDED, RunDir, create, default_path, is_alive, now, process_identity

log = logging.getLogger(__name__)

TRAINER = (sys.executable, "-m", "trainers")
TAIL_BYTES = 20_000


class Device:
    """The lock that lets one thing at a time compute: one trainer, or one generation."""

    def __init__(self, root: Path) -> None:
        """Use the lock file of a folder of runs."""
        self.path = root / ".device.lock"

    def acquire(self, holder: str) -> int | None:
        """Take the lock, or return None where it is taken.

        Args:
            holder: Written into the file: the name of a run, or "" for something else.

        Returns:
            A file descriptor. The lock lasts until every copy of it, also in child processes, is closed.
        """
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        self.describe(handle, {"run": holder})
        return handle

    def describe(self, handle: int, holder: dict[str, Any]) -> None:
        """Write who holds the lock."""
        os.truncate(handle, 0)
        os.pwrite(handle, json.dumps(holder).encode(), 0)

    def holder(self) -> dict[str, Any] | None:
        """Return who holds the lock: {"run": name, "pid": ..., "started": ...}, or None when nobody does."""
        try:
            handle = os.open(self.path, os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _parsed(os.pread(handle, TAIL_BYTES, 0))
        finally:
            os.close(handle)
        return None

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Try to take the lock for the time of a `with` block. Yields whether it was free."""
        handle = self.acquire("")
        try:
            yield handle is not None
        finally:
            if handle is not None:
                os.close(handle)


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        # The holder is writing its name at this moment.
        return {"run": ""}
    return found if isinstance(found, dict) else {"run": ""}


class Queue:
    """Runs below one folder, carried out one after the other, oldest first."""

    def __init__(self, root: Path, trainer: Sequence[str] = TRAINER, interval: float = 0.5) -> None:
        """Look at a folder of runs without touching it.

        Args:
            root: Folder of the run directories; made when the first run is submitted.
            trainer: Command that carries out a run; the run directory is appended to it.
            interval: Seconds between two looks of the worker.
        """
        self.root = root.resolve()
        self.trainer = tuple(trainer)
        self.device = Device(self.root)
        self._interval = interval
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._asked: set[str] = set()
        self._complaints: set[str] = set()
        self._turn = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the worker thread. Runs that an earlier server left behind are taken up."""
        self.root.mkdir(parents=True, exist_ok=True)
        self._closing.clear()
        self._thread = threading.Thread(target=self._work, name="lrdiff-queue", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the worker thread. A trainer that is under way goes on."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def runs(self) -> list[tuple[RunDir, dict[str, Any]]]:
        """Return every readable run with its record, newest first."""
        found: list[tuple[RunDir, dict[str, Any]]] = []
        for record_path in self.root.glob("[!.]*/run.json"):
            run = RunDir(record_path.parent)
            try:
                found.append((run, run.read()))
            except RunError as error:
                self._complain(str(error))
        return sorted(found, key=_age, reverse=True)

    def find(self, name: str) -> RunDir:
        """Return a run by its name. Raises `RunError` when there is none; a name is never taken for a path."""
        run = RunDir(self.root / name)
        if not name or name != Path(name).name or name.startswith(".") or not run.record_path.is_file():
            raise RunError(text.NO_SUCH_RUN.format(name=name))
        return run

    def submit(self, method: str, config: dict[str, Any], files: Mapping[str, Path], label: str = "") -> RunDir:
        """Make a run with its own copy of the images and put it into the queue.

        Args:
            method: Registry name of the method.
            config: The run configuration as JSON values; `data.images` is set to the copies.
            files: Pictures and captions to copy, by the names they get; the originals stay as they are.
            label: Becomes part of the run's name; the prompt when empty.

        Raises:
            RunError: The folder cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            staged = Path(tempfile.mkdtemp(prefix=".new-", dir=self.root))
        except OSError as error:
            raise RunError(text.CANNOT_WRITE.format(path=self.root, reason=error.strerror or error)) from error
        try:
            return self._submit(staged, method, config, files, label or config["data"]["prompt"])
        except OSError as error:
            raise RunError(text.CANNOT_WRITE.format(path=self.root, reason=error.strerror or error)) from error
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def _submit(
        self, staged: Path, method: str, config: dict[str, Any], files: Mapping[str, Path], label: str
    ) -> RunDir:
        # Everything is made under a hidden name and appears in the queue by one rename, complete.
        while True:
            target = default_path(self.root, method, label)
            full = config | {"data": config["data"] | {"images": str(target / "images")}}
            run = create(staged / "run", method, full)
            run.update(submitted=time.time())
            copy_files(files, run.path / "images")
            try:
                run.path.rename(target)
            except FileExistsError:
                shutil.rmtree(run.path)
            except OSError:
                if not target.exists():
                    raise
                shutil.rmtree(run.path)
            else:
                return RunDir(target)

    def stop(self, name: str) -> None:
        """Ask a run to finish its step, save and end; one that waits ends at once. Raises `RunError` when it ended."""
        run = self.find(name)
        record = run.read()
        if record["state"] in ENDED:
            raise RunError(text.ALREADY_ENDED.format(name=name, state=text.STATES[record["state"]].lower()))
        # A trainer that is just starting removes an old STOP file; the worker then writes it again.
        self._asked.add(name)
        run.stop_path.touch()

    def is_alive(self, run: RunDir, record: dict[str, Any]) -> bool:
        """Tell whether a process carries out this run: one that was started here, or from a terminal."""
        holder = self.device.holder()
        if holder is not None and holder.get("run") == run.path.name:
            return True
        return is_alive(record.get("process"))

    def tick(self) -> None:
        """Look once: settle runs whose process is gone, then start the next one if nothing computes."""
        with self._turn:
            for run, record in self.runs():
                if record["state"] not in ENDED:
                    self._settle(run, record)
            for name in [name for name, child in self._children.items() if child.poll() is not None]:
                self._close_books(name, self._children.pop(name))
            self._launch_next()

    def _work(self) -> None:
        while not self._closing.is_set():
            try:
                self.tick()
            except (LrdiffError, OSError) as error:
                self._complain(f"the queue could not do its work and tries again: {error}")
            self._closing.wait(self._interval)

    def _complain(self, message: str) -> None:
        """Log a message the first time it comes up: the worker meets the same trouble twice a second."""
        if message not in self._complaints:
            self._complaints.add(message)
            log.warning("%s", message)

    def _settle(self, run: RunDir, record: dict[str, Any]) -> None:
        """Correct the record of a run that has no end state, if its process is gone."""
        name = run.path.name
        child = self._children.get(name)
        code = child.poll() if child else None
        if child is not None and code is None:
            if name in self._asked and record["state"] == "running" and not run.stop_path.exists():
                run.stop_path.touch()
            return
        if self.is_alive(run, record):
            return
        # Only now, with nobody left to write it, is the record final.
        record = run.read()
        if record["state"] == "queued" and code is None:
            if run.stop_path.exists():
                run.update(state="stopped", outcome=text.STOPPED_BEFORE, ended=now())
        elif record["state"] not in ENDED:
            state, outcome = verdict(code)
            log.warning("%s: %s", name, outcome)
            run.update(state=state, outcome=outcome, exit_code=code, ended=now(), process=None)

    def _close_books(self, name: str, child: subprocess.Popen[bytes]) -> None:
        """Check what a trainer claims that ended by itself: success is exit code 0 and the artifact it speaks of."""
        self._asked.discard(name)
        run = RunDir(self.root / name)
        record = run.read()
        problem = broken_promise(run, record, child.returncode)
        if problem:
            run.update(state="failed", outcome=problem, exit_code=child.returncode)
        elif child.returncode:
            run.update(exit_code=child.returncode)

    def _launch_next(self) -> None:
        runs = self.runs()
        waiting = [run for run, record in reversed(runs) if record["state"] == "queued"]
        busy = any(r["state"] == "running" and self.is_alive(run, r) for run, r in runs)
        if not waiting or busy or self._children:
            return
        run = waiting[0]
        lock = self.device.acquire(run.path.name)
        if lock is None:
            return
        try:
            # Another server may have taken the run between the look and the lock.
            if run.read()["state"] == "queued" and not run.stop_path.exists():
                self._launch(run, lock)
        finally:
            os.close(lock)

    def _launch(self, run: RunDir, lock: int) -> None:
        name = run.path.name
        try:
            with console(run).open("ab") as output:
                child = subprocess.Popen(
                    [*self.trainer, str(run.path)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=(lock,),
                )
        except OSError as error:
            run.update(state="failed", outcome=text.CANNOT_START.format(reason=error), ended=now())
            return
        self._children[name] = child
        self.device.describe(lock, {"run": name, **process_identity(child.pid)})
        log.info("%s: started as process %d", name, child.pid)


def console(run: RunDir) -> Path:
    """Return the file with what the trainer's process printed, which holds also crashes that no log saw."""
    return run.path / "console.txt"


def copy_files(files: Mapping[str, Path], folder: Path) -> None:
    """Copy files byte by byte into a new folder. Raises `RunError` for a name that leaves the folder."""
    folder.mkdir()
    for name, source in files.items():
        if name != Path(name).name:
            raise RunError(text.BAD_NAME.format(name=name))
        shutil.copyfile(source, folder / name)


def verdict(code: int | None) -> tuple[str, str]:
    """Return end state and outcome of a run whose process ended without writing one.

    Args:
        code: Exit code; negative for a signal; None when the process was started by an earlier server.
    """
    if code is None:
        return "interrupted", text.GONE
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = str(-code)
        return "interrupted", (text.KILLED_9 if code == -signal.SIGKILL else text.KILLED).format(signal=name)
    return "failed", text.EXITED.format(code=code)


def broken_promise(run: RunDir, record: dict[str, Any], code: int = 0) -> str:
    """Return why a run that says finished must not be believed, or "".

    The trainer read its artifact back before it wrote the digest into the record; the same bytes are the same artifact.
    """
    if record["state"] != "finished":
        return ""
    if code:
        return text.EXITED_LATE.format(code=code)
    if not record.get("artifact") or not run.artifact_path.is_file():
        return text.NO_ARTIFACT
    stat = run.artifact_path.stat()
    if _digest(run.artifact_path, stat.st_mtime_ns, stat.st_size) != record["artifact"]["sha256"]:
        return text.OTHER_ARTIFACT
    return ""


@lru_cache(maxsize=1000)
def _digest(path: Path, changed: int, size: int) -> str:
    """Return the SHA-256 of a file, computed once for every change of it."""
    return sha256(path)


def tail(path: Path, lines: int) -> str:
    """Return the last lines of a text file; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            content = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(content.splitlines()[-lines:])


def _age(item: tuple[RunDir, dict[str, Any]]) -> tuple[str, float, str]:
    run, record = item
    return record.get("created", ""), record.get("submitted", 0.0), run.path.name
