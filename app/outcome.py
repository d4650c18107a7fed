"""What became of a run: what its process left behind decides, never what the run says of itself alone."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from app import text
from trainers.rundir import RunDir

TAIL_BYTES = 20_000


def verdict(code: int | None) -> tuple[str, str]:
    """Return end state and outcome of a run whose process ended without writing one.

    Args:
        code: Exit code; negative for a signal; None when the process was started by somebody who is gone.
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


def broken_promise(run: RunDir, record: Mapping[str, Any], code: int = 0) -> str:
    """Return why a run that says finished must not be believed, or "".

    The trainer read its artifact back before it wrote the digest into the record; the same bytes are the same artifact.
    """
    if record["state"] != "finished":
        return ""
    if code:
        return text.EXITED_LATE.format(code=code)
    promised = record.get("artifact")
    if not isinstance(promised, dict) or not run.artifact_path.is_file():
        return text.NO_ARTIFACT
    stat = run.artifact_path.stat()
    if _digest(run.artifact_path, stat.st_mtime_ns, stat.st_size) != promised.get("sha256"):
        return text.OTHER_ARTIFACT
    return ""


def usable_artifact(run: RunDir, record: Mapping[str, Any]) -> bool:
    """Tell whether an ended run left an adapter that was written, read back and still is the same file."""
    return bool(record.get("artifact")) and not broken_promise(run, dict(record) | {"state": "finished"})


def present(run: RunDir, record: Mapping[str, Any], is_alive: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any]:
    """Return a record whose state and outcome can be stood by, whatever the one on disk still says.

    Args:
        run: The run directory.
        record: Its run.json.
        is_alive: Tells whether a process carries out the run of a record.
    """
    if record["state"] == "running" and not is_alive(record):
        # It may have ended between the two looks, and then says how.
        record = run.read()
        if record["state"] == "running":
            state, outcome = verdict(None)
            return {**record, "state": state, "outcome": outcome}
    problem = broken_promise(run, record)
    return {**record, "state": "failed", "outcome": problem} if problem else dict(record)


@lru_cache(maxsize=1000)
def _digest(path: Path, changed: int, size: int) -> str:
    """Return the SHA-256 of a file, computed once for every change of it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def console(run: RunDir) -> Path:
    """Return the file with what the trainer's process printed, which holds also crashes that no log saw."""
    return run.path / "console.txt"


def tail(path: Path, lines: int) -> str:
    """Return the last lines of a text file; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            content = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(content.splitlines()[-lines:])


def log_tail(run: RunDir, lines: int = 400) -> str:
    """Return the end of the run's log, or of what its process printed where it never came to a log."""
    return tail(run.log_path, lines) or tail(console(run), lines)


def last_words(run: RunDir, lines: int = 40) -> str:
    """Return the last lines of a run that went wrong: what its process printed, tracebacks included, else its log."""
    return tail(console(run), lines) or tail(run.log_path, lines)
