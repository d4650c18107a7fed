"""`lrdiff runs`: look at runs, and change what becomes of them, with the powers of the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from app import trash
from app.commands import runs_change
from app.commands.console import command, say
from app.commands.flags import Options, read_flags
from app.commands.runs_find import ROOT, one_run, resolve
from app.commands.settings import build
from app.compare import Comparison, compare
from app.folder import Folder
from app.outcome import last_words, log_tail
from lrdiff.errors import ConfigError, RunError
from trainers.rundir import RunDir

PROG = "lrdiff runs"
USAGE = """usage: lrdiff runs list [--root DIR] [--trash] [--json]   every run below a folder, or every deleted one
       lrdiff runs show RUN [--log N] [--json]           one run: state, settings that matter, last figures, result
       lrdiff runs compare RUN RUN... [--json]           two to eight runs: settings that differ, last figures
       lrdiff runs stop RUN [--kill]                     finish the step, save, end as stopped; or end at once
       lrdiff runs resume RUN                            back into the queue, from its newest checkpoint
       lrdiff runs delete RUN... [--purge]               into the trash; with --purge out of the trash, for good
       lrdiff runs restore ID...                         out of the trash, back to where it was
       lrdiff runs work [--devices 0 1] [--until-empty]  carry out the queue without the web page

RUN is a run directory, or its name below --root. To repeat a run with changes:
       lrdiff train METHOD --config RUN/run.json --optim.steps 600
