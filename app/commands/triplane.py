"""`lrdiff triplane`: the group of commands about generators of 3D heads."""

from __future__ import annotations

from pathlib import Path

from app.commands.console import say
from app.commands.flags import Options, read_flags
from app.commands.settings import build
from lrdiff.allocator import keep_freed_memory
from lrdiff.errors import ConfigError

PROG = "lrdiff triplane"
USAGE = """usage: lrdiff triplane import FILE.pkl --out DIR   turn your copy of published EG3D weights into safetensors
       lrdiff triplane render MODEL --out FILE.mp4    turn a head around, with or without a person's adapter
       lrdiff triplane mesh MODEL --out FILE.glb      its surface as a mesh with colours
       lrdiff triplane restore MODEL --adapter FILE --picture FILE.png   fill in or enlarge a photo of that person
"""
IMPORT = """Read a pickled EG3D generator and write it as safetensors and JSON.

A pickle is a program. Nothing in it is executed: only tensors and plain settings are taken out, and a file that names
anything else is refused.

example:
  lrdiff triplane import ffhqrebalanced512-128.pkl --out ffhq512
"""


class ImportOptions(Options):
    """Where to write to."""

    out: Path = Path("generator")
    """New folder for generator.safetensors and config.json."""


def main(arguments: list[str]) -> int:
    """Run `lrdiff triplane`."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if not arguments or arguments[0] not in ACTIONS:
        raise ConfigError(f"{PROG} what? {', '.join(ACTIONS)}; see {PROG} --help")
    keep_freed_memory()
    return ACTIONS[arguments[0]](arguments[1:])


def take_in(arguments: list[str]) -> int:
    """Run `lrdiff triplane import`. The folder goes to stdout, everything else to stderr."""
    given = read_flags(arguments, [ImportOptions], prog=f"{PROG} import", about=IMPORT)
    options = build(ImportOptions, given.values)
    if len(given.words) != 1:
        raise ConfigError(f"{PROG} import takes one .pkl file, not {len(given.words)}; see {PROG} import --help")
    from lrdiff.triplane.published import NOTICE, import_pickle

    folder = options.out.expanduser()
    config = import_pickle(Path(given.words[0]).expanduser(), folder)
    print(folder)
    render = config.render
    say(f"{config.side} px, rendered at {render.side} px with {render.coarse} + {render.fine} depths")
    say(NOTICE)
    return 0


def render(arguments: list[str]) -> int:
    """Run `lrdiff triplane render`."""
    from app.commands.triplane_render import main as run

    return run(arguments)


def mesh(arguments: list[str]) -> int:
    """Run `lrdiff triplane mesh`."""
    from app.commands.triplane_mesh import main as run

    return run(arguments)


def restore(arguments: list[str]) -> int:
    """Run `lrdiff triplane restore`."""
    from app.commands.triplane_restore import main as run

    return run(arguments)


ACTIONS = {"import": take_in, "render": render, "mesh": mesh, "restore": restore}
