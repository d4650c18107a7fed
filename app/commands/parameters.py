"""`lrdiff parameters`: how an image was made, read out of the image."""

from __future__ import annotations

import json
from pathlib import Path

from app.commands.flags import Options, read_flags
from app.commands.settings import build
from lrdiff.errors import ConfigError

PROG = "lrdiff parameters"


class ParametersOptions(Options):
    """How to print."""

    text: bool = False
    """Print as the plain text most image tools show, not as JSON."""


def main(arguments: list[str]) -> int:
    """Run `lrdiff parameters`."""
    about = "Read how an image was made out of the image: prompt, seed, model, adapters, versions."
    given = read_flags(arguments, [ParametersOptions], prog=f"{PROG} IMAGE.png", about=about)
    options = build(ParametersOptions, given.values)
    if len(given.words) != 1:
        raise ConfigError(f"{PROG} takes one image, not {len(given.words)}")
    from lrdiff.metadata import plain_text, read_parameters

    path = Path(given.words[0])
    record = read_parameters(path)
    if options.text and "versions" not in record:
        raise ConfigError(f"{path}: --text is for single images made by lrdiff; leave it out for JSON")
    print(plain_text(record) if options.text else json.dumps(record, indent=2, ensure_ascii=False))
    return 0
