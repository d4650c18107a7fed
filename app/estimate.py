"""What a run will take: time, memory and disk, from one measurement per kind of run, kept beside the runs.

    seconds = load + steps * accumulate * step + previews * preview + evaluations * evaluate

`app.measure` measures in a process of its own; nothing is guessed from other machines.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app import text
from app.jobs import Queue, copy_files
from lrdiff.errors import DataError, LrdiffError, RunError
from lrdiff.files import write_json

log = logging.getLogger(__name__)

LIMIT_SECONDS = 300
FILE = ".measured.json"


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement.

    Attributes:
        load: Seconds until the first step.
        step: Seconds per micro-batch, forward and backward.
        preview: Seconds per set of preview images.
        evaluate: Seconds per evaluation.
        memory: Peak bytes of the process.
        disk: Bytes that the run may need.
        lines: The preflight in words.
    """

    load: float
    step: float
    preview: float
    evaluate: float
    memory: int
    disk: int
    lines: tuple[str, ...] = ()


def kind_of(method: str, config: Mapping[str, Any]) -> str:
    """Return what decides the speed of a run; runs of one kind differ only in how long they are."""
    watch = config["watch"]
    parts = {
        "method": [method, config["method"]],
        "model": config["model"],
        "batch_size": config["data"]["batch_size"],
        "precision": config["precision"],
        "preview": [watch["preview_steps"], watch["preview_count"], max(1, len(watch["preview_prompts"]))],
        "processors": os.cpu_count(),
    }
    return json.dumps(parts, sort_keys=True)


def known(queue: Queue, method: str, config: Mapping[str, Any]) -> Measured | None:
    """Return the measurement for this kind of run, or None."""
    found = _read(queue).get(kind_of(method, config))
    return Measured(**found | {"lines": tuple(found["lines"])}) if found else None


def _read(queue: Queue) -> dict[str, Any]:
    path = queue.root / FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        # It can be measured again; the page must not fail for it.
        log.warning("%s: cannot be read (%s) and is written anew", path, error)
        return {}


def seconds(measured: Measured, config: Mapping[str, Any]) -> float:
    """Return how long a run takes; see the module for the sum."""
    optim, watch = config["optim"], config["watch"]
    steps, every = optim["steps"], watch["preview_every"]
    previews = steps // every + 1 + bool(steps % every) if every else 0
    evaluations = steps // watch["evaluate_every"] + 1 if watch["evaluate_every"] else 0
    worked = steps * optim["accumulate"] * measured.step
    return measured.load + worked + previews * measured.preview + evaluations * measured.evaluate


def sentence(queue: Queue, method: str, config: Mapping[str, Any]) -> str:
    """Return time, memory and disk of a run in words."""
    measured = known(queue, method, config)
    if measured is None:
        return text.ESTIMATE_NONE
    folder = next(path for path in (queue.root, *queue.root.parents) if path.exists())
    free, room = memory_free(), shutil.disk_usage(folder).free
    time = text.duration(seconds(measured, config))
    parts = [text.ESTIMATE.format(time=time, step=f"{measured.step * config['optim']['accumulate']:.2f} s")]
    if free:
        form = text.ESTIMATE_MEMORY if free > measured.memory else text.ESTIMATE_MEMORY_LOW
        parts.append(form.format(memory=text.size(measured.memory), free=text.size(free)))
    parts.append(text.ESTIMATE_DISK.format(disk=text.size(measured.disk), free=text.size(room)))
    return " ".join(parts)


def memory_free() -> int:
    """Return the bytes of memory that a new process can have; 0 where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
    return values.get("MemAvailable", 0)


def measure(queue: Queue, method: str, config: dict[str, Any], files: Mapping[str, Path]) -> Measured:
    """Carry out the preflight of a run in a process of its own, and remember what it measured.

    Args:
        queue: Whose device is used, and beside whose runs the measurement is kept.
        method: Registry name.
        config: The run's configuration as JSON values.
        files: Pictures and captions, by the names they get.

    Raises:
        RunError: The device is in use, or the preflight ended without an answer.
        DataError: What the preflight found.
    """
    queue.root.mkdir(parents=True, exist_ok=True)
    with queue.device.held() as free, tempfile.TemporaryDirectory(prefix="lrdiff-check-") as folder:
        if not free:
            name = (queue.device.holder() or {}).get("run") or text.ANOTHER_CHECK
            raise RunError(text.CHECK_BUSY.format(name=name))
        if files:
            copy_files(files, Path(folder) / "images")
            config = config | {"data": config["data"] | {"images": str(Path(folder) / "images")}}
        order = json.dumps({"method": method, "config": config})
        command = [sys.executable, "-m", "app.measure", folder]
        ended = subprocess.run(command, input=order, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    if ended.returncode == 2:
        raise DataError(ended.stderr.strip().splitlines()[-1].replace(f"{folder}/images/", ""))
    if ended.returncode:
        lines = " ".join(ended.stderr.strip().splitlines()[-3:])
        raise RunError(text.CHECK_FAILED.format(code=ended.returncode, lines=lines))
    found = json.loads(ended.stdout.splitlines()[-1])
    write_json(queue.root / FILE, _read(queue) | {kind_of(method, config): found})
    return Measured(**found | {"lines": tuple(found["lines"])})


def measure_once(queue: Queue, method: str, config: dict[str, Any], files: Mapping[str, Path]) -> None:
    """Measure a kind of run unless that was done; trouble is logged, since nobody waits for it."""
    if known(queue, method, config) is not None:
        return
    try:
        measure(queue, method, config, files)
    except (LrdiffError, OSError, subprocess.SubprocessError, ValueError) as error:
        log.warning("the first measurement was left out: %s", error)
