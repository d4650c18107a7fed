"""`lrdiff triplane render`: a head, turned around, as an animation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Le
from pydantic import NonNegativeInt

from app.commands.console import say
from app.commands.flags import Options, read_flags
from app.commands.settings import build
from lrdiff.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from lrdiff.triplane import TriplaneGenerator

PROG = "lrdiff triplane render"
ABOUT = """Turn a head around and write the turn as an animated GIF or WebP.

example:
  lrdiff triplane render ffhq512 --adapter person.safetensors --photo 3 --out person.gif
"""


class HeadOptions(Options):
    """Whose head."""

    adapter: Path | None = None
    """Adapter of a person. None shows a head drawn at random."""

    photo: NonNegativeInt = 0
    """Which of the adapter's photos is shown, counted from 0."""

    seed: NonNegativeInt = 0
    """Of the head that is drawn at random."""


class RenderOptions(HeadOptions):
    """What to show, and where to write it."""

    out: Path = Path("turn.gif")
    """File to write: .gif or .webp."""

    frames: Annotated[int, Ge(2), Le(1000)] = 40
    """Frames of a turn."""

    yaw: Annotated[float, Ge(0.0), Le(3.2)] = 0.6
    """How far the camera goes to both sides, in radians."""

    pitch: Annotated[float, Ge(0.0), Le(1.5)] = 0.15
    """How far it goes up and down, in radians."""

    depth: bool = False
    """Show the distance in grey in place of the picture."""

    chunk: Annotated[int, Ge(1)] = 4096
    """Rays at a time; fewer need less memory."""


def main(arguments: list[str]) -> int:
    """Run `lrdiff triplane render`. The file goes to stdout, everything else to stderr."""
    given = read_flags(arguments, [RenderOptions], prog=PROG, about=ABOUT)
    options = build(RenderOptions, given.values)
    if len(given.words) != 1:
        raise ConfigError(f"{PROG} takes one generator's folder, not {len(given.words)}; see {PROG} --help")
    from lrdiff.triplane.orbits import depth_picture, turntable, write_animation
    from lrdiff.triplane.store import load

    folder, out = Path(given.words[0]).expanduser(), options.out.expanduser()
    generator = load(folder)
    ws = latent(generator, folder, options)
    frames = []
    for view in turntable(generator, ws, options.frames, options.yaw, options.pitch, options.chunk):
        frames.append((depth_picture(view, generator) if options.depth else view.image)[0])
    write_animation(out, frames)
    print(out)
    say(f"{len(frames)} frames at {frames[0].shape[-1]} px")
    return 0


def latent(generator: TriplaneGenerator, folder: Path, options: HeadOptions) -> Tensor:
    """Return the latent of a photo, with the person's adapter put on, or one drawn at random."""
    import torch

    from lrdiff.artifact import Artifact
    from lrdiff.rng import stream
    from lrdiff.triplane.cameras import frontal
    from lrdiff.triplane.personal import wear
    from lrdiff.triplane.store import fingerprint

    if options.adapter is not None:
        personal, anchors = wear(generator, fingerprint(folder), Artifact.load(options.adapter.expanduser()))
        if options.photo >= len(anchors.ws):
            raise ConfigError(f"photo: {options.photo} is not among the {len(anchors.ws)} photos, counted from 0")
        personal.merge()
        return anchors.ws[options.photo : options.photo + 1].expand(-1, generator.config.latents, -1)
    if options.photo:
        raise ConfigError("photo: has no effect without adapter; leave it out or give the adapter of a person")
    z = torch.randn(1, generator.config.z, generator=stream(options.seed, "head"))
    with torch.no_grad():
        return generator.mapping(z, frontal(generator.config) if generator.config.c else None)
