"""How a reward is written: NAME, NAME=ARGUMENT, and behind either :WEIGHT. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from lrdiff.errors import ConfigError

ARGUMENTS: dict[str, str] = {
    "brightness": "",
    "colourfulness": "",
    "compressibility": "",
    "contrast": "",
    "incompressibility": "",
    "jpeg": "",
    "sharpness": "",
    "symmetry": "",
    "likeness": "a picture's file",
    "palette": "colours as #rrggbb, with commas between",
    "prompt-match": "probe-a or probe-b",
    "ratings": "a head's file, from python -m trainers.alignprop.rate",
    "clip": "a folder of a CLIP model",
    "pickscore": "a folder of PickScore's CLIP model",
    "hps": "a folder of HPSv2's CLIP model, in transformers' layout",
    "aesthetic": "a folder of CLIP ViT-L/14 and the predictor's file, with a comma between",
}
"""Rewards by name, and what has to stand behind "=": "" is nothing."""
FILES = ("likeness", "ratings", "clip", "pickscore", "hps", "aesthetic")
"""Those whose argument names files."""
MEASURED = ("jpeg",)
"""Those without gradient, which can be measured and not maximised."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One reward that was asked for.

    Attributes:
        name: A key of `ARGUMENTS`.
        argument: What stood behind "=", or "".
        weight: Factor in the sum; a negative one asks for less.
    """

    name: str
    argument: str
    weight: float

    def paths(self) -> list[Path]:
        """Return the files and folders that decide this reward."""
        return [Path(part) for part in self.argument.split(",")] if self.name in FILES else []

    def __str__(self) -> str:
        return f"{self.name}={self.argument}" if self.argument else self.name


def parse(text: str) -> Spec:
    """Read NAME[=ARGUMENT][:WEIGHT], for example "likeness=photo.png:0.5".

    Raises:
        ConfigError: The name is unknown, an argument is missing or too much, or the weight is no finite number but 0.
    """
    head, colon, tail = text.rpartition(":")
    weight = _number(tail) if colon and head else None
    name, _, argument = (head if weight is not None else text).partition("=")
    if name not in ARGUMENTS:
        raise ConfigError(f"reward {name!r} is unknown; known: {', '.join(ARGUMENTS)}")
    weight = 1.0 if weight is None else weight
    if weight == 0.0 or not math.isfinite(weight):
        raise ConfigError(f"reward {text!r}: a weight of {weight:g} says nothing; give another number, or leave it out")
    if bool(argument) != bool(ARGUMENTS[name]):
        wanted = f"needs {ARGUMENTS[name]} behind '='" if ARGUMENTS[name] else "takes nothing behind '='"
        raise ConfigError(f"reward {text!r}: {name} {wanted}")
    if name == "aesthetic" and argument.count(",") != 1:
        raise ConfigError(f"reward {text!r}: aesthetic needs {ARGUMENTS[name]}")
    return Spec(name, argument, weight)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
