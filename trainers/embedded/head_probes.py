"""Training of two networks that tell procedural heads apart, one for losses and one that only measures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, MinLen
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional

from lrdiff.files import replacing
from lrdiff.probe import SIDE, Probe
from lrdiff.rng import stream
from lrdiff.world.heads import IDENTITY, LATENT, MARKS, Heads, heads
from lrdiff.world.heads_render import orbit
from trainers.config import Settings
from trainers.method import Batch, Method, Metrics, ParamGroup

YAW, PITCH = 1.0, 0.3
"""Widest angles of the pictures, in radians."""
AT_ONCE = 16
MOVED, GRAIN, TONE = 2, 0.03, 0.1
"""How far pictures are shifted, in pixels; deviation of their noise; and how much their brightness varies."""


def people(count: int, views: int, rng: torch.Generator) -> tuple[Heads, Tensor]:
    """Draw individuals, each with several expressions, lights and poses; every other one has one mark.

    Returns:
        The heads [count * views], all views of one individual in a row, and their yaws and pitches
        [count * views, 2].
    """
    z = torch.randn(count, views, LATENT, generator=rng)
    z[..., :IDENTITY] = z[:, :1, :IDENTITY]
    bare = heads(z.flatten(0, 1))
    which = torch.randint(0, 2 * len(MARKS), (count,), generator=rng).repeat_interleave(views)[:, None]
    marks = {name: (which == number).float() for number, name in enumerate(MARKS)}
    angles = (torch.rand(count * views, 2, generator=rng) * 2 - 1) * torch.tensor([YAW, PITCH])
    return bare.wearing(**marks), angles


def photograph(persons: Heads, angles: Tensor) -> Tensor:
    """Return pictures [N, 3, 64, 64] in [-1, 1]."""
    parts = torch.arange(len(persons)).split(AT_ONCE)
    return torch.cat([orbit(persons.pick(n), angles[n, 0], angles[n, 1], SIDE, smooth=1).image for n in parts])


def write_people(path: Path, count: int, views: int, seed: int) -> None:
    """Write pictures of `count` individuals, [count * views, 3, 64, 64] of 0 to 255, as a .npy file."""
    persons, angles = people(count, views, stream(seed, "people"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, ((photograph(persons, angles) + 1) * 127.5).round().byte().numpy())


class HeadProbeConfig(Settings):
    """How an identity network of heads is built and trained."""

    pictures: Path
    """File of :func:`write_people`."""

    views: Annotated[int, Ge(2)] = 4
    """Pictures of each individual in it."""

    widths: Annotated[tuple[PositiveInt, ...], MinLen(2)] = (16, 32, 64, 96)
    """Channels of each stage."""

    people: Annotated[int, Ge(2)] = 64
    """Individuals per step, two pictures of each."""

    temperature: PositiveFloat = 0.1
    """Of the contrastive loss."""


class TrainHeadProbe(Method[HeadProbeConfig]):
    """Contrastive loss (NT-Xent, arXiv 2002.05709): of all pictures of a step, each is to find the other of its own."""

    def __init__(self, config: HeadProbeConfig) -> None:
        super().__init__(config)
        self.probe = Probe(config.widths, {})
        self.pictures = np.load(config.pictures, mmap_mode="r")

    def batch(self, index: int, rng: torch.Generator) -> Batch:
        """Draw two pictures each of some individuals, slightly shifted, blurred, noisy and off in brightness."""
        views = self.config.views
        chosen = torch.randperm(len(self.pictures) // views, generator=rng)[: self.config.people]
        pairs = torch.rand(len(chosen), views, generator=rng).argsort(1)[:, :2]
        rows = (chosen[:, None] * views + pairs).T.flatten()
        images = torch.from_numpy(self.pictures[rows.numpy()]).float() / 127.5 - 1
        return {"images": disturbed(images, rng)}

    def forward(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """Return the loss, and how often the nearest of the other pictures is the right one."""
        first, second = self.probe.identity(batch["images"]).float().chunk(2)
        cosines = first @ second.T / self.config.temperature
        same = torch.arange(len(first), device=cosines.device)
        loss = 0.5 * (functional.cross_entropy(cosines, same) + functional.cross_entropy(cosines.T, same))
        return loss, {"found": (cosines.argmax(1) == same).float().mean()}

    def param_groups(self) -> Iterable[ParamGroup]:
        """Everything is trained; vectors are not decayed."""
        parameters = list(self.probe.parameters())
        return [
            ParamGroup("matrices", [p for p in parameters if p.ndim > 1]),
            ParamGroup("vectors", [p for p in parameters if p.ndim <= 1], decay=False),
        ]

    def artifact(self) -> None:
        """Nothing: `make` writes the folder."""

    def state(self) -> dict[str, Tensor]:
        """Return the running statistics of the normalisations."""
        return dict(self.probe.named_buffers())

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back the running statistics."""
        for name, buffer in self.probe.named_buffers():
            buffer.copy_(state[name])


def disturbed(images: Tensor, rng: torch.Generator) -> Tensor:
    """Return pictures [B, 3, H, W] in [-1, 1] shifted, noisy, off in brightness, and every other one blurred.

    A generator draws a little softer and elsewhere than the world; that is not to count as another person.
    """
    moves = torch.randint(-MOVED, MOVED + 1, (len(images), 2), generator=rng).tolist()
    moved = torch.stack([image.roll(move, (1, 2)) for image, move in zip(images, moves, strict=True)])
    soft = functional.interpolate(functional.avg_pool2d(moved, 2), scale_factor=2, mode="bilinear")
    blurred = torch.rand(len(images), 1, 1, 1, generator=rng) < 0.5
    tone = 1 + TONE * (2 * torch.rand(len(images), 1, 1, 1, generator=rng) - 1)
    toned = (torch.where(blurred, soft, moved) + 1) * tone - 1
    return (toned + GRAIN * torch.randn(images.shape, generator=rng)).clamp(-1, 1)
