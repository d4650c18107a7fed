"""`lrdiff triplane restore`: fill in or enlarge a photo of a person whose adapter there is."""

from __future__ import annotations

from pathlib import Path

from pydantic import PositiveInt

from app.commands.console import say
from app.commands.flags import Options, read_flags
from app.commands.settings import build
from app.commands.triplane_head import folder_of, put_on
from lrdiff.errors import ConfigError

PROG = "lrdiff triplane restore"
ABOUT = """Explain a damaged photo of a person by a mixture of that person's anchors.

What a mask hides is filled in, and a small photo is enlarged.

examples:
  lrdiff triplane restore heads --adapter me.safetensors --picture torn.png --mask good-part.png --out whole.png
  lrdiff triplane restore heads --adapter me.safetensors --picture tiny.png --out large.png
"""


class RestoreOptions(Options):
    """What is damaged, and how."""

    adapter: Path | None = None
    """Adapter of the person, or the run that made it."""

    picture: Path | None = None
    """The photo. One smaller than the generator's pictures is enlarged."""

    mask: Path | None = None
    """Picture of the same size, white on what is good and black on what is to be filled in."""

    steps: PositiveInt = 200
    """Steps of the search."""

    out: Path = Path("restored.png")
    """File to write: .png."""


def main(arguments: list[str]) -> int:
    """Run `lrdiff triplane restore`. The file goes to stdout, everything else to stderr."""
    given = read_flags(arguments, [RestoreOptions], prog=PROG, about=ABOUT)
    options = build(RestoreOptions, given.values)
    if options.adapter is None or options.picture is None:
        raise ConfigError(f"{PROG} needs --adapter and --picture; see {PROG} --help")
    import torch

    from lrdiff.images import crop_to, read_image, save_png, to_tensor
    from lrdiff.triplane.hull import explain, hiding, shrinking
    from lrdiff.triplane.store import load

    folder = folder_of(given, PROG)
    generator = load(folder)
    anchors = put_on(generator, folder, options.adapter)
    side = generator.config.side
    picture = read_image(options.picture.expanduser())
    small = min(picture.size)
    if options.mask is None and small >= side:
        raise ConfigError(
            f"picture: {small} px is no smaller than the generator's {side}; give a mask, or a smaller one"
        )
    shown = min(small, side) if options.mask is None else side
    photo = to_tensor(crop_to(picture, shown, shown))[None]
    visible = torch.zeros(1, 1, side, side)
    if options.mask is None:
        degrade = shrinking(shown)
    else:
        good = to_tensor(crop_to(read_image(options.mask.expanduser()), side, side))[None, :1]
        visible = torch.where(good > 0, 1.0, 0.0)
        if not 0 < float(visible.mean()) < 1:
            raise ConfigError("mask: is all white or all black; white is good, black is to be filled in")
        degrade = hiding(visible)
        photo = degrade(photo)
    found = explain(generator, anchors.ws, photo, degrade, options.steps)
    with torch.no_grad():
        image = generator.view(found.ws.expand(-1, generator.config.latents, -1), found.camera).image.clamp(-1, 1)
    if options.mask is not None:
        image = image.lerp(photo, visible)
    out = options.out.expanduser()
    save_png(image[0], out)
    print(out)
    say(f"loss {found.loss:.4f}; shares of the photos: {', '.join(f'{share:.2f}' for share in found.shares.tolist())}")
    return 0
