"""Procedural heads: from 24 numbers to shape, colours and light, everything known exactly.

z ~ N(0, I): 18 numbers of identity, 4 of expression, 2 of light. Shape and colours depend on x only through |x|, so
every head without a one-sided mark is exactly symmetric; the light need not be.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from lrdiff.errors import ShapeError

LATENT, IDENTITY, EXPRESSION = 24, 18, 4
SYMMETRIC_MARKS = ("glasses", "band")
ONE_SIDED_MARKS = ("scar", "spot", "streak")
MARKS = SYMMETRIC_MARKS + ONE_SIDED_MARKS


@dataclass(frozen=True, slots=True)
class Heads:
    """Parameters of B heads; each is [B, 1], colours and light are [B, 1, 3], marks [B, 1] of 0 or 1.

    Attributes:
        skull: Half axes of the skull (width, height, depth), [B, 1, 3].
        jaw_width: Half width of the jaw.
        jaw_length: How far the jaw reaches down.
        nose_length: How far the nose stands out.
        nose_width: Its half width.
        ear: Half height of the ears.
        eye_x: Distance of the eyes from the middle.
        eye_r: Radius of what is seen of an eye.
        mouth: Half width of the mouth.
        hairline: Height at which hair begins above the forehead.
        skin: Colour.
        hair: Colour.
        iris: Colour.
        smile: How far the corners of the mouth go up.
        open: Half height of the mouth.
        brow: How far the brows are raised.
        lid: How far the eyes are open.
        light: Unit direction towards the light.
        glasses: Dark frames.
        band: A coloured band around the head.
        scar: A red line on the cheek at x > 0.
        spot: A beauty spot on the cheek at x < 0.
        streak: A coloured streak in the hair at x > 0.
        identity: What makes the person, in [-1, 1]: [B, 18].
    """

    skull: Tensor
    jaw_width: Tensor
    jaw_length: Tensor
    nose_length: Tensor
    nose_width: Tensor
    ear: Tensor
    eye_x: Tensor
    eye_r: Tensor
    mouth: Tensor
    hairline: Tensor
    skin: Tensor
    hair: Tensor
    iris: Tensor
    smile: Tensor
    open: Tensor
    brow: Tensor
    lid: Tensor
    light: Tensor
    glasses: Tensor
    band: Tensor
    scar: Tensor
    spot: Tensor
    streak: Tensor
    identity: Tensor

    def __len__(self) -> int:
        return len(self.identity)

    def __getitem__(self, index: slice) -> Heads:
        return Heads(**{item.name: getattr(self, item.name)[index] for item in fields(self)})

    def pick(self, index: Tensor) -> Heads:
        """Return the heads of numbers [M], or of a mask [B]; a head may be picked many times."""
        return Heads(**{item.name: getattr(self, item.name)[index] for item in fields(self)})

    def marked(self, **marks: bool) -> Heads:
        """Return the same heads with marks put on or taken off, for example `marked(scar=True)`.

        Raises:
            ShapeError: There is no such mark.
        """
        unknown = sorted(set(marks) - set(MARKS))
        if unknown:
            raise ShapeError(f"no mark {unknown[0]!r}; known are {', '.join(MARKS)}")
        return self.wearing(**{name: torch.full_like(self.scar, float(on)) for name, on in marks.items()})

    def wearing(self, **marks: Tensor) -> Heads:
        """Return the same heads with marks put on some of them: [B, 1] of 0 or 1 by name of the mark."""
        return replace(self, **marks)

    def lit_from_the_front(self) -> Heads:
        """Return the same heads under a symmetric light."""
        front = self.light.new_tensor([0.0, 0.35, 1.0])
        return replace(self, light=(front / front.norm()).expand_as(self.light))

    def marks(self) -> Tensor:
        """Return which marks there are, [B, 5] of 0 or 1, in the order of `MARKS`."""
        return torch.cat([getattr(self, name) for name in MARKS], 1)


def heads(z: Tensor) -> Heads:
    """Return the heads of latents.

    t = tanh(0.7 z), and each parameter is linear in one number of t (colours in two).

    Args:
        z: [B, 24], normal. The same first 18 numbers are the same person; 18 to 21 are expression, 22 and 23 light.

    Raises:
        ShapeError: z has another size.
    """
    if z.ndim != 2 or z.shape[1] != LATENT:
        raise ShapeError(f"z has shape {tuple(z.shape)}; heads take [B, {LATENT}]")
    t = torch.tanh(0.7 * z)

    def g(index: int, low: float, high: float) -> Tensor:
        return (low + (high - low) * (0.5 * t[:, index] + 0.5))[:, None]

    def colour(*parts: Tensor) -> Tensor:
        return torch.stack(parts, -1)

    light = torch.stack([0.8 * t[:, 22:23], 0.35 + 0.55 * t[:, 23:24], torch.ones_like(t[:, :1])], -1)
    none = torch.zeros_like(t[:, :1])
    return Heads(
        skull=colour(g(0, 0.24, 0.33), g(1, 0.32, 0.42), g(2, 0.27, 0.36)),
        jaw_width=g(3, 0.15, 0.25),
        jaw_length=g(4, 0.09, 0.20),
        nose_length=g(5, 0.05, 0.14),
        nose_width=g(6, 0.025, 0.06),
        ear=g(7, 0.04, 0.09),
        eye_x=g(8, 0.09, 0.14),
        eye_r=g(9, 0.04, 0.06),
        mouth=g(10, 0.06, 0.13),
        hairline=g(11, 0.14, 0.28),
        skin=colour(g(12, 0.35, 0.95), g(12, 0.22, 0.75) * g(13, 0.9, 1.1), g(12, 0.15, 0.62) * g(13, 0.8, 1.2)),
        hair=colour(g(14, 0.05, 0.85), g(14, 0.04, 0.65) * g(15, 0.6, 1.0), g(14, 0.03, 0.35)),
        iris=colour(g(16, 0.05, 0.4), g(16, 0.2, 0.5), g(17, 0.1, 0.8)),
        smile=g(18, -0.03, 0.06),
        open=g(19, 0.008, 0.045),
        brow=g(20, -0.02, 0.04),
        lid=g(21, 0.4, 1.0),
        light=light / light.norm(dim=-1, keepdim=True),
        **dict.fromkeys(MARKS, none),
        identity=t[:, :IDENTITY],
    )


def mirrored(person: Heads) -> Heads:
    """Return the heads' mirror images in x = 0, as far as light goes; one-sided marks are refused.

    Raises:
        ShapeError: A head has a one-sided mark, which has no mirrored form here.
    """
    if any(bool(getattr(person, name).any()) for name in ONE_SIDED_MARKS):
        raise ShapeError("a head with a one-sided mark has no mirror image among these heads; take the mark off")
    return replace(person, light=person.light * person.light.new_tensor([-1.0, 1.0, 1.0]))
