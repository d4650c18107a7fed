"""Ten photos of an invented person, to try personal heads with: the shipped generator knows no photos of people."""

from __future__ import annotations

from pathlib import Path

import torch

from lrdiff.files import write_json
from lrdiff.images import save_png
from lrdiff.rng import stream
from lrdiff.triplane.cameras import look_at
from lrdiff.world.heads import IDENTITY, LATENT, heads
from lrdiff.world.heads_render import FOCAL, RADIUS, orbit

PEOPLE = {"somebody-with-glasses": "glasses"}
"""Names of the folders, and the mark by which the generator cannot draw them."""
SIZE = 128
PHOTOS = 10
YAW, PITCH = 0.8, 0.2
"""Widest, in radians; the photos go around the head from one side to the other."""


def write_people(folder: Path, seed: int = 0) -> list[Path]:
    """Write `NAME/photos/*.png` and `NAME/cameras.json` for every shipped person: one face, ten expressions and lights.

    Args:
        folder: Where the people's folders go.
        seed: Of faces, expressions, lights and cameras.

    Returns:
        All files, in order.
    """
    found: list[Path] = []
    for name, mark in PEOPLE.items():
        rng = stream(seed, name)
        z = torch.randn(PHOTOS, LATENT, generator=rng)
        z[:, :IDENTITY] = z[:1, :IDENTITY]
        yaw = torch.linspace(-YAW, YAW, PHOTOS)[torch.randperm(PHOTOS, generator=rng)]
        pitch = PITCH * (2 * torch.rand(PHOTOS, generator=rng) - 1)
        images = orbit(heads(z).marked(**{mark: True}), yaw, pitch, SIZE).image
        photos = [folder / name / "photos" / f"{number:02d}.png" for number in range(PHOTOS)]
        photos[0].parent.mkdir(parents=True, exist_ok=True)
        for path, image in zip(photos, images, strict=True):
            save_png(image, path)
        cameras = look_at(yaw, pitch, RADIUS, FOCAL).tolist()
        known = folder / name / "cameras.json"
        write_json(known, {path.name: camera for path, camera in zip(photos, cameras, strict=True)})
        found += [*photos, known]
    return found
