"""Surface appearance: colours, patterns, materials."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lrdiff.world.sdf import Vec, norm2, norm3


def linear(code: str) -> tuple[float, float, float]:
    """Linear RGB of an sRGB hex code such as ``"d02030"``."""
    r, g, b = (int(code[i : i + 2], 16) / 255.0 for i in (0, 2, 4))
    return tuple(c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (r, g, b))  # type: ignore[return-value]


@dataclass(frozen=True)
class Colour:
    """A named colour and the second colour its patterns use, both linear RGB."""

    name: str
    rgb: tuple[float, float, float]
    second: tuple[float, float, float]


_IVORY, _NIGHT = "f6efe0", "26263a"
COLOURS: tuple[Colour, ...] = tuple(
    Colour(name, linear(code), linear(second))
    for name, code, second in (
        ("red", "d5161f", _IVORY),
        ("orange", "f5770a", _IVORY),
        ("yellow", "f8d010", _NIGHT),
        ("green", "1f9a36", _IVORY),
        ("turquoise", "19bfb4", _NIGHT),
        ("blue", "1d4fd8", _IVORY),
        ("purple", "7b2cbf", _IVORY),
        ("pink", "f578b0", _NIGHT),
        ("brown", "6e3d1c", _IVORY),
        ("black", "17171b", _IVORY),
        ("white", "f4f3ef", _NIGHT),
        ("gray", "83868b", _IVORY),
    )
)
DULL = ("brown", "black", "gray")
"""Colours that cannot be told from others when they glow; glowing objects never have them."""

PATTERNS: tuple[str, ...] = ("plain", "striped", "dotted", "checkered", "zigzag", "marbled")
LAYOUTS: tuple[str, ...] = (*PATTERNS, "halves", "dipped", "belted", "blotched", "mottled", "rays")
"""Patterns plus the layouts that only subjects have."""

MATERIALS: tuple[str, ...] = ("matte", "glossy", "metallic", "glowing")


def _stripe(v: Tensor, duty: float, soft: float) -> Tensor:
    """Periodic band of period 1 that covers ``duty`` of it; edges ``soft`` wide (in periods)."""
    return (0.5 + (0.5 * duty - (v - v.round()).abs()) * (1.0 / soft)).clamp_(0.0, 1.0)


def _dots(p: Vec, n: Vec, spacing: float, phase: Tensor) -> Tensor:
    """Round dots in a hexagonal grid, projected along the dominant axis of the normal."""
    x, y, z = p
    ax, ay, az = n[0].abs(), n[1].abs() * 0.9, n[2].abs()
    top = (ay > ax) & (ay > az)
    u = torch.where((ax > az) & ~top, z, x) * (1.0 / spacing) + phase
    v = torch.where(top, z, y) * (1.0 / spacing) * 1.1547 + 0.25
    row = v.round()
    u = u + 0.5 * (row - 2.0 * (row * 0.5).floor())
    d = norm2(u - u.round(), (v - row) * 0.866)
    return (0.5 + (0.31 - d) * 12.0).clamp_(0.0, 1.0)


def pattern(layout: int, p: Vec, n: Vec, axis: Vec, scale: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the second and third colour at surface points.

    Args:
        layout: Index into :data:`LAYOUTS`.
        p: Local points, three tensors [N].
        n: Local normals.
        axis: Stripe direction per point.
        scale: Frequency factor [N].
        phase: Offset in periods [N].

    Returns:
        (second, third), each [N] in [0, 1].
    """
    name = LAYOUTS[layout]
    x, y, z = (c * scale for c in p)
    along = x * axis[0] + y * axis[1] + z * axis[2]
    none = torch.zeros_like(x)
    if name == "plain":
        return none, none
    if name == "striped":
        return _stripe(along * 2.5 + phase, 0.46, 0.06), none
    if name == "dotted":
        return _dots((x, y, z), n, 0.40, phase), none
    if name == "checkered":
        s = [torch.sin((c + o) * (math.pi / 0.36)) for c, o in ((x, 0.11), (y, 0.17), (z, 0.13))]
        return (0.5 + s[0] * s[1] * s[2] * 9.0).clamp_(0.0, 1.0), none
    if name == "zigzag":
        side = (x + 0.6 * z) * 1.9 + 0.5 * phase
        return _stripe(y * 2.0 + (side - side.round()).abs() * 1.1 + phase, 0.44, 0.07), none
    if name == "marbled":
        warp = torch.sin(3.1 * x + 1.3 * torch.sin(2.7 * y + 4.0 * phase) + 2.3 * z) + 0.5 * torch.sin(
            5.3 * z - 4.1 * x + 3.0 * y
        )
        v = 0.9 * y + 0.5 * x + 0.42 * warp + phase
        return _stripe(v * 1.25, 0.36, 0.16), none
    if name == "halves":
        return (0.5 + (along - (phase - 0.5) * 0.5) * 30.0).clamp_(0.0, 1.0), none
    if name == "dipped":
        wave = 0.07 * torch.sin(7.0 * x + 5.0 * z)
        return (0.5 - (y + 0.25 - (phase - 0.5) * 0.6 + wave) * 30.0).clamp_(0.0, 1.0), none
    if name == "belted":
        height = y - (phase - 0.5) * 0.6
        return (0.5 + (0.24 - height.abs()) * 30.0).clamp_(0.0, 1.0), (0.5 + (0.07 - height.abs()) * 30.0).clamp_(
            0.0, 1.0
        )
    if name == "blotched":
        v = (
            torch.sin(3.9 * x + 9.0 * phase)
            + torch.sin(4.3 * y + 1.7)
            + torch.sin(3.5 * z + 5.0 * phase)
            + 0.6 * torch.sin(5.0 * (x + y - z))
        )
        return (0.5 + (v - 0.55) * 5.0).clamp_(0.0, 1.0), (0.5 + (-1.5 - v) * 5.0).clamp_(0.0, 1.0)
    if name == "mottled":
        fine = (
            torch.sin(11.0 * x + 3.0 * torch.sin(5.0 * y))
            * torch.sin(10.0 * y + 2.0)
            * torch.sin(9.0 * z + 7.0 * phase)
        )
        return (0.5 + (fine - 0.28) * 8.0).clamp_(0.0, 1.0), none
    turn = torch.atan2(x, z) * (9.0 / math.tau) + phase
    return _stripe(turn, 0.45, 0.08), none


