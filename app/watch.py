"""What a run directory says at this moment, as numbers, and as the HTML that the page shows."""

from __future__ import annotations

import html
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import gradio as gr
import pandas as pd

from app import text
from app.jobs import Queue
from app.outcome import last_words, log_tail, usable_artifact
from lrdiff.errors import RunError
from trainers.rundir import RunDir

__all__ = ["Snapshot", "log_tail", "look", "usable_artifact"]

LOG_LINES = 40
MAX_POINTS = 1500
CHART_COLUMNS = (text.CHART_STEP, text.CHART_LOSS, "series")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look at a run.

    Attributes:
        name: Of the run in its folder.
        run: The run directory.
        record: Its run.json.
        state: The state that can be stood by: never `finished` without a working artifact.
        outcome: Why it ended, or "".
        step: Optimizer steps done.
        total: Optimizer steps in all.
        speed: Seconds per step at the newest log line, or None.
        left: Seconds left, or None where nobody can know.
        metrics: The lines of metrics.jsonl.
        ahead: Runs that come first, for a waiting one.
        is_stopping: Whether it was asked to stop and has not ended.
    """

    name: str
    run: RunDir
    record: Mapping[str, Any]
    state: str
    outcome: str
    step: int
    total: int
    speed: float | None
    left: float | None
    metrics: Sequence[Mapping[str, Any]]
    ahead: int = 0
    is_stopping: bool = False

    @property
    def has_artifact(self) -> bool:
        """Whether there is an adapter that was written, read back and still is the same file."""
        return self.state in ("finished", "stopped") and usable_artifact(self.run, self.record)

    @property
    def can_resume(self) -> bool:
        """Whether it can go on from a checkpoint, or begin where it never began."""
        has_start = bool(self.run.checkpoint_steps()) or not self.record.get("started")
        return self.state in ("stopped", "interrupted", "failed") and has_start


def look(queue: Queue, name: str) -> Snapshot:
    """Read a run from disk. Raises `RunError` when there is none."""
    run = queue.find(name)
    record = queue.present(run, run.read())
    state, outcome = record["state"], record.get("outcome") or ""
    metrics: Sequence[Mapping[str, Any]] = ()
    try:
        metrics = _metrics(run)
    except RunError as error:
        # The state stands; what cannot be read is told instead of shown.
        outcome = str(error)
        state = "failed" if state == "finished" else state
    steps = [line for line in metrics if "seconds_per_step" in line]
    total = total_steps(record)
    step = max([int(record.get("step") or 0), *(int(line["step"]) for line in steps[-1:])])
    speed = float(steps[-1]["seconds_per_step"]) if steps else None
    left = None
    if state == "running" and speed is not None:
        left = max(0.0, (total - step) * speed - (time.time() - steps[-1].get("time", time.time())))
    ahead = _ahead(queue, name) if state == "queued" else 0
    stopping = state in ("queued", "running") and run.stop_path.exists()
    return Snapshot(name, run, record, state, outcome, step, total, speed, left, metrics, ahead, stopping)


def _metrics(run: RunDir) -> Sequence[Mapping[str, Any]]:
    """Return the logged metrics; every visitor looks at them every two seconds, so they are parsed once for all."""
    try:
        stat = run.metrics_path.stat()
    except OSError:
        return run.metrics()
    return _metrics_once(run, stat.st_ino, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=32)
def _metrics_once(run: RunDir, inode: int, changed: int, size: int) -> Sequence[Mapping[str, Any]]:
    return tuple(run.metrics())


def total_steps(record: Mapping[str, Any]) -> int:
    """Return the steps that a run is to make; 0 for a record of another program that has no such setting."""
    optim = record["config"].get("optim")
    steps = optim.get("steps") if isinstance(optim, dict) else None
    return steps if isinstance(steps, int) else 0


def _ahead(queue: Queue, name: str) -> int:
    """Count the runs that compute or wait before a waiting one."""
    waiting = [queue.name(run) for run in queue.waiting()]
    running = sum(record["state"] == "running" for _, record in queue.runs())
    return running + (waiting.index(name) if name in waiting else 0)


def chart(metrics: Sequence[Mapping[str, Any]], series: Mapping[str, str] = text.SERIES) -> pd.DataFrame:
    """Return figures in long form: one row per step and series; long runs are thinned evenly.

    Args:
        metrics: Lines of metrics.jsonl.
        series: Which figures, and what each is called in the chart; the losses when left out.
    """
    rows = [
        (int(line["step"]), float(line[key]), name)
        for key, name in series.items()
        for line in _thinned([line for line in metrics if key in line])
    ]
    return pd.DataFrame(rows, columns=pd.Index(CHART_COLUMNS))


def losses(metrics: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the losses of a run as `chart` does, from the first training loss on.

    A run measures on fixed noise before its first step, and gradio never draws a line that a chart did not begin with.
    """
    return chart(metrics if any("loss" in line for line in metrics) else ())


