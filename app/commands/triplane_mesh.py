"""`lrdiff triplane mesh`: a head's surface as .glb."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le
from pydantic import PositiveFloat

from app.commands.console import say
from app.commands.flags import read_flags
from app.commands.settings import build
from app.commands.triplane_head import HeadOptions, folder_of, read_head

PROG = "lrdiff triplane mesh"
ABOUT = """Write the surface of a head as a mesh with colours (.glb).

example:
  lrdiff triplane mesh ffhq512 --adapter person.safetensors --out person.glb
"""


class MeshOptions(HeadOptions):
    """Which surface, how fine, and where to write it."""

    out: Path = Path("head.glb")
    """File to write: .glb."""

    resolution: Annotated[int, Ge(8), Le(512)] = 128
    """Grid points on a side of the box around the head."""

    level: PositiveFloat = 10.0
    """Density at which the surface lies."""


def main(arguments: list[str]) -> int:
    """Run `lrdiff triplane mesh`. The file goes to stdout, everything else to stderr."""
    given = read_flags(arguments, [MeshOptions], prog=PROG, about=ABOUT)
    options = build(MeshOptions, given.values)
    from lrdiff.triplane.mesh import head_mesh, write_glb

    head, out = read_head(folder_of(given, PROG), options), options.out.expanduser()
    mesh = head_mesh(head.generator, head.ws, options.resolution, options.level)
    write_glb(out, mesh)
    print(out)
    say(f"{len(mesh.vertices):,} vertices, {len(mesh.faces):,} triangles")
    return 0