@dataclass(frozen=True)
class Surroundings:
    """What a surface sees, per point: colours [3, N] of sky, horizon and ground, and the key light's."""

    sky: Tensor
    horizon: Tensor
    ground: Tensor
    key: Tensor


def _mix(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
    return a + (b - a) * w


def environment(around: Surroundings, dy: Tensor) -> Tensor:
    """Colour [3, N] seen in directions of height ``dy``: sky above the horizon, dimmer ground below it."""
    up = dy.clamp(0.0, 1.0).sqrt()
    down = (-dy).clamp(0.0, 1.0)
    sky = _mix(around.horizon, around.sky, up)
    ground = around.ground * (0.75 - 0.45 * down)
    return _mix(ground, sky, (0.5 + dy * 7.0).clamp(0.0, 1.0))


def shade(
    material: Tensor, albedo: Tensor, n: Vec, view: Vec, light: Vec, lit: Tensor, open_: Tensor, around: Surroundings
) -> tuple[Tensor, Tensor]:
    """Light that leaves surface points towards the viewer.

    Args:
        material: [N] index into :data:`MATERIALS`.
        albedo: [3, N] linear colour.
        n: Unit normals, world.
        view: Unit directions from the camera to the points.
        light: Unit directions to the key light.
        lit: [N] share of the key light that arrives, without the cosine.
        open_: [N] ambient openness in [0, 1].
        around: The surroundings.

    Returns:
        (colour [3, N] linear, emission [3, N]): emission is the part that spreads as a halo.
    """
    cosine = (n[0] * light[0] + n[1] * light[1] + n[2] * light[2]).clamp(0.0, 1.0)
    facing = -(n[0] * view[0] + n[1] * view[1] + n[2] * view[2])
    facing = facing.clamp(0.0, 1.0)
    rx, ry, rz = (v + 2.0 * facing * c for v, c in zip(view, n, strict=True))
    towards = (rx * light[0] + ry * light[1] + rz * light[2]).clamp(-1.0, 1.0)
    direct = cosine * lit
    up = 0.5 + 0.5 * n[1]
    ambient = _mix(around.ground * 0.55, around.sky * 0.5 + around.horizon * 0.5, up) * open_
    diffuse = albedo * (around.key * direct + ambient)

    matte, glossy, metal, glowing = ((material == i).float() for i in range(4))
    seen = environment(around, ry) * (0.35 + 0.65 * open_)
    grazing = (1.0 - facing) ** 2
    fresnel = grazing * grazing * (1.0 - facing)
    disc = ((towards - 0.955) * 40.0).clamp(0.0, 1.0) * (0.25 + 0.75 * lit)
    broad = towards.clamp_min(0.0) ** 2
    broad = broad * broad
    broad = broad * broad * lit

    shine = seen * (0.06 + 0.75 * fresnel) + around.key * (0.62 * disc + 0.05 * broad)
    # Metal takes its contrast from a studio of its own (bright band above a dark one), else it would vanish outdoors.
    band = 0.22 + 1.25 * ((ry - 0.02) * 3.0).clamp(0.0, 1.0) * (1.0 - 0.55 * ((ry - 0.45) * 2.5).clamp(0.0, 1.0))
    band = band + 0.45 * ((-ry - 0.45) * 3.0).clamp(0.0, 1.0)
    tint = _mix(albedo * 0.92 + 0.015, torch.ones_like(albedo), 0.55 * fresnel)
    level = seen.mean(0, keepdim=True)
    mirror = (
        tint
        * (_mix(seen, level, torch.full_like(level, 0.6)) * 0.35 + band * (0.35 + 0.5 * level))
        * (0.45 + 0.55 * open_)
    )
    mirror = mirror + _mix(tint, torch.ones_like(tint), torch.full_like(level, 0.5)) * around.key * 0.75 * disc
    peak = albedo.amax(0, keepdim=True)
    core = _mix(albedo, albedo / peak.clamp_min(0.05), torch.full_like(peak, 0.8))
    emission = _mix(core * 0.8, core * 1.15 + 0.10, facing * facing)

    colour = diffuse * (matte + glossy * 0.95 + metal * 0.22) + shine * glossy + mirror * metal + emission * glowing
    return colour, emission * glowing


def unit(v: Vec) -> Vec:
    """Vectors of unit length."""
    inv = 1.0 / norm3(*v).clamp_min(1e-12)
    return v[0] * inv, v[1] * inv, v[2] * inv
