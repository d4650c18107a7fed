"""`lrdiff embedded`: the small models that come with the project."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from app.commands.console import logging_to_stderr, say
from app.commands.flags import Options, read_flags
from app.commands.settings import build
from lrdiff.errors import ConfigError

PROG = "lrdiff embedded"
USAGE = """usage: lrdiff embedded list             the shipped models, their sizes, and which can be made again
       lrdiff embedded make NAME        make one again from its seed; see lrdiff embedded make --help
"""
ABOUT_MAKE = "Make a shipped model again from its seed. After an interruption the same command goes on where it was."


class MakeOptions(Options):
    """How to make a model."""

    budget: Literal["cpu", "gpu"] = "cpu"
    """cpu: what made the shipped files, hours on two cores. gpu: a longer training; it has not been run yet."""

    seed: NonNegativeInt | None = None
    """Of initialisation and training; none takes the one that made the shipped file."""

    out: Path | None = None
    """New folder for the model. Without it the shipped one in assets is replaced, and the manifest with it."""

    photos: Path | None = None
    """For the extractor: folder of photos, subfolders included, that it also learns from and is whitened with."""

    bits: PositiveInt = 48
    """For the extractor: bits to read. Other than 48 needs --out."""


def main(arguments: list[str]) -> int:
    """Run `lrdiff embedded`."""
    actions = {"list": list_models, "make": make}
    if arguments and arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if not arguments or arguments[0] not in actions:
        raise ConfigError(f"{PROG} what? {', '.join(actions)}; see {PROG} --help")
    return actions[arguments[0]](arguments[1:])


def list_models(arguments: list[str]) -> int:
    """Print a line for every shipped or makeable model."""
    given = read_flags(arguments, [], prog=f"{PROG} list", about="List the shipped models.")
    if given.words:
        raise ConfigError(f"unexpected word {given.words[0]!r}; see {PROG} --help")
    from app.doctor import ASSETS, manifest
    from trainers.embedded.make import RECIPES

    listed = manifest()
    shipped = {Path(path).parts[1] for path in listed if path.startswith("models/")}
    for name in sorted(shipped | set(RECIPES)):
        files = [ASSETS / path for path in listed if path.startswith(f"models/{name}/")]
        size = sum(file.stat().st_size for file in files if file.is_file())
        print(f"{name:<12}  {f'{size / 1e6:.1f} MB' if size else 'absent':>9}  {RECIPES.get(name, '')}".rstrip())
    return 0


def make(arguments: list[str]) -> int:
    """Make one model."""
    given = read_flags(arguments, [MakeOptions], prog=f"{PROG} make NAME", about=ABOUT_MAKE)
    options = build(MakeOptions, given.values)
    from trainers.embedded.make import RECIPES
    from trainers.embedded.make import make as make_model

    if len(given.words) != 1:
        raise ConfigError(f"{PROG} make takes one name, not {len(given.words)}; known: {', '.join(RECIPES)}")
    if given.words[0] not in RECIPES:
        raise ConfigError(f"no model {given.words[0]!r} can be made; known: {', '.join(RECIPES)}")
    with logging_to_stderr():
        path = make_model(given.words[0], **options.model_dump())
    say(f"made: {path}")
    return 0
