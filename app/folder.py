"""The folder of runs: which there are, by what names, in what state. Everything is read from disk at every look."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from app import text, text_runs
from app.device import holders
from app.outcome import present, verdict
from lrdiff.errors import RunError
from trainers.locks import lock_within, open_lock
from trainers.rundir import ENDED, RunDir, is_alive, now

Record = dict[str, Any]
QUEUE_SECONDS = 10.0


class Folder:
    """Runs below one folder, directly or one level deeper, as `lrdiff demo` leaves them.

    A run's name is its path below the folder: "mug-001", or "demo-mug-001/lora". What begins with a dot is no run.
    """

    def __init__(self, root: Path) -> None:
        """Look at a folder of runs without touching it."""
        self.root = root.resolve()
        self._unreadable: dict[str, str] = {}

    def runs(self) -> list[tuple[RunDir, Record]]:
        """Return every readable run with its record, newest first."""
        found: list[tuple[RunDir, Record]] = []
        unreadable: dict[str, str] = {}
        for path in self._paths(unreadable):
            run = RunDir(path)
            try:
                found.append((run, _read(run)))
            except RunError as error:
                unreadable[self.name(run)] = str(error)
        self._unreadable = unreadable
        return sorted(found, key=lambda item: _age(self.name(item[0]), item[1]), reverse=True)

    def trusted(self) -> list[tuple[RunDir, Record]]:
        """Return the runs as `runs` does, each with a state that can be stood by."""
        return [(run, self.present(run, record)) for run, record in self.runs()]

    def waiting(self) -> list[RunDir]:
        """Return the runs that wait for a worker, the next one first.

        A run in state queued that was never submitted belongs to the command that made it and is about to train it.
        """
        queued = [(_submitted(record), run) for run, record in self.runs() if record["state"] == "queued"]
        return [run for when, run in sorted(queued, key=lambda item: (item[0], item[1].path)) if when]

    def unreadable(self) -> dict[str, str]:
        """Return what looked like a run at the last look and could not be read: the reason by name."""
        return dict(self._unreadable)

    def name(self, run: RunDir) -> str:
        """Return the name of a run of this folder."""
        return run.path.relative_to(self.root).as_posix()

    def find(self, name: str) -> RunDir:
        """Return a run by its name. Raises `RunError` when there is none; a name never leads out of the folder."""
        parts = PurePosixPath(name).parts
        is_plain = 1 <= len(parts) <= 2 and name == "/".join(parts) and not any(part[0] in "./" for part in parts)
        path = self.root.joinpath(*parts) if is_plain else self.root
        run = RunDir(path)
        if not is_plain or path != Path(os.path.realpath(path)) or not run.record_path.is_file():
            raise RunError(text.NO_SUCH_RUN.format(name=name))
        return run

    def is_alive(self, run: RunDir, record: Record) -> bool:
        """Tell whether a process carries out this run: one that was started by a worker, or from a terminal."""
        return is_alive(record.get("process")) or self.holder(run) is not None

    def present(self, run: RunDir, record: Record) -> Record:
        """Return a record whose state can be stood by: one that says running, but whose process is gone, does not."""
        return present(run, record, lambda newest: self.is_alive(run, dict(newest)))

    def holder(self, run: RunDir) -> Record | None:
        """Return what is known of the process that a worker started for this run and that has a device."""
        name = self.name(run)
        return next((holder for holder in holders(self.root) if holder.get("run") == name), None)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Be the only one who changes which runs wait, start or exist, for the time of a `with` block.

        Raises:
            RunError: The folder cannot be written, or another process does not come to an end with it.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            handle = open_lock(self.root / ".queue.lock")
        except OSError as error:
            raise RunError(text_runs.CANNOT_CHANGE.format(path=self.root, reason=error.strerror or error)) from error
        try:
            if not lock_within(handle, QUEUE_SECONDS):
                raise RunError(text_runs.BUSY.format(path=self.root, seconds=QUEUE_SECONDS))
            yield
        finally:
            os.close(handle)

    def settle(self, run: RunDir, record: Record, code: int | None = None) -> None:
        """Correct the record of a run without end state whose process is gone. To be called inside `exclusive`.

        Args:
            run: The run.
            record: Its record as it was seen.
            code: Exit code of its process, where it is known.

        Raises:
            RunError: The record cannot be read or written.
            OSError: It cannot be written.
        """
        is_asked = run.stop_path.exists()
        is_waiting = record["state"] == "queued" and code is None
        if (is_waiting and not is_asked) or self.is_alive(run, record):
            return
        # Locked, so that nobody writes between this look and the correction, and read again, since somebody may have.
        with run.locked():
            record = run.read()
            if record["state"] == "queued" and code is None:
                run.update(state="stopped", outcome=text.STOPPED_BEFORE, ended=now())
            elif record["state"] not in ENDED or (code is not None and record.get("outcome") == text.GONE):
                state, outcome = verdict(code)
                run.update(state=state, outcome=outcome, exit_code=code, ended=now(), process=None)

    def _paths(self, unreadable: dict[str, str]) -> Iterator[Path]:
        """Find the folders that hold a run.json, and write down what could not be looked into."""
        for folder in _subfolders(self.root, self.root, unreadable):
            if (folder / "run.json").is_file():
                yield folder
                continue
            yield from (inner for inner in _subfolders(folder, self.root, unreadable) if (inner / "run.json").is_file())


def _subfolders(folder: Path, root: Path, unreadable: dict[str, str]) -> list[Path]:
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        links = [entry for entry in entries if entry.is_symlink() and (Path(entry.path) / "run.json").is_file()]
        found = sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        # Moved to the trash at this moment, or there are no runs yet.
        return []
    except OSError as error:
        reason = text_runs.UNREADABLE_FOLDER.format(path=folder, reason=error.strerror or error)
        unreadable[folder.relative_to(root).as_posix()] = reason
        return []
    for entry in links:
        path = Path(entry.path)
        unreadable[path.relative_to(root).as_posix()] = text_runs.A_LINK.format(path=path)
    return found


def _read(run: RunDir) -> Record:
    """Return a record; one that did not change is not parsed again, since whoever watches looks at all of them."""
    try:
        stat = run.record_path.stat()
    except OSError:
        return run.read()
    return dict(_read_once(run, stat.st_ino, stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=2000)
def _read_once(run: RunDir, inode: int, changed: int, size: int) -> Record:
    return run.read()


def _age(name: str, record: Record) -> tuple[str, float, str]:
    return str(record.get("created", "")), _submitted(record), name


def _submitted(record: Record) -> float:
    """Return when a run was put into the queue; 0 for never."""
    when = record.get("submitted")
    return float(when) if isinstance(when, int | float) else 0.0


def text_file(run: Path, setting: str) -> Path:
    """Return where a run keeps the text of a setting that names a text file."""
    return run / f"{setting}.txt"
