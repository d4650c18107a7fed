"""What computes in the background gives way to the page, which then answers quickly while something trains or draws."""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path

log = logging.getLogger(__name__)

NICENESS = 10
"""Of 19. Alone on the machine, a program of any niceness has all of it."""


def lower_process(pid: int) -> None:
    """Let a process that has just been started give way to all others."""
    if not hasattr(os, "setpriority"):
        return  # not a Unix: its scheduler prefers what somebody looks at by itself
    try:
        niceness = _lower(pid)
        # Linux may weigh sessions against each other first, and a trainer has one of its own.
        group = Path(f"/proc/{pid}/autogroup")
        if group.exists():
            group.write_text(str(niceness))
    except ProcessLookupError:
        log.debug("process %d has ended already", pid)
    except OSError as error:
        log.info("process %d keeps its priority (%s); answers of the page may be slower meanwhile", pid, error)


def lower_thread() -> None:
    """Let the calling thread give way to the others of its process. Only Linux has a priority for each thread."""
    if sys.platform != "linux":
        return
    try:
        _lower(threading.get_native_id())
    except OSError as error:
        log.info("a thread keeps its priority (%s); answers of the page may be slower meanwhile", error)


def _lower(pid: int) -> int:
    """Set the niceness and return it. One that is higher already stays: only an administrator may lower it."""
    niceness = max(NICENESS, os.getpriority(os.PRIO_PROCESS, pid))
    os.setpriority(os.PRIO_PROCESS, pid, niceness)
    return niceness