"""


class ListOptions(Options):
    """What to list and how to print it."""

    root: Path = ROOT
    """Folder that holds the runs."""

    trash: bool = False
    """List the deleted runs instead, with the ids that restore them."""

    json_: bool = False
    """Print as JSON."""


class ShowOptions(Options):
    """Where to look and how to print."""

    root: Path = ROOT
    """Folder that holds the runs, for one that is given by its name."""

    log: Annotated[int, Ge(0)] = 0
    """Also print this many last lines of its log."""

    json_: bool = False
    """Print the record as JSON."""


class CompareOptions(Options):
    """Where to look and how to print."""

    root: Path = ROOT
    """Folder that holds the runs, for those that are given by their names."""

    json_: bool = False
    """Print as JSON."""


def main(arguments: list[str]) -> int:
    """Run `lrdiff runs`."""
    actions: dict[str, Callable[[list[str]], int]] = {
        "list": list_runs,
        "show": show,
        "compare": compare_runs,
        "stop": runs_change.stop,
        "resume": runs_change.resume,
        "delete": runs_change.delete,
        "restore": runs_change.restore,
        "work": runs_change.work,
    }
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
    root = options.root.expanduser()
    if options.trash:
        return _list_trash(root, options.json_)
    folder = Folder(root)
    # Newest first; what cannot be read comes last, and never hides the others.
    rows = [(folder.name(run), run, record) for run, record in folder.trusted()]
    rows += [
        (name, RunDir(folder.root / name), {"state": "unreadable", "outcome": reason})
        for name, reason in folder.unreadable().items()
    ]
    if options.json_:
        print(json.dumps([{"path": str(root / name), "name": name, **record} for name, _, record in rows], indent=2))
        return 0
    if not rows:
        say(f"no runs in {options.root}; to look elsewhere: {PROG} list --root DIR")
    _print_columns(
        [(str(root / name), r.get("method", "?"), r["state"], progress(run, r), when(r)) for name, run, r in rows]
    )
    for reason in folder.unreadable().values():
        say(reason)
    return 0


def _list_trash(root: Path, as_json: bool) -> int:
    found = trash.listed(root)
    if as_json:
        keys = ("identity", "name", "path")
        records = [
            {key: str(getattr(item, key)) for key in keys} | {"deleted": item.deleted.isoformat()} for item in found
        ]
        print(json.dumps(records, indent=2))
        return 0
    if not found:
        say(f"nothing in the trash of {root}")
    _print_columns([(item.identity, f"deleted {item.deleted.astimezone():%Y-%m-%d %H:%M}") for item in found])
    return 0


def show(arguments: list[str]) -> int:
    """Print one run."""
    given = read_flags(arguments, [ShowOptions], prog=f"{PROG} show RUN", about="Show one run.")
    options = build(ShowOptions, given.values)
    folder, name = one_run(given.words, "show", options.root)
    run = folder.find(name)
    record = folder.present(run, run.read())
    if options.json_:
        lines = {"log": log_tail(run, options.log).splitlines()} if options.log else {}
        print(json.dumps(record | {"path": str(run.path), "name": name} | lines, indent=2))
        return 0
    code, config = record.get("exit_code"), record["config"]
    rows = [
        ("run", str(run.path)),
        ("state", record["state"] + (f": {record['outcome']}" if record.get("outcome") else "")),
        ("exit code", "" if code is None else str(code)),
        ("method", record["method"]),
        ("model", str(config.get("model", ""))),
        ("images", str(_inner(config, "data").get("images", ""))),
        ("steps", progress(run, record)),
        ("started", when(record)),
        ("device", str(record.get("device", ""))),
        *((f"{name}", f"{value:.4f}") for name, value in _last_figures(run).items()),
        ("result", str(run.artifact_path) if run.artifact_path.is_file() else ""),
    ]
    _print_columns([row for row in rows if row[1]])
    for line in record.get("preflight") or []:
        print(f"  {line}")
    _print_log(run, record["state"], options.log)
    if record["state"] in ("stopped", "interrupted", "failed") and run.checkpoint_steps():
        print(f"to go on: {command('lrdiff', 'runs', 'resume', run.path)}")
    return 0


def _print_log(run: RunDir, state: str, lines: int) -> None:
    """Print the end of the log, asked for or not where a run went wrong."""
    if lines:
        print(log_tail(run, lines))
    elif state in ("failed", "interrupted") and (words := last_words(run, 10)):
        print("last lines of its log:\n" + "\n".join(f"  {line}" for line in words.splitlines()))


def compare_runs(arguments: list[str]) -> int:
    """Print the settings in which runs differ, and their last figures."""
    about = "Compare two to eight runs: the settings that differ, and the newest value of every figure."
    given = read_flags(arguments, [CompareOptions], prog=f"{PROG} compare RUN RUN", about=about)
    options = build(CompareOptions, given.values)
    found = [resolve(word, options.root) for word in given.words]
    comparison = compare([(word, queue.find(name)) for word, (queue, name) in zip(given.words, found, strict=True)])
    if options.json_:
        tables = {"settings": comparison.settings, "metrics": comparison.metrics}
        rows = {title: {row.name: list(row.values) for row in table} for title, table in tables.items()}
        print(
            json.dumps(
                {"runs": list(comparison.names), "states": list(comparison.states), **rows}, indent=2, default=str
            )
        )
        return 0
    _print_comparison(comparison)
    return 0


def _print_comparison(found: Comparison) -> None:
    rows = [("", *found.names), ("state", *found.states)]
    for title, table in (("settings that differ", found.settings), ("last figures", found.metrics)):
        rows.append((f"{title}:" if table else f"{title}: none", *("" for _ in found.names)))
        rows += [(f"  {row.name}", *map(_short, row.values)) for row in table]
    _print_columns(rows)


def _short(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _inner(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a table of settings; empty where a record of another program has none."""
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def progress(run: RunDir, record: dict[str, Any]) -> str:
    """Return "done/all" steps, or nothing for a record that cannot be read."""
    if "config" not in record:
        return ""
    try:
        metrics = run.metrics()
    except RunError:
        return "metrics.jsonl is damaged"
    done = max([record.get("step") or 0, *(line["step"] for line in metrics[-1:])])
    return f"{done}/{_inner(record['config'], 'optim').get('steps', '?')}"


def when(record: dict[str, Any]) -> str:
    """Return when a run was started, or made, in local time."""
    text = record.get("started") or record.get("created")
    try:
        return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M") if text else ""
    except (TypeError, ValueError):
        return "?"


def _last_figures(run: RunDir) -> dict[str, float]:
    """Return the newest value of every metric that says something about quality."""
    figures: dict[str, float] = {}
    for line in run.metrics():
        figures |= {name: value for name, value in line.items() if name.startswith("loss")}
    return figures


def _print_columns(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip())
