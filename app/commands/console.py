"""What the command line writes: results to stdout, everything else to stderr as plain lines."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

OURS = ("lrdiff", "trainers", "app")


@contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Show our own log and the warnings of others on stderr; undone at the end."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain())
    handler.addFilter(_worth_showing)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def say(text: str = "") -> None:
    """Write a line to stderr."""
    print(text, file=sys.stderr, flush=True)


def command(*words: object) -> str:
    """Return a command line that can be pasted into a shell."""
    return shlex.join(str(word) for word in words)


class _Plain(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {text}"


def _worth_showing(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] in OURS
