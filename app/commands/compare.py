"""`lrdiff compare`: adapters against each other on the shipped subjects; and `--adapter` of `lrdiff train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from annotated_types import Len
from pydantic import NonNegativeInt, PositiveInt

from app.commands.console import logging_to_stderr, say
from app.commands.flags import read_flags
from app.commands.settings import build
from app.commands.turns import TurnOptions, folder_of, turn
from lrdiff.errors import ConfigError
from trainers.denoise.config import DenoiseSettings
from trainers.registry import METHODS, config_class

PROG = "lrdiff compare"
ABOUT = """Train a list of adapters on a list of subjects with equal steps and seeds, draw the same prompts with each,
and write one table and one plot: parameters against subject fidelity and prompt fidelity.

examples:
  lrdiff compare --adapter tensor-lora lora:r=1,alpha=1 lora:r=4 lokr --subject horned-mug
  lrdiff compare --adapter tensor-lora lora:r=4 --subject horned-mug captain-duck --seeds 0 1 2 --steps 500
  lrdiff compare --resume runs/compare-...    # goes on where a comparison was interrupted"""


class CompareOptions(TurnOptions):
    """What is compared."""

    adapter: Annotated[tuple[str, ...], Len(min_length=1)] = ("tensor-lora", "lora:r=1,alpha=1", "lora:r=4", "lokr")
    """Adapters, each NAME or NAME:SETTING=VALUE,SETTING=VALUE; a setting with a dot is one of the run (optim.lr)."""

    subject: Annotated[tuple[str, ...], Len(min_length=1)] = ("horned-mug",)
    """Folders of assets/subjects."""

    seeds: Annotated[tuple[NonNegativeInt, ...], Len(min_length=1)] = (0,)
    """Seeds of training and drawing; every adapter gets each."""

    steps: PositiveInt = 500
    """Training steps of each adapter."""

    places: PositiveInt = 4
    """In how many places every subject is drawn."""

    count: PositiveInt = 2
    """Images for each place."""

    sampling_steps: PositiveInt = 20
    """Sampling steps of each image."""

    model: str = "toys"
    """Base model. The probe that measures reads pictures of the toy world."""

    out: Path = Path("runs")
    """Folder in which the comparison's own folder is made."""

    resume: Path | None = None
    """Folder of a comparison that was interrupted: does what is left of it, with its settings; give no others."""


def main(arguments: list[str]) -> int:
    """Run `lrdiff compare`."""
    given = read_flags(arguments, [CompareOptions], prog=PROG, about=ABOUT)
    if given.words:
        raise ConfigError(f"unexpected word {given.words[0]!r}; see {PROG} --help")
    options = build(CompareOptions, given.values)
    from app.adapter_comparison import compare, go_on, read_spec

    if options.resume is not None:
        if others := sorted(set(given.values) - {"resume", "share"}):
            raise ConfigError(f"--resume has its settings in its folder; leave out --{', --'.join(others)}")
        with logging_to_stderr(), turn(folder_of(options.resume), options.share):
            return _told(go_on(options.resume))
    specs = [read_spec(text) for text in options.adapter]
    with logging_to_stderr(), turn(folder_of(options.out / "compare"), options.share):
        folder = compare(
            specs,
            options.subject,
            seeds=options.seeds,
            steps=options.steps,
            places=options.places,
            count=options.count,
            sampling_steps=options.sampling_steps,
            model=options.model,
            out=options.out,
        )
    return _told(folder)


def _told(folder: Path) -> int:
    print((folder / "comparison.txt").read_text(), end="")
    say(f"table, plot, runs and images: {folder}")
    return 0


def with_adapter(arguments: Sequence[str]) -> list[str]:
    """Return the words of `lrdiff train` with `--adapter NAME` in the place of the method that it chooses.

    The trainer by the denoising loss is one, whatever the adapter: `train --adapter lokr` is `train lokr`.

    Raises:
        ConfigError: No such adapter, or the method before it is not trained by the denoising loss.
    """
    words = [piece for word in arguments for piece in (word.split("=", 1) if word.startswith("--adapter=") else [word])]
    if "--adapter" not in words:
        return list(arguments)
    place = words.index("--adapter")
    name = words[place + 1] if place + 1 < len(words) else ""
    known = [method for method in METHODS if issubclass(config_class(method), DenoiseSettings)]
    if name not in known:
        raise ConfigError(f"--adapter: no adapter {name!r}; known: {', '.join(known)}")
    rest = words[:place] + words[place + 2 :]
    if not rest or rest[0].startswith("-"):
        return [name, *rest]
    if rest[0] not in known:
        raise ConfigError(f"--adapter is for the adapters that learn from images ({', '.join(known)}), not {rest[0]}")
    return [name, *rest[1:]]
