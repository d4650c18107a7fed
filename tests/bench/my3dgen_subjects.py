"""Unseen people with marks that no prior can draw, and what the world shows of them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from lrdiff.rng import stream
from lrdiff.world.heads import IDENTITY, LATENT, heads
from lrdiff.world.heads_render import HeadView
from lrdiff.world.heads_render import orbit as photograph

PHOTOS, VIEWED, HELD_OUT = 10, 3, 2
"""Photos of a subject, how many of them are looked at from other sides, and further ones with other expressions."""
MARKS = ("glasses", "scar", "band", "spot", "streak")
TURNS = (0.5, 0.9)
"""Yaws of novel views, in radians; the photos show yaws from -0.1 to 0.9, so the negative ones are unseen."""


@dataclass(frozen=True)
class Subject:
    """Somebody, and the photos there are.

    Attributes:
        mark: What the prior cannot draw.
        z: [12, 24]: one identity, twelve expressions and lights; the last two are held out.
        angles: Yaws and pitches of the photos, [12, 2].
    """

    mark: str
    z: Tensor
    angles: Tensor

    @classmethod
    def draw(cls, number: int) -> Subject:
        """Draw subject number `number`."""
        rng = stream(number, "my3dgen subject")
        count = PHOTOS + HELD_OUT
        z = torch.randn(count, LATENT, generator=rng)
        z[:, :IDENTITY] = z[:1, :IDENTITY]
        places = torch.rand(count, 2, generator=rng)
        return cls(MARKS[number % len(MARKS)], z, places * torch.tensor([1.0, 0.4]) + torch.tensor([-0.1, -0.2]))

    def views(self, side: int, which: slice, angles: Tensor, marked: bool = True) -> HeadView:
        """Photograph states of the head from angles [n, 2]."""
        person = heads(self.z[which]).marked(**{self.mark: marked})
        return photograph(person, angles[:, 0], angles[:, 1], side, smooth=1)


@dataclass(frozen=True)
class Turned:
    """How some states of a head look from one side.

    Attributes:
        angles: [n, 2].
        meant: With the mark.
        plain: Without it, where it is looked for; else None.
        depth: At the rendered side, [n, 1, s, s].
        mask: The same.
    """

    angles: Tensor
    meant: Tensor
    plain: Tensor | None
    depth: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Truth:
    """What the world shows of a subject: all that is compared with.

    Attributes:
        photos: What is learned from, [10, 3, S, S].
        other: Other expressions, [2, 3, S, S].
        turned: By side ("seen", "unseen"), one for each of `TURNS`.
    """

    photos: Tensor
    other: Tensor
    turned: dict[str, list[Turned]]


@functools.lru_cache(1)
def truth(number: int, side: int, rendered: int) -> Truth:
    """Draw what the world shows of a subject; all ways of tuning share it."""
    subject = Subject.draw(number)
    taken = subject.views(side, slice(None), subject.angles).image
    turned: dict[str, list[Turned]] = {"seen": [], "unseen": []}
    for name, sign in (("seen", 1.0), ("unseen", -1.0)):
        for turn in TURNS:
            angles, which = torch.tensor([[sign * turn, 0.0]]).expand(VIEWED, -1), slice(VIEWED)
            meant = subject.views(side, which, angles).image
            plain = subject.views(side, which, angles, marked=False).image if name == "seen" else None
            exact = subject.views(rendered, which, angles)
            turned[name].append(Turned(angles, meant, plain, exact.depth, exact.mask))
    return Truth(taken[:PHOTOS], taken[PHOTOS:], turned)
