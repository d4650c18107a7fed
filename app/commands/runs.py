"""`lrdiff runs`: look at run directories, or ask one to stop."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from app.commands.console import command, say
from app.commands.flags import Options, read_flags
from app.commands.settings import build
from lrdiff.errors import ConfigError, RunError
from trainers.rundir import RunDir, is_alive, open_run

PROG = "lrdiff runs"
USAGE = """usage: lrdiff runs list [--root DIR] [--json]     every run below a folder
       lrdiff runs show RUN [--json]              one run: state, settings that matter, last figures, result
       lrdiff runs stop RUN                       finish the step, save, end as stopped
"""


class ListOptions(Options):
    """What to list and how to print it."""

    root: Path = Path("runs")
    """Folder that holds the runs."""

    json_: bool = False
    """Print as JSON."""


class ShowOptions(Options):
    """How to print."""

    json_: bool = False
    """Print the record as JSON."""


def main(arguments: list[str]) -> int:
    """Run `lrdiff runs`."""
    actions = {"list": list_runs, "show": show, "stop": stop}
    if arguments and arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if not arguments or arguments[0] not in actions:
        raise ConfigError(f"{PROG} what? {', '.join(actions)}; see {PROG} --help")
    return actions[arguments[0]](arguments[1:])


def list_runs(arguments: list[str]) -> int:
    """Print a line for every run below a folder, newest first."""
    given = read_flags(arguments, [ListOptions], prog=f"{PROG} list", about="List the runs below a folder.")
    options = build(ListOptions, given.values)
    if given.words:
        raise ConfigError(f"unexpected word {given.words[0]!r}; to list another folder: {PROG} list --root DIR")
    runs = [RunDir(path.parent) for path in options.root.expanduser().glob("**/run.json")]
    found = sorted(((run, _record(run)) for run in runs), key=lambda item: item[1].get("created", ""), reverse=True)
    if options.json_:
        print(json.dumps([{"path": str(run.path), **record} for run, record in found], indent=2))
        return 0
    if not found:
        say(f"no runs in {options.root}; to look elsewhere: {PROG} list --root DIR")
    _print_columns([(str(run.path), r.get("method", "?"), r["state"], progress(run, r), when(r)) for run, r in found])
    return 0


def show(arguments: list[str]) -> int:
    """Print one run."""
    given = read_flags(arguments, [ShowOptions], prog=f"{PROG} show RUN", about="Show one run.")
    options = build(ShowOptions, given.values)
    run = _one_run(given.words, "show")
    record = run.read()
    if options.json_:
        print(json.dumps(record | {"state": state(record)}, indent=2))
        return 0
    config = record["config"]
    rows = [
        ("run", str(run.path)),
        ("state", state(record) + (f": {record['outcome']}" if record.get("outcome") else "")),
        ("method", record["method"]),
        ("model", config.get("model", "")),
        ("images", config.get("data", {}).get("images", "")),
        ("steps", progress(run, record)),
        ("started", when(record)),
        ("device", record.get("device", "")),
        *((f"{name}", f"{value:.4f}") for name, value in _last_figures(run).items()),
        ("result", str(run.artifact_path) if run.artifact_path.is_file() else ""),
    ]
    _print_columns([row for row in rows if row[1]])
    for line in record.get("preflight") or []:
        print(f"  {line}")
    if state(record) in ("stopped", "interrupted", "failed") and run.checkpoint_steps():
        print(f"to go on: {command('lrdiff', 'train', '--resume', run.path)}")
    return 0


def stop(arguments: list[str]) -> int:
    """Ask a run to stop."""
    given = read_flags(arguments, [], prog=f"{PROG} stop RUN", about="Finish the step, save, end as stopped.")
    run = _one_run(given.words, "stop")
    now = state(run.read())
    if now != "running":
        raise RunError(f"{run.path}: is {now}, not running, so there is nothing to stop")
    try:
        run.stop_path.touch()
    except OSError as error:
        raise RunError(f"{run.stop_path}: cannot be written ({error.strerror or error})") from error
    print(f"{run.path}: asked to stop; it finishes its step, saves, and ends as stopped")
    return 0


def _record(run: RunDir) -> dict[str, Any]:
    """Return a run's record with its true state, or that it cannot be read: one bad run must not hide the others."""
    try:
        record = run.read()
    except RunError as error:
        return {"state": "unreadable", "outcome": str(error)}
    return record | {"state": state(record)}


def state(record: dict[str, Any]) -> str:
    """Return the state of a record; a run that says it is running, but whose process is gone, is interrupted."""
    if record["state"] == "running" and not is_alive(record.get("process")):
        return "interrupted"
    return record["state"]


def progress(run: RunDir, record: dict[str, Any]) -> str:
    """Return "done/all" steps, or nothing for a record that cannot be read."""
    if "config" not in record:
        return ""
    try:
        metrics = run.metrics()
    except RunError:
        return "metrics.jsonl is damaged"
    done = max([record.get("step") or 0, *(line.get("step", 0) for line in metrics[-1:])])
    total = record["config"].get("optim", {}).get("steps", "?")
    return f"{done}/{total}"


def when(record: dict[str, Any]) -> str:
    """Return when a run was started, or made, in local time."""
    text = record.get("started") or record.get("created")
    return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M") if text else ""


def _last_figures(run: RunDir) -> dict[str, float]:
    """Return the newest value of every metric that says something about quality."""
    figures: dict[str, float] = {}
    for line in run.metrics():
        figures |= {name: value for name, value in line.items() if name.startswith("loss")}
    return figures


def _one_run(words: tuple[str, ...], verb: str) -> RunDir:
    if len(words) != 1:
        raise ConfigError(f"{PROG} {verb} takes one run directory, not {len(words)}; {PROG} list shows them")
    return open_run(Path(words[0]).expanduser())


def _print_columns(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip())
