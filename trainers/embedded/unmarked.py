"""Unmarked pictures to whiten an extractor with, and others to calibrate it on.

Four kinds: the world, dead-leaves textures, what a model draws without a mark, and photos where a folder is given.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lrdiff import backbones
from lrdiff.files import write_bytes
from lrdiff.generate import render
from lrdiff.rng import derive, stream
from lrdiff.world.captions import caption
from lrdiff.world.scene import Scene
from trainers.embedded.dead_leaves import dead_leaves
from trainers.embedded.pictures import Photos, cuts
from trainers.embedded.shards import Shards

log = logging.getLogger(__name__)

SIDES = (64, 128)
"""Of the pictures that are read, in turn: a crop and a whole output of `toys`."""
SCALES = {"world": (0.6, 1.0), "outputs": (0.6, 1.0), "photos": (0.2, 1.0)}
BATCH = 32
SAMPLING_STEPS = 8
"""Fewer than for good pictures: what counts is what the model and its decoder leave in a picture."""


@dataclass(frozen=True)
class Kind:
    """Pictures of one kind.

    Attributes:
        source: Gives images [B, 3, H, W] in [-1, 1] for indices.
        halves: Indices for whitening, and others for calibrating.
        scales: At which they are cut, see `cuts`.
    """

    source: Callable[[Tensor], Tensor]
    halves: tuple[Tensor, Tensor]
    scales: tuple[float, float]

    def batches(self, half: int, count: int, rng: torch.Generator) -> Iterator[Tensor]:
        """Yield `count` cuts of one half, in batches of one side each; pictures are taken in turn."""
        known = self.halves[half]
        chosen = known[torch.arange(count) % len(known)]
        for number, part in enumerate(chosen.split(BATCH)):
            yield cuts(self.source, part, SIDES[number % len(SIDES)], self.scales, rng)


def kinds(scenes: Shards, held_out: int, outputs: Shards, photos: Path | None, textures: int) -> dict[str, Kind]:
    """Return the kinds by name.

    Args:
        scenes: Of the world; only the last `held_out` are taken.
        held_out: How many were not trained on.
        outputs: Pictures drawn by a model without a mark.
        photos: Folder of photos, or None.
        textures: How many dead-leaves pictures to draw.
    """
    # In small batches: the painter goes over all its pictures once for every leaf, best within the processor's cache.
    starts = range(0, textures, BATCH)
    drawn = torch.cat([dead_leaves(min(BATCH, textures - at), SIDES[-1], stream(1, "textures", at)) for at in starts])
    first = max(0, scenes.count - held_out)
    found = {
        "world": Kind(scenes.images, _halves(torch.arange(first, scenes.count)), SCALES["world"]),
        "textures": Kind(lambda i: drawn[i], _halves(torch.arange(textures)), SCALES["world"]),
        "outputs": Kind(outputs.images, _halves(torch.arange(outputs.count)), SCALES["outputs"]),
    }
    if photos is not None:
        read = Photos(photos)
        found["photos"] = Kind(read.images, _halves(torch.arange(read.count)), SCALES["photos"])
    return found


def draw_outputs(model: Path, scenes: Shards, held_out: int, count: int, cache: Path, device: str) -> Shards:
    """Let a model draw the captions of held-out scenes; go on where an earlier call was interrupted.

    Args:
        model: The diffusers folder.
        scenes: Whose last `held_out` scenes give the captions.
        held_out: See above.
        count: Pictures.
        cache: Where a folder is made for this very model, with files of up to `BATCH` pictures as `Shards` reads them.
        device: To draw on.
    """
    records = scenes.records()[-held_out:]
    backbone = backbones.load(model, device=device)
    folder = cache / f"outputs-{backbone.fingerprint[:12]}-{count}"
    folder.mkdir(parents=True, exist_ok=True)
    for part in torch.arange(count).split(BATCH):
        file = folder / f"{int(part[0]) // BATCH:04d}.npy"
        if file.is_file():
            continue
        known = [Scene.from_dict(records[i % len(records)]) for i in part.tolist()]
        texts = [caption(scene, stream(1, "output", i)) for i, scene in zip(part.tolist(), known, strict=True)]
        seeds = [derive(1, "output", i) % 2**31 for i in part.tolist()]
        drawn = render(backbone, texts, seeds, steps=SAMPLING_STEPS).cpu()
        buffer = io.BytesIO()
        np.save(buffer, ((drawn + 1.0) * 127.5).round().to(torch.uint8).numpy())
        write_bytes(file, buffer.getvalue())
        log.info("%d of %d pictures drawn", int(part[-1]) + 1, count)
    return Shards.open(folder)


def _halves(indices: Tensor) -> tuple[Tensor, Tensor]:
    return indices[0::2], indices[1::2]
