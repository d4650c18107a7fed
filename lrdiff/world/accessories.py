"""Forms of the accessories that subjects wear: horns, ears, hats and the like.

A form stands on the origin of its own coordinates and grows along +y.
"""

from __future__ import annotations

from torch import Tensor

from lrdiff.world import sdf
from lrdiff.world.sdf import blend, cone, cut, cylinder, ellipsoid, extrude, horn, sphere, torus, union
from lrdiff.world.shapes import Shape


def _horn(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    low = horn(x, y, z, (0.0, 0.0, 0.0), (0.16, 0.48, 0.0), 0.26, 0.18)
    return blend(low, horn(x, y, z, (0.16, 0.48, 0.0), (0.02, 0.98, 0.0), 0.18, 0.04), 0.05)


def _spike(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    return cone(x, y - 0.42, z, 0.30, 0.03, 0.52, 0.02)


def _ear(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    return cut(ellipsoid(x, y - 0.38, z, 0.42, 0.50, 0.20), ellipsoid(x, y - 0.40, z - 0.22, 0.26, 0.34, 0.16))


def _long_ear(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    return ellipsoid(x - 0.15 * y * y, y - 0.60, z, 0.20, 0.68, 0.13) * 0.85


def _fin(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    return extrude(
        sdf.polygon(x, y, [(0.55, -0.10), (0.15, 0.55), (-0.55, 0.85), (-0.40, 0.40), (-0.60, -0.10)]), z, 0.11, 0.05
    )


def _ring(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    return torus(x, z, y, 1.0, 0.13)


def _cap(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    dome = ellipsoid(x, y, z, 0.70, 0.62, 0.70)
    peak = ellipsoid(x, y - 0.05, z - 0.62, 0.50, 0.08, 0.50)
    return union(torch_max(union(dome, peak), -0.10 - y), sphere(x, y - 0.64, z, 0.10))


def _top_hat(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    return union(cylinder(x, y - 0.02, z, 0.80, 0.06, 0.04), cylinder(x, y - 0.50, z, 0.50, 0.50, 0.06))


def _party_hat(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    return union(cone(x, y - 0.60, z, 0.48, 0.04, 0.64, 0.02), sphere(x, y - 1.26, z, 0.17))


def _antenna(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    return union(cylinder(x, y - 0.42, z, 0.06, 0.52), sphere(x, y - 1.02, z, 0.22))


def _wheel(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    return cut(cylinder(x, y - 0.05, z, 0.62, 0.24, 0.08), cylinder(x, y - 0.30, z, 0.26, 0.16))


def _ball(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    return sphere(x, y - 0.12, z, 0.50)


def _bow(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    ax = x.abs()
    return union(horn(ax, y, z, (0.08, 0.12, 0.0), (0.60, 0.12, 0.0), 0.07, 0.30), sphere(x, y - 0.12, z, 0.20))


def _leaf(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    return union(ellipsoid(x - 0.34, y - 0.62, z, 0.44, 0.20, 0.09), cylinder(x, y - 0.30, z, 0.05, 0.36))


def _star(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    from_centre = [(0.50, 0.16), (0.0, 0.50), (-0.50, 0.16), (-0.31, -0.42), (0.31, -0.42)]
    between = [(0.14, 0.20), (-0.14, 0.20), (-0.23, -0.08), (0.0, -0.25), (0.23, -0.08)]
    outline = [p for pair in zip(from_centre, between, strict=True) for p in pair]
    return extrude(sdf.polygon(x, y - 0.45, outline), z, 0.12, 0.05)


def _key(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    stem = cylinder(x, y - 0.26, z, 0.08, 0.36)
    return union(stem, torus(x.abs() - 0.26, y - 0.74, z, 0.19, 0.075))


def _patch(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    return ellipsoid(x, y, z, 0.50, 0.12, 0.50)


def torch_max(a: Tensor, b: Tensor) -> Tensor:
    """Intersection of two solids."""
    return -sdf.union(-a, -b)


FORMS: tuple[Shape, ...] = (
    Shape("horn", _horn, 1.12, 0.0),
    Shape("spike", _spike, 1.05, 0.0),
    Shape("ear", _ear, 1.02, 0.0),
    Shape("long ear", _long_ear, 1.45, 0.0),
    Shape("fin", _fin, 1.15, 0.0),
    Shape("ring", _ring, 1.16, 0.0),
    Shape("cap", _cap, 1.20, 0.0),
    Shape("top hat", _top_hat, 1.20, 0.0),
    Shape("party hat", _party_hat, 1.46, 0.0),
    Shape("antenna", _antenna, 1.28, 0.0),
    Shape("wheel", _wheel, 0.75, 0.0),
    Shape("ball", _ball, 0.70, 0.0),
    Shape("bow", _bow, 1.0, 0.0),
    Shape("leaf", _leaf, 1.06, 0.0),
    Shape("star", _star, 1.10, 0.0),
    Shape("key", _key, 1.10, 0.0),
    Shape("patch", _patch, 0.55, 0.0),
)
FORM_NAMES: tuple[str, ...] = tuple(form.name for form in FORMS)
