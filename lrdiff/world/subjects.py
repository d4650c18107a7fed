"""Individuals: things with features that captions have no words for.

A subject is an ordinary shape with a look of its own: colours between the named ones, layouts that ordinary objects
never have, proportions outside the usual range, accessories and painted spots. A base model that knows only captions
cannot draw it; an adapter has to learn it.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

import torch

from lrdiff.world import shapes
from lrdiff.world.paint import LAYOUTS, MATERIALS, linear
from lrdiff.world.scene import RGB, Look, ObjectSpec, Part, Point, Scene, Spot
from lrdiff.world.toys import PLACES, SHAPES, Draw, sample_camera, sample_light

CROWNS = (
    "horn",
    "ear",
    "long ear",
    "cap",
    "top hat",
    "party hat",
    "antenna",
    "bow",
    "leaf",
    "star",
    "key",
    "spike",
    "fin",
)
"""Accessories that stand on top of a subject."""
PAIRED = frozenset({"horn", "ear", "long ear", "antenna", "spike"})
"""Those that come in pairs."""
BADGES = ("ball", "wheel", "patch", "star")
"""Accessories that sit on a subject's front or sides."""


@dataclass(frozen=True)
class Subject:
    """What stays the same in every picture of one individual.

    Attributes:
        shape: Name of its shape, also the class noun in prompts.
        material: Name of its material.
        look: Colours, layout, accessories, spots.
        tall: Logarithmic stretch of the height.
        wide: Logarithmic stretch of the width.
        detail: The shape's own feature, -2 to 2.
        pattern_scale: Factor on the pattern's frequency.
        phase: Offset of the pattern, in periods.
    """

    shape: str
    material: str
    look: Look
    tall: float = 0.0
    wide: float = 0.0
    detail: float = 0.0
    pattern_scale: float = 1.0
    phase: float = 0.5

    @property
    def noun(self) -> str:
        """The class noun for prompts: "a photo of sks NOUN"."""
        return self.shape


def on_surface(shape: str, direction: Point, detail: float = 0.0, sink: float = 0.04) -> Point:
    """Return the outermost local point of a shape in a direction from its centre, moved inwards by `sink`.

    Args:
        shape: Name of the shape.
        direction: Any length but zero.
        detail: The shape's own feature.
        sink: Depth of the point below the surface, so that what is placed there is attached.
    """
    solid = shapes.SHAPES[SHAPES.index(shape)]
    length = math.sqrt(sum(c * c for c in direction))
    unit = [c / length for c in direction]
    radii = torch.linspace(1.8, 0.0, 1801)
    x, y, z = (radii * c for c in unit)
    inside = solid.distance(x, y, z, torch.full_like(x, detail)) <= 0
    # A direction may miss the solid (through a ring's hole): then the accessory hangs on its lowest safe radius.
    radius = float(radii[int(inside.float().argmax())]) - sink if bool(inside.any()) else solid.rest * 0.5
    return (unit[0] * radius, unit[1] * radius, unit[2] * radius)


def sample_subject(seed: int, index: int) -> Subject:
    """Return individual `index` of a seed; it depends on nothing else."""
    draw = Draw(seed, "toys/subject", index, count=64)
    shape = SHAPES[draw.integer(len(SHAPES))]
    detail = draw.uniform(-1.8, 1.8)
    colours = _palette(draw)
    layouts = [name for name in LAYOUTS if name != "plain"]
    parts = _crown(draw, shape, detail) + (_badges(draw, shape, detail) if draw.uniform() < 0.5 else ())
    look = Look(colours, layouts[draw.integer(len(layouts))], parts, _spots(draw, shape, detail))
    return Subject(
        shape=shape,
        material=MATERIALS[draw.integer(3)],
        look=look,
        tall=draw.uniform(-0.22, 0.22),
        wide=draw.uniform(-0.18, 0.18),
        detail=detail,
        pattern_scale=draw.uniform(0.6, 1.7),
        phase=draw.uniform(),
    )


