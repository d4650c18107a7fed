"""Which run the words of a command line mean: a directory, or a name below the folder of runs."""

from __future__ import annotations

import os
from pathlib import Path

from app.jobs import Queue
from lrdiff.errors import ConfigError
from trainers.rundir import open_run

ROOT = Path("runs")


def one_run(words: tuple[str, ...], verb: str, root: Path) -> tuple[Queue, str]:
    """Return the queue and the name of the one run that was given. Raises `ConfigError` for none or several."""
    if len(words) != 1:
        raise ConfigError(f"lrdiff runs {verb} takes one run directory, not {len(words)}; lrdiff runs list shows them")
    return resolve(words[0], root)


def resolve(word: str, root: Path) -> tuple[Queue, str]:
    """Return the queue that a run belongs to, and its name there.

    Args:
        word: A run directory anywhere, or the name of a run below `root`.
        root: Folder of the runs. A run that lies elsewhere belongs to the folder that holds it.

    Raises:
        RunError: There is no such run.
    """
    root = root.expanduser().resolve()
    given = Path(word).expanduser()
    path = given if (given / "run.json").is_file() or not (root / word / "run.json").is_file() else root / word
    real = Path(os.path.realpath(path))
    if not (real / "run.json").is_file():
        # Says what is missing.
        open_run(given)
    is_below = real.is_relative_to(root) and 1 <= len(real.relative_to(root).parts) <= 2
    queue = Queue(root if is_below else real.parent)
    return queue, real.relative_to(queue.root).as_posix()
