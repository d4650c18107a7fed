"""`lrdiff demo`: the whole path on a shipped subject."""

from __future__ import annotations

from pathlib import Path

from pydantic import NonNegativeInt, PositiveInt

from app.commands.console import logging_to_stderr
from app.commands.flags import read_flags
from app.commands.settings import build
from app.commands.turns import TurnOptions, folder_of, turn
from lrdiff.errors import ConfigError

PROG = "lrdiff demo"
ABOUT = """Train tensor-lora and plain LoRA on a shipped subject, draw it in new places with both and with neither, and
compare every image with pictures of the subject that were never trained on."""


class DemoOptions(TurnOptions):
    """What the demo does."""

    subject: str = "horned-mug"
    """Folder of assets/subjects."""

    steps: PositiveInt = 500
    """Training steps of each adapter."""

    seed: NonNegativeInt = 0
    """Of training and generation."""

    out: Path = Path("runs")
    """Folder in which the demo's own folder is made."""


def main(arguments: list[str]) -> int:
    """Run `lrdiff demo`."""
    given = read_flags(arguments, [DemoOptions], prog=PROG, about=ABOUT)
    if given.words:
        raise ConfigError(f"unexpected word {given.words[0]!r}; see {PROG} --help")
    options = build(DemoOptions, given.values)
    from app.demo import run_demo

    with logging_to_stderr(), turn(folder_of(options.out / "demo"), options.share):
        run_demo(options.subject, options.steps, options.seed, options.out)
    return 0
