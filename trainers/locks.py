"""Locks on files that end with the process that holds them, however it ends.

They are flock locks: child processes that inherit the file descriptor hold the lock as well, which is what lets a
trainer keep its device after the server that started it was killed. Linux and macOS have them. Windows has only locks
that cannot be inherited, so there the first lock is refused with a sentence instead of being weaker than it says.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from lrdiff.errors import RunError

RETRY_SECONDS = 0.01


def try_lock(handle: int, shared: bool = False) -> bool:
    """Lock an open file, or return False where another has it.

    Args:
        handle: Of the open file. The lock lasts until every copy of it is closed.
        shared: Whether others may hold it too, if they also ask for a shared one.

    Raises:
        RunError: The operating system has no such locks.
        OSError: The file system has none.
    """
    if sys.platform == "win32":
        raise RunError("training and its queue need file locks that Windows does not have; run lrdiff in WSL")
    import fcntl

    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_within(handle: int, seconds: float, shared: bool = False) -> bool:
    """Lock an open file, or return False where another still has it after `seconds`. Raises as `try_lock` does."""
    deadline = time.monotonic() + seconds
    while not try_lock(handle, shared):
        if time.monotonic() >= deadline:
            return False
        time.sleep(RETRY_SECONDS)
    return True


def open_lock(path: Path) -> int:
    """Open a lock file, made where it is absent, and return its descriptor; closing it gives the lock back.

    The file itself stays: if it went, a third process could lock a new one while the second still waits for this.
    """
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
