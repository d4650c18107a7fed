"""Whose head a command shows: drawn at random, a person's photo, a mixture of photos, each changed along directions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Le
from pydantic import NonNegativeInt

from app.commands.console import say
from app.commands.flags import Given, Options
from lrdiff.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from lrdiff.triplane import TriplaneGenerator
    from lrdiff.triplane.inversion import Anchors


class HeadOptions(Options):
    """Whose head."""

    adapter: Path | None = None
    """Adapter of a person, or the run that made it. None shows a head drawn at random."""

    photo: NonNegativeInt = 0
    """Which of the adapter's photos is shown, counted from 0."""

    mix: NonNegativeInt | None = None
    """Seed of a mixture of up to three photos that is shown in place of one photo."""

    edit: tuple[str, ...] = ()
    """Changes along the generator's directions, as NAME=AMOUNT, in deviations of the trait: smile=2. With an adapter
    they end at the edge of what the photos span."""

    beta: Annotated[float, Ge(0.0), Le(1.0)] = 0.02
    """How far changes may leave what lies between the photos."""

    seed: NonNegativeInt = 0
    """Of the head that is drawn at random."""


@dataclass(frozen=True, slots=True)
class Head:
    """A generator, with the person's adapter if there is one, and the latent that is shown.

    Attributes:
        generator: Ready to render.
        folder: Where it was read from.
        ws: [1, latents, w].
        anchors: Those of the adapter, or None.
    """

    generator: TriplaneGenerator
    folder: Path
    ws: Tensor
    anchors: Anchors | None

    def of_photo(self, photo: int, option: str) -> Tensor:
        """Return the latent of a photo. Raises `ConfigError` when there is no such photo."""
        if self.anchors is None:
            raise ConfigError(f"{option}: has no effect without adapter; leave it out or give the adapter of a person")
        if photo >= len(self.anchors.ws):
            count = len(self.anchors.ws)
            raise ConfigError(f"{option}: {photo} is not among the {count} photos, counted from 0")
        return self.anchors.ws[photo : photo + 1].expand(-1, self.generator.config.latents, -1)


def folder_of(given: Given, prog: str) -> Path:
    """Return the generator's folder that a command names. Raises `ConfigError` unless it names exactly one."""
    from lrdiff.triplane.store import find

    if len(given.words) != 1:
        raise ConfigError(f"{prog} takes one generator, not {len(given.words)}; see {prog} --help")
    return find(given.words[0])


def read_head(folder: Path, options: HeadOptions) -> Head:
    """Read a generator and make the latent that the options ask for."""
    import torch

    from lrdiff.rng import stream
    from lrdiff.triplane import hull
    from lrdiff.triplane.cameras import frontal
    from lrdiff.triplane.store import load, load_directions

    generator = load(folder)
    edits = [_edit(text) for text in options.edit]
    known = load_directions(folder, [name for name, _ in edits]) if edits else {}
    if options.adapter is None:
        idle = [name for name, off in (("photo", 0), ("mix", None)) if getattr(options, name) != off]
        if idle:
            raise ConfigError(f"{idle[0]}: has no effect without adapter; leave it out or give the adapter of a person")
        z = torch.randn(1, generator.config.z, generator=stream(options.seed, "head"))
        with torch.no_grad():
            ws = generator.mapping(z, frontal(generator.config) if generator.config.c else None)
        for name, amount in edits:
            ws = ws + amount * known[name]
        return Head(generator, folder, ws, None)
    anchors = put_on(generator, folder, options.adapter)
    ws = Head(generator, folder, anchors.ws, anchors).of_photo(options.photo, "photo")
    if not edits and options.mix is None:
        return Head(generator, folder, ws, anchors)
    count = len(anchors.ws)
    shares = torch.eye(count)[options.photo]
    if options.mix is not None:
        shares = hull.sample(1, count, stream(options.mix, "mixture"))[0]
    for name, amount in edits:
        shares, whole = hull.moved(anchors.ws, shares, known[name], amount, options.beta)
        if not whole:
            say(f"edit: {name}={amount:g} ends at the edge of what the photos span; a larger --beta goes further")
    ws = hull.mixed(anchors.ws, shares[None]).expand(-1, generator.config.latents, -1)
    return Head(generator, folder, ws, anchors)


def put_on(generator: TriplaneGenerator, folder: Path, adapter: Path) -> Anchors:
    """Merge a person's adapter, a file or a run, into its generator, and return the anchors."""
    from lrdiff.adapters import read_adapter
    from lrdiff.generate_config import AdapterSpec
    from lrdiff.triplane.personal import wear
    from lrdiff.triplane.store import fingerprint

    read = read_adapter(AdapterSpec(path=adapter.expanduser(), weight=1.0))
    personal, anchors = wear(generator, fingerprint(folder), read.artifact)
    personal.merge()
    return anchors


def _edit(text: str) -> tuple[str, float]:
    name, _, amount = text.partition("=")
    try:
        return name, float(amount)
    except ValueError as error:
        raise ConfigError(f"edit: {text!r} is not NAME=AMOUNT, for example smile=2") from error