def drawn(points: pd.DataFrame) -> Any:
    """Return the update of a plot. One that was first drawn without a point stays flat for ever, so it is not shown."""
    return gr.update(visible=False) if points.empty else gr.update(value=points, visible=True)


def _thinned(lines: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    stride = -(-len(lines) // MAX_POINTS) or 1
    return lines[::stride]


def previews(run: RunDir) -> list[tuple[str, str]]:
    """Return (file, caption) of every preview, in order of steps."""
    folders = sorted(folder for folder in run.previews.glob("*") if folder.name.isdigit())
    return [
        (str(file), text.PREVIEW_CAPTION.format(step=int(folder.name)))
        for folder in folders
        for file in sorted(folder.glob("[!.]*.png"))
    ]


def choices(queue: Queue, method: str = "") -> list[tuple[str, str]]:
    """Return (label, name) of every run, or of every run of a method, newest first."""
    return [
        (f"{queue.name(run)} · {text.STATES[record['state']].lower()}", queue.name(run))
        for run, record in queue.trusted()
        if method in ("", record["method"])
    ]


def newest(queue: Queue) -> str | None:
    """Return the run a visitor most likely wants to see: the one that computes, else the newest."""
    runs = queue.runs()
    running = [queue.name(run) for run, record in runs if record["state"] == "running"]
    return (running or [queue.name(run) for run, _ in runs] or [None])[0]


def card(view: Snapshot) -> str:
    """Return the head of a run as HTML: state, progress bar, times, facts, and what went wrong."""
    share = 100.0 if view.state == "finished" else 100.0 * min(1.0, view.step / max(view.total, 1))
    parts = [
        f"<div class='run {view.state}'>",
        f"<div class='row'><span class='badge' role='status'>{text.STATES[view.state]}</span>"
        f"<span class='steps'>{_where(view)}</span><span class='time'>{_when(view)}</span></div>",
        f"<div class='bar' role='progressbar' aria-valuenow='{share:.0f}' aria-valuemin='0' aria-valuemax='100' "
        f"aria-label='{text.CHART_STEP}'><div style='width:{share:.1f}%'></div></div>",
        *_troubles(view),
        "</div>",
    ]
    return "".join(parts)


def _where(view: Snapshot) -> str:
    if view.state == "queued":
        behind = text.WAITING_BEHIND.format(count=view.ahead) if view.ahead else text.WAITING_NEXT
        return text.STOPPING if view.is_stopping else text.WAITING.format(position=behind)
    if view.state == "running" and not view.metrics:
        return text.STOPPING if view.is_stopping else text.PREPARING
    return text.STEP_OF.format(step=f"<b>{view.step}</b>", total=view.total)


def _when(view: Snapshot) -> str:
    if view.is_stopping and view.state == "running":
        return text.STOPPING if view.metrics else ""
    if view.left is not None and view.speed is not None:
        speed = text.SPEED.format(seconds=f"{view.speed:.2f} s")
        return f"{text.LEFT.format(time=text.duration(view.left))} · {speed}"
    started, ended = view.record.get("started"), view.record.get("ended")
    if started and ended:
        seconds = (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()
        return text.TOOK.format(time=text.duration(seconds))
    return ""


def _troubles(view: Snapshot) -> list[str]:
    if view.state in ("queued", "running", "finished"):
        return []
    parts = [f"<p class='outcome'>{html.escape(view.outcome)}</p>"]
    code = view.record.get("exit_code")
    if code is not None:
        parts.append(f"<p class='note'>{text.EXIT_CODE.format(code=code)}</p>")
    if view.state in ("failed", "interrupted"):
        lines = last_words(view.run, LOG_LINES)
        if lines:
            parts.append(f"<p class='note'>{text.LAST_LINES}</p><pre tabindex='0'>{html.escape(lines)}</pre>")
    return parts


def facts(view: Snapshot) -> str:
    """Return what the preflight found, where it ran and what came out, as an HTML list."""
    found = [str(line) for line in view.record.get("preflight") or []]
    if view.record.get("device"):
        found.append(str(view.record["device"]))
    if view.has_artifact:
        size = text.size(view.run.artifact_path.stat().st_size)
        found.append(text.WEIGHT_FILE.format(size=size, parameters=f"{view.record.get('parameters', 0):,}"))
    items = "".join(f"<li>{html.escape(fact)}</li>" for fact in found)
    return f"<ul class='facts'>{items}</ul>" if items else ""
