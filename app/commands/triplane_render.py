"""`lrdiff triplane render`: a head, turned around, as a video or an animation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le
from pydantic import NonNegativeInt

from app.commands.console import say
from app.commands.flags import read_flags
from app.commands.settings import build
from app.commands.triplane_head import HeadOptions, folder_of, read_head

PROG = "lrdiff triplane render"
ABOUT = """Turn a head around and write the turn as MP4, animated GIF or WebP.

examples:
  lrdiff triplane render heads --seed 3 --edit smile=2 --out head.mp4
  lrdiff triplane render heads --adapter runs/my3dgen-me-001 --photo 3 --to 5 --out me.mp4
"""


class RenderOptions(HeadOptions):
    """What to show, and where to write it."""

    out: Path = Path("turn.mp4")
    """File to write: .mp4, .gif or .webp."""

    show: Literal["picture", "depth", "normals"] = "picture"
    """The picture, the distance in grey, or the normals of the surface as colours."""

    to: NonNegativeInt | None = None
    """Photo into which the head changes during the turn, and back."""

    frames: Annotated[int, Ge(2), Le(1000)] = 40
    """Frames of a turn."""

    yaw: Annotated[float, Ge(0.0), Le(3.2)] = 0.6
    """How far the camera goes to both sides, in radians."""

    pitch: Annotated[float, Ge(0.0), Le(1.5)] = 0.15
    """How far it goes up and down, in radians."""

    chunk: Annotated[int, Ge(1)] = 4096
    """Rays at a time; fewer need less memory."""


def main(arguments: list[str]) -> int:
    """Run `lrdiff triplane render`. The file goes to stdout, everything else to stderr."""
    given = read_flags(arguments, [RenderOptions], prog=PROG, about=ABOUT)
    options = build(RenderOptions, given.values)
    from lrdiff.triplane.orbits import depth_picture, normal_picture, swing, turntable, write_animation

    head, out = read_head(folder_of(given, PROG), options), options.out.expanduser()
    other = None if options.to is None else head.of_photo(options.to, "to")
    cameras = swing(head.generator, options.frames, options.yaw, options.pitch)
    frames = []
    for view, camera in zip(
        turntable(head.generator, head.ws, cameras, other, options.chunk), cameras.split(1), strict=True
    ):
        shown = {
            "picture": lambda v=view: v.image,
            "depth": lambda v=view: depth_picture(v, head.generator),
            "normals": lambda v=view, c=camera: normal_picture(v, c),
        }[options.show]()
        frames.append(shown[0])
    write_animation(out, frames)
    print(out)
    say(f"{len(frames)} frames at {frames[0].shape[-1]} px")
    return 0
