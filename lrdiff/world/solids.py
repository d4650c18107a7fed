"""Solids: what the tracer sees of a scene. An object is one solid and each of its accessories another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lrdiff.world.accessories import FORM_NAMES, FORMS
from lrdiff.world.scene import ObjectSpec, Part, Scene
from lrdiff.world.sdf import Vec
from lrdiff.world.shapes import SHAPES, Shape

SOLID_SHAPES: tuple[Shape, ...] = (*SHAPES, *FORMS)


@dataclass(frozen=True)
class Solid:
    """One traceable body: an object or an accessory of one, with its world-to-local map.

    Attributes:
        image: Number of its image in the batch.
        slot: Number of its object in the scene.
        shape: Index into :data:`SOLID_SHAPES`.
        inverse: Rows of the linear map from world to local coordinates.
        centre: World position of the local origin.
        reach: Radius of a sphere around the centre that holds the solid, in world units.
        spec: The object it belongs to.
        part: The accessory it is, or None for the object itself.
    """

    image: int
    slot: int
    shape: int
    inverse: tuple[tuple[float, float, float], ...]
    centre: tuple[float, float, float]
    reach: float
    spec: ObjectSpec
    part: Part | None


def _matmul(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> tuple[tuple[float, float, float], ...]:
    return tuple(tuple(sum(a[i][k] * b[k][j] for k in range(3)) for j in range(3)) for i in range(3))  # type: ignore[return-value]


def _object_solid(image: int, slot: int, spec: ObjectSpec) -> tuple[Solid, tuple[tuple[float, float, float], ...]]:
    shape = SHAPES[spec.shape]
    sx, sy = spec.size * math.exp(spec.wide), spec.size * math.exp(spec.tall)
    c, s = math.cos(spec.yaw), math.sin(spec.yaw)
    inverse = ((c / sx, 0.0, -s / sx), (0.0, 1.0 / sy, 0.0), (s / sx, 0.0, c / sx))
    forward = ((c * sx, 0.0, s * sx), (0.0, sy, 0.0), (-s * sx, 0.0, c * sx))
    centre = (spec.x, shape.rest * sy, spec.z)
    return Solid(image, slot, spec.shape, inverse, centre, shape.radius * max(sx, sy), spec, None), forward


def _part_solid(parent: Solid, forward: Sequence[Sequence[float]], part: Part) -> Solid:
    index = FORM_NAMES.index(part.form)
    length = math.sqrt(sum(v * v for v in part.up))
    up = [v / length for v in part.up]
    # The form's z axis stays as close to the object's front as its y axis allows.
    front = (0.0, 0.0, 1.0) if abs(up[2]) < 0.9 else (0.0, 1.0, 0.0)
    side = [
        up[1] * front[2] - up[2] * front[1],
        up[2] * front[0] - up[0] * front[2],
        up[0] * front[1] - up[1] * front[0],
    ]
    length = math.sqrt(sum(v * v for v in side))
    side = [v / length for v in side]
    ahead = [side[1] * up[2] - side[2] * up[1], side[2] * up[0] - side[0] * up[2], side[0] * up[1] - side[1] * up[0]]
    rows = [[v / size for v in axis] for axis, size in zip((side, up, ahead), part.size, strict=True)]
    offset = [sum(forward[i][k] * part.at[k] for k in range(3)) for i in range(3)]
    centre = tuple(parent.centre[i] + offset[i] for i in range(3))
    scale = parent.reach / SHAPES[parent.shape].radius
    return Solid(
        parent.image, parent.slot, len(SHAPES) + index, _matmul(rows, parent.inverse), centre,  # type: ignore[arg-type]
        FORMS[index].radius * max(part.size) * scale, parent.spec, part,
    )  # fmt: skip


def solids_of(scenes: Sequence[Scene]) -> list[Solid]:
    """Return the solids of a batch of scenes, image by image, each object before its accessories."""
    found: list[Solid] = []
    for image, scene in enumerate(scenes):
        for slot, spec in enumerate(scene.objects):
            solid, forward = _object_solid(image, slot, spec)
            found.append(solid)
            if spec.look is not None:
                found.extend(_part_solid(solid, forward, part) for part in spec.look.parts)
    return found


def apply(m: Sequence[Sequence[float]], v: Vec) -> Vec:
    """Return the 3 x 3 matrix ``m`` applied to vectors, element by element, so that no batch changes the rounding."""
    x, y, z = v
    return tuple(x * r[0] + y * r[1] + z * r[2] for r in m)  # type: ignore[return-value]
