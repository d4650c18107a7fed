"""Freed memory stays with a process that trains on a processor."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, torch
from trainers.config import PrecisionConfig
from trainers.engine import Engine
{first}
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    torch.ones(2**24)  # 64 MB, above what glibc keeps by itself
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""Prints how many pages the kernel had to give."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_a_large_tensor_takes_the_pages_of_the_one_before() -> None:
    """Pages are counted in processes of their own: the setting holds for a whole process."""
    given, kept = (_pages(first) for first in ("", "Engine(PrecisionConfig(device='cpu'))"))
    assert 0 < kept < given / 3


def _pages(first: str) -> int:
    command = [sys.executable, "-c", COUNT.format(first=first)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
