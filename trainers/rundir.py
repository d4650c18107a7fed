"""The run directory: the only contract between the trainers and whoever watches them.

    run.json              schema version, state, method, config, versions, device, times, outcome
    metrics.jsonl         one JSON object per logged step
    log.txt               what the run said
    previews/000100/*.png
    checkpoints/000100/   complete or absent
    adapter.safetensors   the result
    report.html
    STOP                  created by anybody: finish the step, save, end as `stopped`
    .lock                 locked by the process that trains, for as long as it lives; says which one that is

`run.json` is replaced atomically, so a reader never sees half of it, and it is accepted by `--config`.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from lrdiff.errors import NonFiniteError, RunError
from lrdiff.files import write_bytes, write_json
from trainers.locks import lock_within, open_lock

SCHEMA = 1
RunState = Literal["queued", "running", "finished", "failed", "stopped", "interrupted"]
STATES: tuple[str, ...] = get_args(RunState)
HOLDER_SECONDS = 2.0
"""How long to wait for the name of the process that has just taken a run."""
LOCK_SECONDS = 0.5
"""How long to wait for a run that somebody has: a queue that corrects its record has it for a moment."""
ENDED: frozenset[str] = frozenset({"finished", "failed", "stopped", "interrupted"})


class TakenError(RunError):
    """Another process has the run."""


@dataclass(frozen=True, slots=True)
class RunDir:
    """Paths and record of one run."""

    path: Path

    @property
    def record_path(self) -> Path:
        """Path of run.json."""
        return self.path / "run.json"

    @property
    def metrics_path(self) -> Path:
        """Path of metrics.jsonl."""
        return self.path / "metrics.jsonl"

    @property
    def log_path(self) -> Path:
        """Path of log.txt."""
        return self.path / "log.txt"

    @property
    def previews(self) -> Path:
        """Folder of previews, one folder per step."""
        return self.path / "previews"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints, one folder per step."""
        return self.path / "checkpoints"

    @property
    def artifact_path(self) -> Path:
        """Path of the result."""
        return self.path / "adapter.safetensors"

    @property
    def stop_path(self) -> Path:
        """Path of the file that asks for a clean stop."""
        return self.path / "STOP"

    @property
    def lock_path(self) -> Path:
        """Path of the file that the process which trains holds locked."""
        return self.path / ".lock"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Have the run to oneself for the time of a `with` block; a process that is killed gives it back.

        Raises:
            TakenError: Another process, or another thread of this one, has the run.
            RunError: The folder cannot be locked.
        """
        try:
            handle = open_lock(self.lock_path)
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written ({error.strerror}); look at the folder's rights") from error
        try:
            self._take(handle)
            yield
        finally:
            os.close(handle)

    def _take(self, handle: int) -> None:
        try:
            is_ours = lock_within(handle, LOCK_SECONDS)
        except OSError as error:
            raise RunError(
                f"{self.lock_path}: cannot be locked ({error.strerror}); put the run on a disk that can lock files"
            ) from error
        if not is_ours:
            raise TakenError(f"{self.path}: is being trained by {_holder(handle)}; stop that first")
        _sign(self.path, handle)

    def read(self) -> dict[str, Any]:
        """Return run.json, whose state, method and config can be relied on.

        Raises:
            RunError: It is absent, damaged, of a newer schema, or not a record of a run.
        """
        try:
            record = json.loads(self.record_path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RunError(f"{self.path}: no run.json, so this is not a run directory") from error
        except (OSError, ValueError) as error:
            raise RunError(f"{self.record_path}: cannot be read ({error})") from error
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            raise RunError(f"{self.record_path}: not a record of schema {SCHEMA}; update lrdiff or make a new run")
        known = (record.get("state") in STATES, isinstance(record.get("method"), str))
        if not all(known) or not isinstance(record.get("config"), dict):
            raise RunError(f"{self.record_path}: has no state, method or config of lrdiff; put a copy of it back")
        return record

    def update(self, **changes: Any) -> dict[str, Any]:
        """Change fields of run.json in one step and return the new record."""
        record = self.read() | changes
        write_json(self.record_path, record)
        return record

    def metrics(self) -> list[dict[str, Any]]:
        """Return the logged metrics; a last line that is still being written is left out.

        Raises:
            RunError: Another line is no JSON object with a step, or the file cannot be read.
        """
        try:
            lines = self.metrics_path.read_text(encoding="utf-8").split("\n")
            rows = [json.loads(line) for line in lines[:-1] if line]
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise RunError(f"{self.metrics_path}: damaged ({error}); remove the damaged line") from error
        for row in rows:
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise RunError(f"{self.metrics_path}: damaged ({str(row)[:60]} has no step); remove the damaged line")
        return rows

    def append_metrics(self, values: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl. Raises `NonFiniteError` for NaN and infinity, which JSON has not."""
        bad = [name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)]
        if bad:
            raise NonFiniteError(f"{', '.join(bad)} of step {values.get('step')} is not finite; lower optim.lr")
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(values), allow_nan=False) + "\n")

    def drop_metrics_after(self, step: int) -> None:
        """Forget what was logged after `step`, and a half-written last line: a resumed run logs it again."""
        kept = [json.dumps(row) + "\n" for row in self.metrics() if row["step"] <= step]
        write_bytes(self.metrics_path, "".join(kept).encode())

    def checkpoint_steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, oldest first."""
        if not self.checkpoints.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.checkpoints.iterdir() if entry.name.isdigit())

    def checkpoint(self, step: int) -> Path:
        """Return the folder of the checkpoint of a step."""
        return self.checkpoints / f"{step:06d}"


def create(path: Path, method: str, config: Mapping[str, Any]) -> RunDir:
    """Make a run directory in state `queued`.

    Args:
        path: Must not exist yet, or be an empty folder.
        method: Registry name of the method.
        config: The complete run configuration as JSON values.

    Raises:
        RunError: The folder holds something already, or cannot be written.
    """
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunError(f"{path}: already exists and is not empty; choose another --out, or --resume it")
        path.mkdir(parents=True, exist_ok=True)
        write_json(
            path / "run.json",
            {
                "schema": SCHEMA,
                "state": "queued",
                "method": method,
                "config": dict(config),
                "seed": config.get("seed"),
                "created": now(),
                "git": git_state(),
            },
        )
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error}); choose another --out") from error
    return RunDir(path)


def open_run(path: Path) -> RunDir:
    """Return an existing run directory. Raises `RunError` when it is none."""
    run = RunDir(path)
    run.read()
    return run


def default_path(root: Path, method: str, label: str) -> Path:
    """Return a new folder name `root/method-label-NNN` that does not exist yet."""
    slug = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:40] or "run"
    number = 1
    while (root / f"{method}-{slug}-{number:03d}").exists():
        number += 1
    return root / f"{method}-{slug}-{number:03d}"


def now() -> str:
    """Return the time in UTC as ISO 8601 with seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def git_state() -> str:
    """Return commit and `+changes` of the code that runs, or `unknown` where it is not a git checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return "unknown"
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit + ("+changes" if changed else "")


def _git(root: Path, *words: str) -> str:
    result = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True, timeout=10)
    return result.stdout.strip()


def process_identity(pid: int | None = None) -> dict[str, Any]:
    """Return pid and start time of a process, which together name it even after the pid is used again."""
    number = os.getpid() if pid is None else pid
    fields = _process_fields(number)
    return {"pid": number, "started": fields[19] if fields else None}


def _process_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the process state on; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def is_alive(identity: Mapping[str, Any] | None) -> bool:
    """Tell whether the process of `process_identity` still runs. One that ended and was not waited for does not."""
    if not identity:
        return False
    try:
        os.kill(int(identity["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    is_zombie = _process_fields(int(identity["pid"]))[:1] == ["Z"]
    return not is_zombie and process_identity(int(identity["pid"])) == dict(identity)


def _sign(folder: Path, handle: int) -> None:
    """Write into an open lock file that this process holds it."""
    try:
        os.truncate(handle, 0)
        os.pwrite(handle, json.dumps(process_identity()).encode(), 0)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror}); free some space") from error


def _holder(handle: int) -> str:
    """Say which process holds the lock of an open lock file."""
    deadline = time.monotonic() + HOLDER_SECONDS
    while True:
        try:
            identity = json.loads(os.pread(handle, 1000, 0))
        except ValueError:
            identity = None
        # Between locking and writing its name the winner's file is empty, or still names a process that was killed.
        if isinstance(identity, dict) and "pid" in identity and is_alive(identity):
            return f"process {identity['pid']}"
        if time.monotonic() > deadline:
            return "a process of another machine"
        time.sleep(0.01)
