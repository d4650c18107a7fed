"""The named shapes of the toy world.

A shape lives in local coordinates: y up, front towards +z, largest extent about 2. ``detail`` in [-1, 1] (ordinary
objects) or [-2, 2] (subjects) varies one feature that is particular to the shape; height and width are varied for all
shapes alike, outside, by an anisotropic scale.

Trim is the part of a shape whose colour belongs to the shape and not to the object: tyres, eyes, a trunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lrdiff.world import sdf
from lrdiff.world.sdf import (
    Distance,
    blend,
    box,
    capsule,
    cone,
    cut,
    cylinder,
    ellipsoid,
    extrude,
    horn,
    sphere,
    torus,
    union,
)

TRIMS = {
    "ink": (0.012, 0.012, 0.016), "tyre": (0.03, 0.03, 0.035), "wood": (0.20, 0.095, 0.04), "cream": (0.80, 0.70, 0.52),
    "beak": (0.90, 0.33, 0.02), "window": (0.45, 0.68, 0.85), "snout": (0.72, 0.55, 0.38), "steel": (0.30, 0.31, 0.34),
    "lamp": (1.0, 0.86, 0.55),
}  # fmt: skip

Trim = Callable[[Tensor, Tensor, Tensor, Tensor], list[tuple[str, Tensor]]]


@dataclass(frozen=True)
class Shape:
    """One named shape.

    Attributes:
        name: The noun used in captions.
        distance: Signed distance of local points.
        radius: Radius of a sphere around the origin that holds the shape for every |detail| <= 2.
        rest: Distance from the origin down to the ground the shape stands on.
        trim: Regions with colours of their own, as (colour name, signed distance), later ones on top.
        turn: Range of the yaw relative to the viewer, in degrees, within which the shape is easy to name.
        stripes: Direction across which stripes alternate.
    """

    name: str
    distance: Distance
    radius: float
    rest: float
    trim: Trim | None = None
    turn: tuple[float, float] = (-40.0, 40.0)
    stripes: tuple[float, float, float] = (0.28, 0.96, 0.0)


def _ball(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    return sphere(x, y, z, 0.95)


def _cube(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    return box(x, y, z, 0.75, 0.75, 0.75, 0.10 + 0.04 * k)


def _cylinder(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    return cylinder(x, y, z, 0.62, 0.92, 0.07 + 0.025 * k)


def _cone(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    return cone(x, y, z, 0.85, 0.06, 0.98, 0.06)


def _ring(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    return torus(x, y, z, 0.68, 0.26 + 0.04 * k)


def _pyramid(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    side = torch.maximum(x.abs(), z.abs()) * 0.848 + (y - 0.87) * 0.53
    return torch.maximum(side, -0.75 - y) - 0.06


def _star(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    ax = x.abs()
    y0 = y + 0.05
    for nx, ny in ((0.809017, -0.587785), (-0.809017, -0.587785)):
        m = 2.0 * (nx * ax + ny * y0).clamp_min(0.0)
        ax, y0 = ax - m * nx, y0 - m * ny
    ax, y0 = ax.abs(), y0 - 0.95
    inner = 0.47 + 0.03 * k
    bax, bay = -inner * 0.587785, inner * 0.809017 - 1.0
    length_sq = bax * bax + bay * bay
    h = ((ax * -bax + y0 * bay) / length_sq).clamp(0.0, 0.95)
    flat = sdf.norm2(ax + h * bax, y0 - h * bay) * torch.sign(-y0 * bax - ax * bay)
    return extrude(flat, z, 0.26, 0.09)


def _heart(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    ax = x.abs()
    return blend(
        horn(ax, y, z * 1.0, (0.42, 0.38, 0.0), (0.0, -0.80, 0.0), 0.50, 0.10),
        sphere(ax - 0.40, y - 0.36, z, 0.50),
        0.1,
    )


def _mushroom(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    stem = cone(x, y + 0.40, z, 0.36, 0.24, 0.56, 0.08)
    cap = torch.maximum(ellipsoid(x, y - 0.02, z, 0.95, 0.85, 0.95), 0.08 - y)
    return union(stem, cap - 0.03)


def _mushroom_trim(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> list[tuple[str, Tensor]]:
    return [("cream", torch.maximum(y - 0.06, sdf.norm2(x, z) - 0.6))]


def _mug(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    q = sdf.norm2(x, z)
    body = cut(sdf.box2(q, y, 0.66, 0.80, 0.06), sdf.box2(q, y - 0.35, 0.56, 1.0, 0.05))
    handle = torch.maximum(torus(x - 0.66, y * 0.88, z, 0.36 + 0.04 * k, 0.10), 0.60 - q)
    return torch.minimum(body, handle)


def _bottle(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    q = sdf.norm2(x, z)
    body = sdf.box2(q, y + 0.36, 0.44, 0.66, 0.10)
    shoulder = sdf.cone2(q, y - 0.40, 0.36, 0.09, 0.20) - 0.06
    neck = sdf.box2(q, y - 0.66, 0.15, 0.34, 0.02)
    lip = sdf.box2(q, y - 0.94, 0.20, 0.07, 0.03)
    return union(blend(body, shoulder, 0.15), neck, lip)


def _vase(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    q = sdf.norm2(x, z)
    profile = 0.42 + 0.24 * torch.sin(2.9 * y + 1.75 + 0.25 * k) + 0.05 * y
    wall = torch.maximum((q - profile) * 0.80, y.abs() - 0.95)
    return cut(wall, torch.maximum((q - profile + 0.09) * 0.80, 0.1 - y))


def _teapot(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    body = ellipsoid(x, y + 0.10, z, 0.66, 0.58, 0.66)
    lid = union(ellipsoid(x, y - 0.40, z, 0.36, 0.13, 0.36), sphere(x, y - 0.60, z, 0.11))
    spout = horn(x, y, z, (-0.50, -0.22, 0.0), (-1.02, 0.34, 0.0), 0.20, 0.09)
    handle = torch.maximum(torus(x - 0.66, y + 0.06, z, 0.34 + 0.03 * k, 0.085), 0.45 - x)
    return union(blend(body, spout, 0.12), lid, handle)


def _house(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    walls = box(x, y + 0.42, z, 0.66, 0.50, 0.56, 0.02)
    slope = 0.62 * x.abs() + (y - 0.88) * 0.785
    roof = torch.maximum(torch.maximum(slope, -slope - 0.16), torch.maximum(z.abs() - 0.70, 0.0 - y))
    gable = torch.maximum(torch.maximum(slope, -0.05 - y), z.abs() - 0.56)
    chimney = box(x - 0.38, y - 0.60, z, 0.11, 0.30, 0.11, 0.02)
    return union(walls, roof, gable, chimney)


def _house_trim(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> list[tuple[str, Tensor]]:
    front = 0.5 - z
    door = torch.maximum(sdf.box2(x, y + 0.62, 0.15, 0.30), front)
    panes = torch.maximum(sdf.box2(x.abs() - 0.40, y + 0.42, 0.14, 0.15), front)
    side = torch.maximum(sdf.box2(z, y + 0.40, 0.20, 0.16), 0.6 - x.abs())
    return [("wood", door), ("window", torch.minimum(panes, side))]


def _tree(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    q = sdf.norm2(x, z)
    trunk = sdf.box2(q, y + 0.80, 0.15, 0.24, 0.02)
    low = sdf.cone2(q, y + 0.32, 0.72, 0.22, 0.26) - 0.03
    mid = sdf.cone2(q, y - 0.14, 0.56, 0.14, 0.25) - 0.03
    top = sdf.cone2(q, y - 0.60, 0.40, 0.01, 0.34) - 0.03
    return union(trunk, low, mid, top)


def _tree_trim(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> list[tuple[str, Tensor]]:
    return [("wood", torch.maximum(y + 0.60, sdf.norm2(x, z) - 0.25))]


def _wheels(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return cylinder(x.abs() - 0.55, z.abs() - 0.42, y + 0.34, 0.24, 0.11, 0.03)


def _car(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    body = box(x, y + 0.14, z, 0.98, 0.24, 0.46, 0.12)
    roof = torch.maximum(box(x + 0.05, y - 0.22, z, 0.60, 0.30, 0.40, 0.10), (x + 0.05).abs() * 0.83 + y * 0.55 - 0.62)
    return union(blend(body, roof, 0.06), _wheels(x, y, z))


def _car_trim(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> list[tuple[str, Tensor]]:
    post = 0.045 - (x + 0.05).abs()
    side = torch.maximum(torch.maximum(sdf.box2(x + 0.05, y - 0.25, 0.46, 0.135), post), 0.34 - z.abs())
    screen = torch.maximum(sdf.box2(z, y - 0.25, 0.30, 0.135), 0.36 - (x + 0.05).abs())
    hub = torch.maximum(sdf.norm2(x.abs() - 0.55, y + 0.34) - 0.11, 0.40 - z.abs())
    light = sphere(x - 0.97, y + 0.10, z.abs() - 0.28, 0.12)
    return [("window", torch.minimum(side, screen)), ("lamp", light), ("tyre", _wheels(x, y, z) - 0.01), ("cream", hub)]


def _boat(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    hull = torch.maximum(ellipsoid(x, y + 0.30, z, 1.05, 0.68, 0.50), y + 0.38)
    hull = cut(hull, ellipsoid(x, y + 0.22, z, 0.88, 0.42, 0.36))
    hull = torch.maximum(hull, -0.90 - y)
    mast = capsule(x, y, z, (0.0, -0.7, 0.0), (0.0, 0.98, 0.0), 0.045)
    main = torch.maximum(torch.maximum(0.07 - x, -0.22 - y), 0.80 * x + 0.60 * y - 0.62)
    jib = torch.maximum(torch.maximum(x + 0.09, -0.22 - y), -0.86 * x + 0.50 * y - 0.40)
    sails = extrude(torch.minimum(main, jib), z, 0.035)
    return union(hull, mast, sails)


def _boat_trim(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> list[tuple[str, Tensor]]:
    return [("wood", torch.maximum(sdf.norm2(x, z) - 0.06, -0.36 - y))]


def _rocket(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    q = sdf.norm2(x, z)
    body = (q - (0.40 - 0.42 * (y + 0.12).clamp_min(0.0) ** 1.5 * 0.72 - 0.10 * (-0.3 - y).clamp_min(0.0))) * 0.80
    body = torch.maximum(body, torch.maximum(-0.72 - y, y - 1.2))
    nozzle = sdf.cone2(q, y + 0.80, 0.27, 0.17, 0.10)
    fin_profile = sdf.polygon(q, y, [(0.2, -0.20), (0.78, -0.72), (0.78, -1.02), (0.62, -0.98), (0.2, -0.66)])
    angle_fold = torch.minimum((z.abs()), (x.abs()))
    fins = extrude(fin_profile, angle_fold, 0.055, 0.02)
    return union(body, nozzle, fins)


def _rocket_trim(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> list[tuple[str, Tensor]]:
    port = sphere(x, y - 0.22, z - 0.36, 0.19)
    return [("steel", torch.maximum(y + 0.71, sdf.norm2(x, z) - 0.3)), ("steel", port), ("window", port + 0.06)]


def _duck(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    body = ellipsoid(x + 0.12, y + 0.34, z, 0.78, 0.50, 0.54)
    tail = horn(x, y, z, (-0.62, -0.25, 0.0), (-0.98, 0.10, 0.0), 0.26, 0.07)
    head = sphere(x - 0.38, y - 0.40, z, 0.40)
    wing = ellipsoid(x + 0.22, y + 0.28, z.abs() - 0.50, 0.40, 0.24, 0.10)
    bill = ellipsoid(x - 0.80, y - 0.34, z, 0.26, 0.08, 0.18)
    body = blend(blend(body, tail, 0.2), head, 0.16)
    return union(blend(body, wing, 0.03), bill)


def _duck_trim(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> list[tuple[str, Tensor]]:
    bill = ellipsoid(x - 0.80, y - 0.34, z, 0.26, 0.08, 0.18) - 0.015
    return [("beak", bill), ("ink", sphere(x - 0.60, y - 0.52, z.abs() - 0.28, 0.10))]


def _bear(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    ax = x.abs()
    body = ellipsoid(x, y + 0.42, z, 0.48, 0.52, 0.42)
    head = ellipsoid(x, y - 0.40, z - 0.05, 0.46, 0.42, 0.42)
    ear = torch.maximum(sphere(ax - 0.38, y - 0.76, z, 0.20), -sphere(ax - 0.39, y - 0.77, z - 0.18, 0.13))
    snout = ellipsoid(x, y - 0.27, z - 0.44, 0.20, 0.16, 0.15)
    arm = capsule(ax, y, z, (0.40, -0.12, 0.08), (0.68, -0.42, 0.28), 0.155)
    leg = capsule(ax, y, z, (0.28, -0.76, 0.20), (0.46, -0.76, 0.58), 0.20)
    return union(blend(body, head, 0.08), blend(ear, head, 0.06), snout, blend(arm, body, 0.08), leg)


def _bear_trim(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> list[tuple[str, Tensor]]:
    ax = x.abs()
    snout = ellipsoid(x, y - 0.27, z - 0.44, 0.20, 0.16, 0.15) - 0.012
    sole = sphere(ax - 0.48, y + 0.76, z - 0.78, 0.16)
    nose = ellipsoid(x, y - 0.34, z - 0.58, 0.085, 0.06, 0.08)
    return [("snout", snout), ("snout", sole), ("ink", nose), ("ink", sphere(ax - 0.17, y - 0.50, z - 0.44, 0.075))]


def _rabbit(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    ax = x.abs()
    body = ellipsoid(x, y + 0.52, z, 0.42, 0.46, 0.40)
    head = ellipsoid(x, y - 0.08, z - 0.06, 0.36, 0.33, 0.34)
    ear = ellipsoid(ax - 0.20 - 0.12 * (y - 0.6), y - 0.62, z, 0.13, 0.44, 0.085) * 0.95
    foot = ellipsoid(ax - 0.26, y + 0.88, z - 0.34, 0.16, 0.11, 0.28)
    paw = capsule(ax, y, z, (0.30, -0.32, 0.22), (0.20, -0.46, 0.42), 0.11)
    tail = sphere(x, y + 0.62, z + 0.46, 0.17)
    return union(blend(body, head, 0.08), blend(ear, head, 0.05), foot, paw, tail)


def _rabbit_trim(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> list[tuple[str, Tensor]]:
    ax = x.abs()
    nose = ellipsoid(x, y - 0.03, z - 0.40, 0.06, 0.045, 0.06)
    inner = ellipsoid(ax - 0.20 - 0.12 * (y - 0.6), y - 0.62, z - 0.09, 0.075, 0.34, 0.06)
    return [("snout", inner), ("beak", nose), ("ink", sphere(ax - 0.16, y - 0.17, z - 0.35, 0.075))]


def _fish(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    body = ellipsoid(x - 0.14, y, z, 0.74, 0.50, 0.30)
    tail = sdf.polygon(x, y, [(-0.48, 0.0), (-1.0, 0.48), (-0.86, 0.0), (-1.0, -0.48)])
    dorsal = sdf.polygon(x, y, [(0.40, 0.38), (-0.10, 0.74), (-0.34, 0.66), (-0.30, 0.30)])
    belly = sdf.polygon(x, y, [(0.25, -0.40), (-0.05, -0.66), (-0.15, -0.36)])
    fins = extrude(union(tail, dorsal, belly), z, 0.06, 0.03)
    side = ellipsoid(x - 0.05, y + 0.10, z.abs() - 0.30, 0.20, 0.09, 0.08)
    return union(blend(body, fins, 0.10), side)


def _fish_trim(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> list[tuple[str, Tensor]]:
    eye = sphere(x - 0.55, y - 0.13, z.abs() - 0.22, 0.13)
    return [("cream", eye), ("ink", sphere(x - 0.57, y - 0.13, z.abs() - 0.27, 0.085))]


def _hat(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    q = sdf.norm2(x, z)
    brim = sdf.box2(q, y + 0.58 - 0.12 * q * q, 0.98, 0.05, 0.045) * 0.95
    crown = sdf.cone2(q, y - 0.02, 0.50, 0.58, 0.58) - 0.04
    return blend(brim, crown, 0.08)


def _hat_trim(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> list[tuple[str, Tensor]]:
    return [("ink", torch.maximum(sdf.norm2(x, z) - 0.62, (y + 0.36).abs() - 0.10))]


def _lamp(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    q = sdf.norm2(x, z)
    foot = sdf.cone2(q, y + 0.90, 0.44, 0.34, 0.06) - 0.03
    stem = sdf.box2(q, y + 0.3, 0.06, 0.6)
    shade = sdf.cone2(q, y - 0.46, 0.76, 0.40, 0.48) - 0.02
    hollow = sdf.cone2(q, y - 0.40, 0.74, 0.36, 0.48)
    return union(foot, stem, cut(shade, hollow))


def _lamp_trim(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> list[tuple[str, Tensor]]:
    return [("wood", y + 0.10)]


def _table(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    top = box(x, y - 0.42, z, 1.0, 0.10, 0.70, 0.04)
    apron = cut(box(x, y - 0.26, z, 0.84, 0.12, 0.56), box(x, y - 0.2, z, 0.78, 0.4, 0.50))
    legs = box(x.abs() - 0.82, y + 0.20, z.abs() - 0.54, 0.09, 0.56, 0.09, 0.03)
    return union(top, apron, legs)


def _chair(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    seat = box(x, y + 0.14, z, 0.56, 0.10, 0.54, 0.05)
    back = box(x, y - 0.62, z + 0.47, 0.54, 0.36, 0.08, 0.07)
    posts = box(x.abs() - 0.47, y - 0.20, z + 0.47, 0.075, 0.60, 0.075, 0.03)
    legs = box(x.abs() - 0.46, y + 0.60, z.abs() - 0.44, 0.085, 0.40, 0.085, 0.03)
    return union(seat, back, posts, legs)


def _snowman(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    low = sphere(x, y + 0.50, z, 0.52)
    mid = sphere(x, y - 0.12, z, 0.39)
    head = sphere(x, y - 0.62, z, 0.29)
    arms = capsule(x.abs(), y, z, (0.30, 0.18, 0.0), (0.86, 0.50, 0.0), 0.04)
    nose = horn(x, y, z, (0.0, 0.60, 0.25), (0.0, 0.56, 0.62), 0.08, 0.02)
    hat = union(cylinder(x, y - 0.84, z, 0.30, 0.035, 0.02), cylinder(x, y - 0.98, z, 0.20, 0.16, 0.03))
    return union(blend(blend(low, mid, 0.05), head, 0.04), arms, nose, hat)


def _snowman_trim(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> list[tuple[str, Tensor]]:
    arms = capsule(x.abs(), y, z, (0.40, 0.24, 0.0), (0.86, 0.50, 0.0), 0.05)
    nose = horn(x, y, z, (0.0, 0.60, 0.28), (0.0, 0.56, 0.62), 0.09, 0.03)
    buttons = union(sphere(x, y - 0.24, z - 0.37, 0.07), sphere(x, y - 0.05, z - 0.36, 0.07))
    eyes = sphere(x.abs() - 0.11, y - 0.71, z - 0.26, 0.055)
    return [("wood", arms), ("ink", union(buttons, eyes)), ("beak", nose), ("ink", 0.80 - y)]


def _crown(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    q = sdf.norm2(x, z)
    turn = torch.atan2(x, z) * (7.0 / math.tau)
    saw = (turn - turn.round()).abs() * 2.0
    wall = (q - 0.80 - 0.10 * y).abs() - 0.06
    band = torch.maximum(wall, torch.maximum(-0.62 - y, (y - 0.70 + 0.80 * saw) * 0.52))
    a = turn.round() * (math.tau / 7.0)
    balls = sphere(x - 0.87 * torch.sin(a), y - 0.66, z - 0.87 * torch.cos(a), 0.12)
    base = torus(x, z, y + 0.56, 0.76, 0.10)
    return union(band * 0.95, balls, base)


def _bell(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    q = sdf.norm2(x, z)
    u = ((0.62 - y) * (1.0 / 1.3)).clamp(0.0, 1.0)
    profile = 0.28 + 0.28 * u.sqrt() + 0.36 * u**4
    body = torch.maximum((q - profile) * 0.62, torch.maximum(-0.68 - y, y - 0.60))
    dome = ellipsoid(x, y - 0.56, z, 0.30, 0.16, 0.30)
    loop = torus(x, y - 0.80, z, 0.15, 0.055)
    clapper = sphere(x, y + 0.74, z, 0.20)
    return union(body, dome, loop, clapper)


def _key(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    bow = torus(x, y - 0.58, z, 0.34, 0.12)
    shaft = cylinder(x, y + 0.36, z, 0.11, 0.62, 0.03)
    teeth = union(
        box(x - 0.24, y + 0.84, z, 0.22, 0.11, 0.08, 0.02), box(x - 0.20, y + 0.50, z, 0.18, 0.10, 0.08, 0.02)
    )
    collar = cylinder(x, y - 0.16, z, 0.18, 0.06, 0.03)
    return union(bow, shaft, teeth, collar)


def _cactus(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    trunk = capsule(x, y, z, (0.0, -0.62, 0.0), (0.0, 0.74, 0.0), 0.25)
    right = union(
        capsule(x, y, z, (0.1, -0.12, 0.0), (0.60, -0.12, 0.0), 0.15),
        capsule(x, y, z, (0.60, -0.12, 0.0), (0.60, 0.42, 0.0), 0.16),
    )
    left = union(
        capsule(x, y, z, (-0.1, 0.12, 0.0), (-0.56, 0.12, 0.0), 0.14),
        capsule(x, y, z, (-0.56, 0.12, 0.0), (-0.56, 0.56, 0.0), 0.15),
    )
    pot = cone(x, y + 0.76, z, 0.40, 0.52, 0.24, 0.03)
    return union(blend(blend(trunk, right, 0.08), left, 0.08), pot)


def _cactus_trim(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> list[tuple[str, Tensor]]:
    return [("pot", y + 0.515)]


TRIMS["pot"] = (0.42, 0.15, 0.075)
_SIDE = (0.96, 0.28, 0.0)

SHAPES: tuple[Shape, ...] = (
    Shape("ball", _ball, 1.0, 0.95, turn=(-180.0, 180.0)),
    Shape("cube", _cube, 1.24, 0.75, turn=(15.0, 75.0)),
    Shape("cylinder", _cylinder, 1.14, 0.92, turn=(-180.0, 180.0)),
    Shape("cone", _cone, 1.36, 0.98, turn=(-180.0, 180.0)),
    Shape("ring", _ring, 1.06, 1.0, turn=(-35.0, 35.0)),
    Shape("pyramid", _pyramid, 1.70, 0.81, turn=(15.0, 75.0)),
    Shape("star", _star, 1.12, 0.90, turn=(-35.0, 35.0)),
    Shape("heart", _heart, 1.10, 0.90, turn=(-35.0, 35.0)),
    Shape("mushroom", _mushroom, 1.20, 0.96, _mushroom_trim, turn=(-180.0, 180.0)),
    Shape("mug", _mug, 1.24, 0.80, turn=(-50.0, 50.0)),
    Shape("bottle", _bottle, 1.16, 1.02, turn=(-180.0, 180.0)),
    Shape("vase", _vase, 1.20, 0.95, turn=(-180.0, 180.0)),
    Shape("teapot", _teapot, 1.20, 0.68),
    Shape("house", _house, 1.30, 0.92, _house_trim, turn=(-50.0, 50.0)),
    Shape("tree", _tree, 1.12, 1.04, _tree_trim, turn=(-180.0, 180.0)),
    Shape("car", _car, 1.22, 0.58, _car_trim, stripes=_SIDE),
    Shape("boat", _boat, 1.24, 0.90, _boat_trim, stripes=_SIDE),
    Shape("rocket", _rocket, 1.32, 1.02, _rocket_trim),
    Shape("duck", _duck, 1.20, 0.84, _duck_trim, turn=(-55.0, 25.0), stripes=_SIDE),
    Shape("bear", _bear, 1.20, 0.96, _bear_trim),
    Shape("rabbit", _rabbit, 1.16, 0.98, _rabbit_trim),
    Shape("fish", _fish, 1.14, 0.66, _fish_trim, stripes=_SIDE),
    Shape("hat", _hat, 1.16, 0.63, _hat_trim, turn=(-180.0, 180.0)),
    Shape("lamp", _lamp, 1.18, 0.99, _lamp_trim, turn=(-180.0, 180.0)),
    Shape("table", _table, 1.40, 0.76, stripes=_SIDE),
    Shape("chair", _chair, 1.32, 1.0, turn=(-55.0, 55.0)),
    Shape("snowman", _snowman, 1.20, 1.02, _snowman_trim),
    Shape("crown", _crown, 1.22, 0.66, turn=(-180.0, 180.0)),
    Shape("bell", _bell, 1.24, 0.94, turn=(-40.0, 40.0)),
    Shape("key", _key, 1.12, 0.98),
    Shape("cactus", _cactus, 1.16, 1.03, _cactus_trim, turn=(-35.0, 35.0)),
)  # fmt: skip

NAMES: tuple[str, ...] = tuple(shape.name for shape in SHAPES)
