"""`lrdiff sla`: the group of commands about sparse-linear attention."""

from __future__ import annotations

import importlib

from lrdiff.errors import ConfigError

PROG = "lrdiff sla"
ACTIONS = {"map": "app.commands.sla_map"}
USAGE = """usage: lrdiff sla map --model MODEL --prompt TEXT     which blocks of a layer matter, as a picture
       lrdiff train sla --data.images DIR             fine-tune; see lrdiff train sla --help
"""


def main(arguments: list[str]) -> int:
    """Run `lrdiff sla`."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if not arguments or arguments[0] not in ACTIONS:
        raise ConfigError(f"{PROG} what? {', '.join(ACTIONS)}; see {PROG} --help")
    return importlib.import_module(ACTIONS[arguments[0]]).main(arguments[1:])