def subject_scene(subject: Subject, seed: int, index: int, place: str | None = None) -> Scene:
    """Return picture `index` of a subject: place, camera, light and turn vary, the subject does not.

    Args:
        subject: Who is seen.
        seed: Names the series of pictures.
        index: Number of the picture.
        place: Name of the place; drawn when left out.
    """
    draw = Draw(seed, "toys/portrait", index, count=64)
    where = draw.integer(len(PLACES)) if place is None else PLACES.index(place)
    number = SHAPES.index(subject.shape)
    shape = shapes.SHAPES[number]
    camera = sample_camera(draw, 0.95 * shape.rest + 0.12, (0.44, 0.58))
    # Near the middle of the range in which the shape is easy to name, so that the marks are seen.
    low, high = max(shape.turn[0], -45.0), min(shape.turn[1], 45.0)
    middle, half = (low + high) / 2, (high - low) / 2
    yaw = camera.azimuth + math.radians(middle + draw.uniform(-0.7, 0.7) * half)
    spec = ObjectSpec(
        shape=number,
        colour=0,
        pattern=0,
        material=MATERIALS.index(subject.material),
        x=0.0,
        z=0.0,
        yaw=yaw,
        size=1.0,
        tall=subject.tall,
        wide=subject.wide,
        detail=subject.detail,
        pattern_scale=subject.pattern_scale,
        phase=subject.phase,
        look=subject.look,
    )
    return Scene((spec,), (), where, camera, sample_light(draw, camera.azimuth))


def _palette(draw: Draw) -> tuple[RGB, RGB, RGB]:
    """Return three colours well apart in hue and lightness."""
    hue = draw.uniform()
    colours = []
    for shift, light in (
        (0.0, draw.uniform(0.35, 0.6)),
        (draw.uniform(0.3, 0.5), draw.uniform(0.55, 0.85)),
        (0.7, 0.3),
    ):
        r, g, b = colorsys.hls_to_rgb((hue + shift) % 1.0, light, draw.uniform(0.45, 0.95))
        colours.append(linear("".join(f"{round(c * 255):02x}" for c in (r, g, b))))
    return colours[0], colours[1], colours[2]


def _colour(draw: Draw) -> RGB:
    r, g, b = colorsys.hls_to_rgb(draw.uniform(), draw.uniform(0.3, 0.75), draw.uniform(0.5, 1.0))
    return linear("".join(f"{round(c * 255):02x}" for c in (r, g, b)))


def _crown(draw: Draw, shape: str, detail: float) -> tuple[Part, ...]:
    form = CROWNS[draw.integer(len(CROWNS))]
    size, rgb = draw.uniform(0.38, 0.62), _colour(draw)
    if form not in PAIRED:
        lean = draw.uniform(-0.35, 0.35)
        return (Part(form, on_surface(shape, (lean, 1.0, 0.0), detail), (lean, 1.0, 0.0), (size, size, size), rgb),)
    spread = draw.uniform(0.35, 0.8)
    return tuple(
        Part(
            form,
            on_surface(shape, (side * spread, 1.0, 0.0), detail),
            (side * spread, 1.0, 0.0),
            (size, size, size),
            rgb,
        )
        for side in (-1.0, 1.0)
    )


def _badges(draw: Draw, shape: str, detail: float) -> tuple[Part, ...]:
    form = BADGES[draw.integer(len(BADGES))]
    size, rgb, height = draw.uniform(0.3, 0.45), _colour(draw), draw.uniform(-0.3, 0.3)
    if draw.uniform() < 0.5:
        at = (draw.uniform(-0.3, 0.3), height, 1.0)
        return (Part(form, on_surface(shape, at, detail), at, (size, size, size), rgb),)
    return tuple(
        Part(form, on_surface(shape, (side, height, 0.35), detail), (side, 0.0, 0.35), (size, size, size), rgb)
        for side in (-1.0, 1.0)
    )


def _spots(draw: Draw, shape: str, detail: float) -> tuple[Spot, ...]:
    count = draw.integer(3)
    return tuple(
        Spot(
            on_surface(shape, (draw.uniform(-0.8, 0.8), draw.uniform(-0.5, 0.5), 1.0), detail, sink=0.0),
            draw.uniform(0.2, 0.42),
            _colour(draw),
        )
        for _ in range(count)
    )


