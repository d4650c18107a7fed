"""What a scene is: plain frozen data, the exact ground truth of an image, convertible to JSON and back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

RGB = tuple[float, float, float]
Point = tuple[float, float, float]


@dataclass(frozen=True)
class Part:
    """An accessory: an extra solid fixed to an object. Ordinary objects have none.

    Attributes:
        form: Name in :data:`lrdiff.world.accessories.FORMS`.
        at: Anchor in the object's local coordinates.
        up: Local direction that the form's y axis points to.
        size: Scale of the form relative to the object, per axis (x, y, z of the form).
        rgb: Linear colour.
    """

    form: str
    at: Point
    up: Point
    size: Point
    rgb: RGB


@dataclass(frozen=True)
class Spot:
    """A painted spot: the surface within ``radius`` of a local point gets a colour of its own."""

    at: Point
    radius: float
    rgb: RGB


@dataclass(frozen=True)
class Look:
    """Colours and marks outside the attribute tables: what makes a subject an individual.

    Attributes:
        colours: Linear colours: main, second, third.
        layout: Name of a pattern, ordinary or one of the subject layouts in :mod:`lrdiff.world.paint`.
        parts: Accessories.
        spots: Painted spots, later ones on top.
        trims: Replacement colours for the shape's own trim, by trim name.
    """

    colours: tuple[RGB, RGB, RGB]
    layout: str
    parts: tuple[Part, ...] = ()
    spots: tuple[Spot, ...] = ()
    trims: tuple[tuple[str, RGB], ...] = ()


@dataclass(frozen=True)
class ObjectSpec:
    """One object: indices into the attribute tables, its proportions and where it stands.

    Attributes:
        shape: Index into ``SHAPES``.
        colour: Index into ``COLOURS``; ignored when ``look`` is given.
        pattern: Index into ``PATTERNS``; ignored when ``look`` is given.
        material: Index into ``MATERIALS``.
        x: Ground position, world units.
        z: Ground position, world units.
        yaw: Rotation around the vertical, radians, in the world.
        size: World units per local unit.
        tall: Logarithmic stretch of the height.
        wide: Logarithmic stretch of the width.
        detail: The shape's own feature, about -1 to 1.
        pattern_scale: Factor on the pattern's frequency.
        phase: Offset of the pattern, in periods.
        look: A subject's own appearance.
    """

    shape: int
    colour: int
    pattern: int
    material: int
    x: float
    z: float
    yaw: float
    size: float
    tall: float = 0.0
    wide: float = 0.0
    detail: float = 0.0
    pattern_scale: float = 1.0
    phase: float = 0.0
    look: Look | None = None


@dataclass(frozen=True)
class Camera:
    """A pinhole camera looking at ``target``; angles in radians, ``fov`` is the full angle of the image height."""

    azimuth: float
    elevation: float
    distance: float
    fov: float
    target: Point


@dataclass(frozen=True)
class Light:
    """The key light: direction (radians, world azimuth), strength, and warmth from -1 (cool) to 1 (warm)."""

    azimuth: float
    elevation: float
    strength: float
    warmth: float


@dataclass(frozen=True)
class Scene:
    """One image before it is an image.

    Attributes:
        objects: One to three objects; the first is the main one.
        relations: For each further object, how the main object stands to it: "left of", "right of", "in front of",
            "behind" (as the viewer sees it).
        place: Index into ``PLACES``.
        camera: The camera.
        light: The key light.
    """

    objects: tuple[ObjectSpec, ...]
    relations: tuple[str, ...]
    place: int
    camera: Camera
    light: Light

    def to_dict(self) -> dict[str, Any]:
        """Return nested dicts, lists and numbers that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Scene:
        """Return the scene that :meth:`to_dict` described, also after a trip through JSON."""
        return cls(
            objects=tuple(_object(item) for item in data["objects"]),
            relations=tuple(data["relations"]),
            place=data["place"],
            camera=Camera(**{**data["camera"], "target": tuple(data["camera"]["target"])}),
            light=Light(**data["light"]),
        )


def _object(data: dict[str, Any]) -> ObjectSpec:
    look = data.get("look")
    return ObjectSpec(**{**data, "look": None if look is None else look_from_dict(look)})


def look_from_dict(data: dict[str, Any]) -> Look:
    """Return the look that ``dataclasses.asdict`` described, also after a trip through JSON."""
    first, second, third = (_triple(c) for c in data["colours"])
    return Look(
        colours=(first, second, third),
        layout=data["layout"],
        parts=tuple(
            Part(p["form"], _triple(p["at"]), _triple(p["up"]), _triple(p["size"]), _triple(p["rgb"]))
            for p in data["parts"]
        ),
        spots=tuple(Spot(_triple(s["at"]), s["radius"], _triple(s["rgb"])) for s in data["spots"]),
        trims=tuple((name, _triple(rgb)) for name, rgb in data["trims"]),
    )


def _triple(values: Any) -> tuple[float, float, float]:
    a, b, c = values
    return (float(a), float(b), float(c))
