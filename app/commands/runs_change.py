"""`lrdiff runs stop, resume, delete, restore, work`: what changes runs."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from app import trash
from app.commands.console import command, logging_to_stderr, say
from app.commands.flags import Options, read_flags
from app.commands.runs_find import ROOT, one_run, resolve
from app.commands.settings import build
from app.jobs import Queue
from lrdiff.errors import ConfigError

PROG = "lrdiff runs"


class RootOptions(Options):
    """Where to look."""

    root: Path = ROOT
    """Folder that holds the runs, for one that is given by its name."""


class StopOptions(RootOptions):
    """How to stop."""

    kill: bool = False
    """End the process at once, without saving; for a run that does not answer. Checkpoints are kept."""


class DeleteOptions(RootOptions):
    """What deleting means."""

    purge: bool = False
    """Remove for good what lies in the trash. Takes the ids that `lrdiff runs list --trash` shows."""


class WorkOptions(Options):
    """What to carry out, and where."""

    root: Path = ROOT
    """Folder that holds the runs."""

    devices: tuple[str, ...] = ()
    """GPUs by the numbers of nvidia-smi, or cpu; each carries out one run at a time. None: one run on the machine."""

    until_empty: bool = False
    """End as soon as nothing waits or runs any more."""


def stop(arguments: list[str]) -> int:
    """Ask a run to stop, or end its process."""
    about = "Finish the step, save, end as stopped. A run that waits in the queue ends at once."
    given = read_flags(arguments, [StopOptions], prog=f"{PROG} stop RUN", about=about)
    options = build(StopOptions, given.values)
    queue, name = one_run(given.words, "stop", options.root)
    path = queue.root / name
    if options.kill:
        queue.kill(name)
        print(f"{path}: ended at once; checkpoints are kept")
        return 0
    queue.stop(name)
    if queue.find(name).read()["state"] == "stopped":
        print(f"{path}: stopped before it started")
    else:
        print(f"{path}: asked to stop; it finishes its step, saves, and ends as stopped")
    return 0


def resume(arguments: list[str]) -> int:
    """Put a run back into the queue."""
    about = (
        "Put a run that was stopped, interrupted or failed back into the queue, to go on from its newest checkpoint. "
        "lrdiff train --resume RUN does the same at once, in this terminal."
    )
    given = read_flags(arguments, [RootOptions], prog=f"{PROG} resume RUN", about=about)
    queue, name = one_run(given.words, "resume", build(RootOptions, given.values).root)
    queue.resume(name)
    print(f"{queue.root / name}: waits in the queue")
    if not queue.is_attended():
        say(
            "nobody carries out this queue at present. Start lrdiff app, or "
            f"{command('lrdiff', 'runs', 'work', '--root', queue.root)}"
        )
    return 0


def delete(arguments: list[str]) -> int:
    """Move runs into the trash, or remove what lies there."""
    about = "Move runs into the trash, from which lrdiff runs restore brings them back. One that is running is refused."
    given = read_flags(arguments, [DeleteOptions], prog=f"{PROG} delete RUN", about=about)
    options = build(DeleteOptions, given.values)
    if not given.words:
        raise ConfigError(f"{PROG} delete which? {PROG} list shows the runs, {PROG} list --trash the deleted ones")
    if options.purge:
        return _purge(given.words, options.root.expanduser())
    for queue, name in [resolve(word, options.root) for word in given.words]:
        deleted = queue.delete(name)
        print(f"{queue.root / name}: moved to {deleted.path}")
        print(f"to bring it back: {command('lrdiff', 'runs', 'restore', deleted.identity, *_root_flag(queue.root))}")
    return 0


def restore(arguments: list[str]) -> int:
    """Bring runs back from the trash."""
    about = "Bring deleted runs back to where they were. ID is what lrdiff runs list --trash shows."
    given = read_flags(arguments, [RootOptions], prog=f"{PROG} restore ID", about=about)
    options = build(RootOptions, given.values)
    if not given.words:
        raise ConfigError(f"{PROG} restore which? {PROG} list --trash shows the deleted runs")
    root = options.root.expanduser()
    for word in given.words:
        run = Queue(root).restore(_identity(word, root))
        print(f"{run.path}: is back")
    return 0


def work(arguments: list[str]) -> int:
    """Carry out the queue of a folder until it is asked to end."""
    about = (
        "Carry out the queued runs of a folder without the web page. Ctrl-C ends this command; runs that are under way "
        "go on. Any number of workers, and the web page, may share a folder: none starts what another has."
    )
    given = read_flags(arguments, [WorkOptions], prog=f"{PROG} work", about=about)
    options = build(WorkOptions, given.values)
    if given.words:
        raise ConfigError(f"unexpected word {given.words[0]!r}; to work elsewhere: {PROG} work --root DIR")
    queue = Queue(options.root.expanduser(), devices=options.devices)
    asked = threading.Event()
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with logging_to_stderr():
            say(f"carrying out the queue of {queue.root}; Ctrl-C ends this, runs that are under way go on")
            queue.start()
            try:
                while not asked.wait(0.2) and not (options.until_empty and queue.worker.is_idle()):
                    continue
            finally:
                queue.close()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _purge(words: tuple[str, ...], root: Path) -> int:
    for word in words:
        found = trash.find(root.resolve(), _identity(word, root))
        Queue(root).purge(found.identity)
        print(f"{found.name}, deleted {found.deleted.astimezone():%Y-%m-%d %H:%M}: removed for good")
    return 0


def _identity(word: str, root: Path) -> str:
    """Return what a word means in the trash: its id, or the path of a run that lies there."""
    path, inside = Path(os.path.abspath(Path(word).expanduser())), root.resolve() / trash.NAME
    return path.relative_to(inside).as_posix() if path.is_relative_to(inside) else word


def _root_flag(root: Path) -> list[str]:
    """Return the flag that names a folder of runs, which the usual one does not need."""
    return [] if root == ROOT.resolve() else ["--root", str(root)]