def _top(shape: str, form: str, size: float, colour: str, lean: float = 0.0, detail: float = 0.0) -> Part:
    """Return an accessory on top."""
    direction = (lean, 1.0, 0.0)
    return Part(form, on_surface(shape, direction, detail), direction, (size, size, size), linear(colour))


def _pair(shape: str, form: str, size: float, colour: str, spread: float, detail: float = 0.0) -> tuple[Part, Part]:
    """Return two mirrored accessories on top."""
    return _top(shape, form, size, colour, -spread, detail), _top(shape, form, size, colour, spread, detail)


def _front(shape: str, form: str, size: float, colour: str, at: Point) -> Part:
    """Return an accessory on the front."""
    return Part(form, on_surface(shape, at), at, (size, size, size), linear(colour))


def _spot(shape: str, at: Point, radius: float, colour: str) -> Spot:
    return Spot(on_surface(shape, at, sink=0.0), radius, linear(colour))


SHIPPED: dict[str, Subject] = {
    "horned-mug": Subject(
        "mug",
        "glossy",
        Look(
            (linear("2f7f86"), linear("f2b38a"), linear("30262c")),
            "dipped",
            _pair("mug", "horn", 0.55, "f4e3b2", 0.75),
            (_spot("mug", (-0.35, 0.25, 1.0), 0.2, "fff4d8"), _spot("mug", (0.35, 0.25, 1.0), 0.2, "fff4d8")),
        ),
        tall=0.05,
    ),
    "captain-duck": Subject(
        "duck",
        "matte",
        Look(
            (linear("a8c94a"), linear("5b2a6e"), linear("f6efe0")),
            "belted",
            (_top("duck", "cap", 0.62, "23305c", 0.42),),
        ),
        wide=0.1,
        phase=0.4,
    ),
    "birthday-bear": Subject(
        "bear",
        "matte",
        Look(
            (linear("c9a0dc"), linear("54408c"), linear("ffd166")),
            "blotched",
            (_top("bear", "party hat", 0.5, "ff5d73", 0.15), _front("bear", "star", 0.4, "ffd166", (0.0, -0.15, 1.0))),
        ),
    ),
    "wind-up-car": Subject(
        "car",
        "glossy",
        Look(
            (linear("f08a5d"), linear("2e4057"), linear("f6efe0")),
            "halves",
            (_top("car", "key", 0.62, "e8d9a8", -0.1), _top("car", "antenna", 0.34, "48c2a9", 0.8)),
            (_spot("car", (0.7, 0.0, 1.0), 0.24, "f6efe0"),),
        ),
        tall=0.18,
    ),
    "eared-cactus": Subject(
        "cactus",
        "matte",
        Look(
            (linear("5aa6c4"), linear("f4d9c6"), linear("243b4a")),
            "mottled",
            (_top("cactus", "bow", 0.52, "e63980"), _front("cactus", "patch", 0.4, "fdf0d5", (0.0, 0.25, 1.0))),
        ),
        wide=0.14,
    ),
    "sprout-teapot": Subject(
        "teapot",
        "glossy",
        Look(
            (linear("e9d8c3"), linear("b03a5b"), linear("3b6b4a")),
            "rays",
            (_top("teapot", "leaf", 0.66, "3f9b4f"), _front("teapot", "ball", 0.34, "f2c14e", (0.1, 0.1, 1.0))),
        ),
        tall=0.12,
    ),
    "antenna-house": Subject(
        "house",
        "matte",
        Look(
            (linear("f0c9d8"), linear("6a8f3c"), linear("3c2a4d")),
            "blotched",
            (_top("house", "fin", 0.5, "3fa7d6", 0.25), _front("house", "star", 0.36, "f9a03f", (0.0, 0.5, 1.0))),
        ),
        wide=-0.12,
        tall=0.1,
    ),
}
"""Seven individuals that come with the project."""
