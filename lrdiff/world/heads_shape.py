"""The surface of procedural heads as signed distances (bounds, to be followed in steps a little shorter)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lrdiff.world.heads import Heads

NECK, NECK_Z = 0.115, -0.06
"""Radius of the neck, and where its axis lies."""


class Solid(NamedTuple):
    """An ellipsoid.

    Attributes:
        centre: [B, 1, 3].
        radii: Half axes, [B, 1, 3].
    """

    centre: Tensor
    radii: Tensor


def ellipsoid(x: Tensor, centre: Tensor, radii: Tensor) -> Tensor:
    """Return |q| (|q| - 1) / |q / r| with q = (x - c) / r, a bound of the distance. [B, N, 3] -> [B, N]."""
    q = (x - centre) / radii
    near = q.norm(dim=-1)
    return near * (near - 1) / (q / radii).norm(dim=-1).clamp_min(1e-6)


def smooth_min(a: Tensor, b: Tensor, k: float) -> Tensor:
    """Return the minimum, rounded over a width of about k."""
    h = (0.5 + 0.5 * (b - a) / k).clamp(0, 1)
    return b * (1 - h) + a * h - k * h * (1 - h)


def _at(*parts: Tensor | float, like: Tensor) -> Tensor:
    """Stack numbers and [B, 1] tensors to [B, 1, 3]."""
    full = [part if isinstance(part, Tensor) else torch.full_like(like, part) for part in parts]
    return torch.stack(full, -1)


def skull(person: Heads) -> Solid:
    """Return the bare skull."""
    return Solid(_at(0.0, 0.06, 0.0, like=person.jaw_width), person.skull)


def jaw(person: Heads) -> Solid:
    """Return the jaw, which reaches up into the skull."""
    like, depth = person.jaw_width, 0.75 * person.skull[..., 2]
    radii = _at(person.jaw_width, person.jaw_length + 0.06, depth, like=like)
    return Solid(_at(0.0, -0.10 - person.jaw_length / 2, 0.06, like=like), radii)


def ear(person: Heads) -> Solid:
    """Return the ear at x > 0."""
    like = person.ear
    centre = _at(person.skull[..., 0], 0.0, -0.02, like=like)
    return Solid(centre, _at(0.5 * person.ear, person.ear, 0.6 * person.ear, like=like))


def hair(person: Heads) -> Solid:
    """Return the hair, before it is cut at its line."""
    volume = 0.035 + 0.12 * (0.28 - person.hairline)
    return Solid(_at(0.0, 0.075, -0.02, like=person.hairline), person.skull + volume[..., None])


def skin_distance(person: Heads, points: Tensor) -> Tensor:
    """Return distances to the bare head, [B, N, 3] -> [B, N]: skull, jaw, cheeks, nose, lips, sockets, ears, neck."""
    like = person.jaw_width
    w, d = person.skull[..., 0], person.skull[..., 2]
    x, y, z = points.unbind(-1)
    half = torch.stack([x.abs(), y, z], -1)
    head = smooth_min(ellipsoid(points, *skull(person)), ellipsoid(points, *jaw(person)), 0.08)
    socket = ellipsoid(half, _at(person.eye_x, 0.05, d * 1.02, like=like), _at(0.06, 0.045, 0.05, like=like))
    head = -smooth_min(-head, socket, 0.06)
    # Of the eyeballs, only a cap stands out.
    radius = 1.2 * person.eye_r
    depth = d * (1 - (person.eye_x / w) ** 2).sqrt() - 0.8 * radius
    ball = ellipsoid(half, _at(person.eye_x, 0.05, depth, like=like), radius[..., None] * head.new_ones(3))
    head = smooth_min(head, ball, 0.02)
    # The nose leans forward towards its tip, and wings widen it there.
    leaning = torch.stack([x, y, z + 0.5 * (y + 0.02)], -1)
    bridge = _at(0.75 * person.nose_width, 0.075, 0.75 * person.nose_length, like=like)
    head = smooth_min(head, ellipsoid(leaning, _at(0.0, -0.015, 0.97 * d, like=like), bridge), 0.035)
    tip = (0.55 * person.nose_width + 0.008)[..., None] * head.new_ones(3)
    wing = _at(0.65 * person.nose_width, -0.07, 0.99 * d + 0.2 * person.nose_length, like=like)
    head = smooth_min(head, ellipsoid(half, wing, tip), 0.03)
    lips = _at(0.8 * person.mouth, 0.03, 0.035, like=like)
    head = smooth_min(head, ellipsoid(points, _at(0.0, -0.17, 0.06 + 0.70 * d, like=like), lips), 0.05)
    head = torch.minimum(head, ellipsoid(half, *ear(person)))
    neck = torch.maximum(torch.hypot(x, z - NECK_Z) - NECK, y + 0.05)
    return smooth_min(head, neck, 0.05)


def hair_distance(person: Heads, points: Tensor) -> Tensor:
    """Return distances to the hair: a thicker skull, above a line that falls towards the neck. [B, N, 3] -> [B, N]."""
    x, y, z = points.unbind(-1)
    whole = ellipsoid(points, *hair(person))
    line = person.hairline + 0.03 - 0.95 * (0.14 - z).clamp(0, 0.38) - 0.012 * torch.cos(28 * x)
    return -smooth_min(-whole, y - line, 0.06)


def distance(person: Heads, points: Tensor) -> Tensor:
    """Return distances to the whole head, hair included. [B, N, 3] -> [B, N]."""
    return torch.minimum(skin_distance(person, points), hair_distance(person, points))


def normals(person: Heads, points: Tensor, step: float = 1e-3) -> Tensor:
    """Return unit normals by central differences, which treat both sides alike. [B, N, 3] -> [B, N, 3]."""
    axes = step * torch.eye(3).to(points)
    slopes = [distance(person, points + axis) - distance(person, points - axis) for axis in axes]
    return torch.nn.functional.normalize(torch.stack(slopes, -1), dim=-1)
