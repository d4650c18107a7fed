"""`lrdiff watermark`: the group of commands about marks."""

from __future__ import annotations

import importlib

from lrdiff.errors import ConfigError

PROG = "lrdiff watermark"
ACTIONS = {
    "fuse": "app.commands.fuse",
    "attack": "app.commands.attack",
    "keys": "app.commands.keys",
    "example": "app.commands.example_mark",
}
USAGE = """usage: lrdiff watermark fuse RUN --out DIR              merge a trained mark into a decoder to publish
       lrdiff watermark attack IMAGES... --key ID     what is left of a mark after attacks: table and curves
       lrdiff watermark keys new|list|show|...        the registry of keys; see lrdiff watermark keys --help
       lrdiff watermark example                       try marking and verifying with a key that everybody knows
"""


def main(arguments: list[str]) -> int:
    """Run `lrdiff watermark`."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if not arguments or arguments[0] not in ACTIONS:
        raise ConfigError(f"{PROG} what? {', '.join(ACTIONS)}; see {PROG} --help")
    return importlib.import_module(ACTIONS[arguments[0]]).main(arguments[1:])
