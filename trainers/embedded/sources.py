"""What an extractor learns from: rendered scenes, textures of dead leaves, and photos where there are any."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lrdiff.rng import stream
from trainers.embedded.dead_leaves import dead_leaves
from trainers.embedded.pictures import Photos, cuts
from trainers.embedded.shards import Shards

HELD_OUT = 2048
"""Scenes at the end of the set that are never trained on: for the curve of a run, whitening and calibration."""
TEXTURE_SIDE = 128


class Sources:
    """Pictures of three kinds, in fixed shares."""

    def __init__(
        self, scenes: Path, photos: Path | None, textures: int, texture_share: float, photo_share: float
    ) -> None:
        """Open the pictures.

        Args:
            scenes: Folder of rendered scenes.
            photos: Folder of photos; none leaves them out.
            textures: How many to make.
            texture_share: Of the pictures.
            photo_share: Of the pictures, when there are photos; the rest are scenes.

        Raises:
            DataError: A folder cannot be read.
        """
        self.scenes = Shards.open(scenes)
        self.photos = Photos(photos) if photos is not None else None
        self.textures = dead_leaves(textures, TEXTURE_SIDE, stream(0, "textures"))
        self.texture_share, self.photo_share = texture_share, photo_share

    def cut(self, count: int, side: int, rng: torch.Generator) -> Tensor:
        """Return pictures [count, 3, side, side] in [-1, 1], cut at random places and scales."""
        textures = round(count * self.texture_share)
        photos = 0 if self.photos is None else round(count * self.photo_share)
        parts = []
        if textures:
            chosen = torch.randint(0, len(self.textures), (textures,), generator=rng)
            parts.append(cuts(lambda i: self.textures[i], chosen, side, (0.5, 1.5), rng))
        if self.photos is not None and photos:
            chosen = torch.randint(0, self.photos.count, (photos,), generator=rng)
            parts.append(cuts(self.photos.images, chosen, side, (0.2, 1.5), rng))
        rest = count - textures - photos
        if rest > 0:
            chosen = torch.randint(0, max(1, self.scenes.count - HELD_OUT), (rest,), generator=rng)
            parts.append(cuts(self.scenes.images, chosen, side, (0.5, 1.5), rng))
        return torch.cat(parts)

    def held_out(self, count: int) -> Tensor:
        """Return the last scenes [count, 3, H, W], or all where there are fewer."""
        return self.scenes.images(torch.arange(max(0, self.scenes.count - count), self.scenes.count))
