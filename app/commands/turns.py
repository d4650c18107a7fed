"""One thing at a time: a command that trains or draws takes the device of its folder of runs, and waits for it.

The page and its workers hold the same lock, so training and drawing take turns whoever began them. The lock belongs to
a folder of runs and not to the machine: two folders know nothing of each other, since a lock for the whole machine
would need a place that every account can write. A run outside any folder that a page or a worker ever looked after has
nobody to take turns with, and takes no lock. `--share` takes none either.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from app import text_runs
from app.commands.console import say
from app.commands.flags import Options
from app.commands.runs_find import ROOT
from app.device import Device, Hold, holders
from app.worker import was_attended
from lrdiff.errors import RunError
from trainers.rundir import process_identity

PATIENCE = 0.5
"""Seconds between two looks whether the device is free."""


class TurnOptions(Options):
    """Whether to wait for others."""

    share: bool = False
    """Do not wait until training and drawing from the same folder of runs are done; both then become slower."""


@contextmanager
def turn(root: Path | None, share: bool) -> Iterator[Callable[[Path], None]]:
    """Have the device of a folder of runs for the time of a `with` block.

    Args:
        root: The folder, as `folder_of` finds it; None takes nothing.
        share: Take nothing.

    Yields:
        A function that writes down which run directory the device is held for.

    Raises:
        RunError: The folder cannot be written.
    """
    if root is None or share:
        yield lambda path: None
        return
    hold = _acquire(root)
    try:
        yield lambda path: hold.describe({"run": _name(path, root), **process_identity()})
    finally:
        hold.close()


def folder_of(path: Path) -> Path | None:
    """Return the folder of runs that a run directory belongs to, whether it is there already or not; None for none."""
    path, root = Path(os.path.abspath(path.expanduser())), ROOT.resolve()
    if path.is_relative_to(root) and 1 <= len(path.relative_to(root).parts) <= 2:
        return root
    return path.parent if was_attended(path.parent) else None


def folder_here() -> Path | None:
    """Return the folder of runs below the present one, where a page or a worker ever looked after one."""
    return ROOT.resolve() if was_attended(ROOT) else None


def _acquire(root: Path) -> Hold:
    device, told = Device(root), ""
    try:
        root.mkdir(parents=True, exist_ok=True)
        while (hold := device.acquire("")) is None:
            names = ", ".join(sorted({str(holder.get("run") or "") for holder in holders(root)} - {""}))
            message = text_runs.WAITS_TURN.format(what=names or text_runs.SOMETHING, root=root)
            if message != told:
                say(message)
            told = message
            time.sleep(PATIENCE)
    except OSError as error:
        raise RunError(text_runs.CANNOT_CHANGE.format(path=root, reason=error.strerror or error)) from error
    return hold


def _name(path: Path, root: Path) -> str:
    return Path(os.path.abspath(path)).relative_to(root).as_posix()
