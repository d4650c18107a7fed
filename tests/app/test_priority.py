"""What computes gives way to the page: trainers and drawings have a lower priority than the threads that answer."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from app.priority import NICENESS, lower_process, lower_thread

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="priorities of threads are Linux's own")


def test_a_process_gives_way_and_its_session_too() -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    try:
        lower_process(child.pid)
        assert os.getpriority(os.PRIO_PROCESS, child.pid) == NICENESS
        group = Path(f"/proc/{child.pid}/autogroup")
        if group.exists() and Path("/proc/sys/kernel/sched_autogroup_enabled").read_text().strip() == "1":
            assert group.read_text().split()[-1] == str(NICENESS)
    finally:
        child.communicate(b"\n")
    assert os.getpriority(os.PRIO_PROCESS, 0) == own
    lower_process(child.pid)  # it has ended: nothing to do, and no error


def test_what_gives_way_further_already_stays_as_it_is() -> None:
    code = "import os; from app import priority; priority.lower_thread(); print(os.getpriority(os.PRIO_PROCESS, 0))"
    done = subprocess.run(["nice", "-n", "15", sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(min(19, 15 + os.getpriority(os.PRIO_PROCESS, 0)))


def test_a_thread_gives_way_and_the_others_do_not() -> None:
    own, found = os.getpriority(os.PRIO_PROCESS, 0), []

    def work() -> None:
        lower_thread()
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [NICENESS]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own
