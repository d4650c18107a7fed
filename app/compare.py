"""Several runs side by side: the settings in which they differ, their newest figures, one chart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from app import text, text_runs
from app.outcome import present
from lrdiff.errors import RunError
from trainers.rundir import RunDir, is_alive

if TYPE_CHECKING:
    import pandas as pd

MAX_RUNS = 8
MAX_POINTS = 1500
CLOCK = ("time", "seconds_per_step")
Runs = Sequence[tuple[str, RunDir]]


@dataclass(frozen=True, slots=True)
class Row:
    """One setting or figure of every run, in the runs' order; None where a run has none."""

    name: str
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What tells runs apart.

    Attributes:
        names: Of the runs, in the order given.
        states: That can be stood by.
        settings: Only those that differ.
        metrics: The newest value of every metric, and how long the training took.
    """

    names: tuple[str, ...]
    states: tuple[str, ...]
    settings: list[Row]
    metrics: list[Row]


def compare(runs: Runs) -> Comparison:
    """Compare two to eight runs.

    Args:
        runs: Name and run directory of each.

    Raises:
        RunError: There are fewer or more, one is given twice, or one cannot be read.
    """
    names = _checked(runs)
    records = [present(run, run.read(), lambda record: is_alive(record.get("process"))) for _, run in runs]
    settings = [_settings(run, record) for (_, run), record in zip(runs, records, strict=True)]
    figures = [_newest(run, record) for (_, run), record in zip(runs, records, strict=True)]
    # Compared as JSON: 1 and 1.0 and True are three settings.
    differing = [row for row in _rows(settings) if len({json.dumps(value, default=str) for value in row.values}) > 1]
    return Comparison(names, tuple(record["state"] for record in records), differing, _rows(figures))


def metrics_of(runs: Runs) -> list[str]:
    """Return the names of the metrics that at least one of the runs logged, in the order they first come up."""
    return names_in([line for _, run in runs for line in run.metrics()])


def names_in(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the metrics in logged lines, in the order they first come up."""
    names = dict.fromkeys(name for line in lines for name in line)
    return [name for name in names if name not in (*CLOCK, "step")]


def chart(runs: Runs, metric: str = "loss") -> pd.DataFrame:
    """Return one metric of several runs in long form: step, value, name of the run. Long runs are thinned evenly.

    Raises:
        RunError: There are too few or too many runs, or the metrics of one cannot be read.
    """
    import pandas as pd  # not needed in a terminal, and slow to load

    _checked(runs)
    rows: list[tuple[int, float, str]] = []
    for name, run in runs:
        lines = [line for line in run.metrics() if isinstance(line.get(metric), int | float)]
        stride = -(-len(lines) * len(runs) // MAX_POINTS) or 1
        rows += [(int(line["step"]), float(line[metric]), name) for line in lines[::stride]]
    return pd.DataFrame(rows, columns=pd.Index((text.CHART_STEP, text.CHART_LOSS, "series")))


def _checked(runs: Runs) -> tuple[str, ...]:
    names = tuple(name for name, _ in runs)
    if not 2 <= len(names) <= MAX_RUNS:
        raise RunError(text_runs.COMPARE_HOW_MANY.format(most=MAX_RUNS, count=len(names)))
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RunError(text_runs.COMPARE_TWICE.format(name=twice))
    return names


def _rows(tables: Sequence[Mapping[str, Any]]) -> list[Row]:
    names = dict.fromkeys(name for table in tables for name in table)
    return [Row(name, tuple(table.get(name) for table in tables)) for name in names]


def _settings(run: RunDir, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return method and settings by dotted name. Pictures are compared by content, since every run has copies."""
    found = {"method": record["method"], **_flat(record["config"])}
    inputs = record.get("inputs")
    pictures = inputs.get("data.images") if isinstance(inputs, dict) else None
    if pictures:
        digest = hashlib.sha256(json.dumps(pictures, sort_keys=True).encode()).hexdigest()[:8]
        found["data.images"] = text_runs.OWN_PICTURES.format(
            count=text.plural(text.PICTURES, len(pictures)), digest=digest
        )
    return found


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _newest(run: RunDir, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the step, the newest value of every metric, and the seconds from start to end."""
    found: dict[str, Any] = {}
    for line in run.metrics():
        found |= {name: value for name, value in line.items() if name not in CLOCK}
    started, ended = record.get("resumed") or record.get("started"), record.get("ended")
    if isinstance(started, str) and isinstance(ended, str):
        found["seconds"] = (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()
    return found
