"""Where the outlines of procedural heads are, without looking: tangent points of the solids that they are made of."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lrdiff.world.heads import Heads
from lrdiff.world.heads_shape import NECK, NECK_Z, Solid, ear, hair, jaw, skull

SHARES = {"hair": 0.3, "skull": 0.15, "jaw": 0.25, "ear": 0.2, "neck": 0.1}
"""Share of the points on each part."""
NECK_HEIGHTS = (-0.55, -0.15)


def outline(person: Heads, eye: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Return points at which rays from a camera touch the head's parts.

    Most lie on the head's outline, others where one part stands out before another, and some inside another part.

    Args:
        person: B heads.
        eye: Where the cameras are, [B, 3].
        count: Points of each head.
        rng: Of the places along the outlines.

    Returns:
        [B, count, 3] in world units.
    """
    many = {name: round(share * count) for name, share in SHARES.items()}
    many["hair"] += count - sum(many.values())
    parts = [
        tangent(solid, eye, _turns(eye, many[name], rng))
        for name, solid in (("hair", hair(person)), ("skull", skull(person)), ("jaw", jaw(person)))
    ]
    # Ears are one solid at |x|: half of the points are touched by the mirrored camera and lie on the other side.
    mirror = eye.new_tensor([-1.0, 1.0, 1.0])
    right = many["ear"] // 2
    parts.append(tangent(ear(person), eye, _turns(eye, right, rng)))
    parts.append(tangent(ear(person), eye * mirror, _turns(eye, many["ear"] - right, rng)) * mirror)
    parts.append(_neck(eye, many["neck"], rng))
    return torch.cat(parts, 1)


def tangent(solid: Solid, eye: Tensor, turn: Tensor) -> Tensor:
    """Return points of an ellipsoid at which rays from outside touch it.

    With p the eye where the ellipsoid is the unit sphere, these are the circle p / |p|^2 + sqrt(1 - 1 / |p|^2) (u cos +
    v sin), u and v being orthogonal to p and to each other.

    Args:
        solid: Of B heads.
        eye: [B, 3].
        turn: Where on the circle, [B, N] in radians.
    """
    p = (eye[:, None] - solid.centre) / solid.radii
    square = p.square().sum(-1, keepdim=True)
    up = p.new_tensor([0.0, 1.0, 0.0]).expand_as(p)
    u = normalize(torch.linalg.cross(up, p), dim=-1)
    v = normalize(torch.linalg.cross(p, u), dim=-1)
    around = u * turn.cos()[..., None] + v * turn.sin()[..., None]
    return solid.centre + solid.radii * (p / square + (1 - 1 / square).sqrt() * around)


def _neck(eye: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Return points on both edges of the neck."""
    flat = eye * eye.new_tensor([1.0, 0.0, 1.0]) - eye.new_tensor([0.0, 0.0, NECK_Z])
    aside = normalize(torch.stack([flat[:, 2], flat[:, 1], -flat[:, 0]], -1), dim=-1)[:, None]
    sides = torch.arange(count) % 2 * 2.0 - 1
    low, high = NECK_HEIGHTS
    heights = low + (high - low) * torch.rand(len(eye), count, generator=rng)
    axis = torch.stack([torch.zeros_like(heights), heights, torch.full_like(heights, NECK_Z)], -1)
    return axis + NECK * sides[:, None] * aside


def _turns(eye: Tensor, count: int, rng: torch.Generator) -> Tensor:
    return 2 * math.pi * torch.rand(len(eye), count, generator=rng)
