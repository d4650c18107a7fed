"""Result files: one JSON per benchmark, from which the README's tables are made."""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrdiff.artifact import versions
from lrdiff.files import write_json

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Describe where a figure was measured: processor, cores, threads, GPU, system, package versions."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": versions(),
    }


def command(name: str, arguments: Sequence[str], without: str = "") -> str:
    """Return the command line of a benchmark for its result file.

    Args:
        name: Of its module.
        arguments: What it was called with.
        without: An option with one value that says nothing of what was measured; it is left out.
    """
    words = list(arguments)
    if without in words:
        del words[words.index(without) : words.index(without) + 2]
    return shlex.join(["python", "-m", f"tests.bench.{name}", *words])


def write(
    name: str,
    command: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    note: str = "",
    details: dict[str, Any] | None = None,
) -> Path:
    """Write a result file.

    Args:
        name: File name without extension.
        command: The command of this repository that made it.
        columns: Heads of the README table.
        rows: Its cells; numbers are shown with three significant digits.
        note: A sentence below the table: what was not measured, what else ran on the machine.
        details: Everything else worth keeping: single measurements, spread, seeds.
    """
    path = RESULTS / f"{name}.json"
    body = {"command": command, "machine": machine(), "columns": list(columns), "rows": [list(row) for row in rows]}
    write_json(path, body | {"note": note, "details": details or {}})
    return path


def read(path: Path) -> dict[str, Any]:
    """Return a result file's content."""
    return json.loads(path.read_text())
