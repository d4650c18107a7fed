"""The toy world: sampling of scenes and their exact attributes.

``sample_scenes`` and ``render`` are all a training set needs. Scene i of a seed depends on (seed, i) alone.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable
from typing import Literal

import torch

from lrdiff.rng import stream
from lrdiff.world import shapes
from lrdiff.world.paint import COLOURS as _COLOURS
from lrdiff.world.paint import DULL, MATERIALS, PATTERNS
from lrdiff.world.places import PLACE_NAMES as PLACES
from lrdiff.world.render import Rendered, render
from lrdiff.world.scene import Camera, Light, ObjectSpec, Scene

SHAPES: tuple[str, ...] = shapes.NAMES
COLOURS: tuple[str, ...] = tuple(colour.name for colour in _COLOURS)
RELATIONS: tuple[str, ...] = ("left of", "right of", "in front of", "behind")
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES, "colour": COLOURS, "pattern": PATTERNS, "material": MATERIALS, "place": PLACES,
}  # fmt: skip
HELD_OUT_SHARE = 32
"""One in this many attribute combinations is held out: never sampled unless asked for."""

__all__ = [
    "ATTRIBUTES", "COLOURS", "MATERIALS", "PATTERNS", "PLACES", "RELATIONS", "SHAPES", "Rendered", "Scene",
    "attributes", "combination_held_out", "compatible", "make_scene", "render", "sample_scenes",
]  # fmt: skip


class Draw:
    """A row of uniform numbers, taken one by one."""

    def __init__(self, seed: int, name: str, *index: int, count: int = 96) -> None:
        self._values = torch.rand(count, generator=stream(seed, name, *index), dtype=torch.float64).tolist()
        self._next = 0

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """The next number, scaled to [low, high)."""
        value = self._values[self._next]
        self._next += 1
        return low + (high - low) * value

    def integer(self, n: int) -> int:
        """The next number as an integer in [0, n)."""
        return min(int(self.uniform() * n), n - 1)


def compatible(colour: int, material: int) -> bool:
    """Whether a colour can be told from the others in a material: dull colours do not glow."""
    return MATERIALS[material] != "glowing" or COLOURS[colour] not in DULL


def combination_held_out(shape: int, colour: int, pattern: int, material: int, place: int) -> bool:
    """Whether a full combination of main-object attributes and place is kept out of training scenes."""
    text = f"{SHAPES[shape]}/{COLOURS[colour]}/{PATTERNS[pattern]}/{MATERIALS[material]}/{PLACES[place]}"
    return hashlib.blake2b(text.encode(), digest_size=4).digest()[0] % HELD_OUT_SHARE == 0


def _combination(draw: Draw) -> tuple[int, int, int, int, int]:
    """Shape, colour, pattern, material, place."""
    shape, colour = draw.integer(len(SHAPES)), draw.integer(len(COLOURS))
    # More than an even share of the objects is plain: plain surfaces show shape and material best.
    pattern = 0 if draw.uniform() < 0.2 else draw.integer(len(PATTERNS))
    return shape, colour, pattern, draw.integer(len(MATERIALS)), draw.integer(len(PLACES))


def _allowed(combination: tuple[int, int, int, int, int], *, held_out: bool) -> bool:
    """Whether a combination can be seen, and is on the wanted side of the held-out line."""
    return compatible(combination[1], combination[3]) and combination_held_out(*combination) == held_out


def _object(draw: Draw, kind: tuple[int, int, int, int], x: float, z: float, facing: float) -> ObjectSpec:
    shape, colour, pattern, material = kind
    low, high = shapes.SHAPES[shape].turn
    return ObjectSpec(
        shape, colour, pattern, material, x, z,
        yaw=facing + math.radians(draw.uniform(low, high)),
        size=1.0,
        tall=draw.uniform(-0.10, 0.10),
        wide=draw.uniform(-0.10, 0.10),
        detail=draw.uniform(-1.0, 1.0),
        pattern_scale=draw.uniform(0.9, 1.12),
        phase=draw.uniform(),
    )  # fmt: skip


def sample_camera(draw: Draw, height: float, share: tuple[float, float], *, azimuth: float | None = None) -> Camera:
    """A camera that sees an object of about 2 units so that it takes ``share`` of the image height."""
    fov = math.radians(38.0)
    turn = draw.uniform(-math.pi, math.pi) if azimuth is None else azimuth
    distance = 1.9 / (2.0 * math.tan(fov / 2) * draw.uniform(*share))
    elevation = math.radians(draw.uniform(6.0, 24.0))
    slack = 0.10 * distance * math.tan(fov / 2)
    side, lift = draw.uniform(-slack, slack), draw.uniform(-slack, slack)
    target = (side * math.cos(turn), height + lift, -side * math.sin(turn))
    return Camera(turn, elevation, distance, fov, target)


def sample_light(draw: Draw, camera_azimuth: float) -> Light:
    """A key light from the viewer's side, left or right."""
    side = 1.0 if draw.uniform() < 0.5 else -1.0
    azimuth = camera_azimuth + side * math.radians(draw.uniform(20.0, 70.0))
    return Light(azimuth, math.radians(draw.uniform(35.0, 62.0)), draw.uniform(0.9, 1.1), draw.uniform(-1.0, 1.0))


def make_scene(draw: Draw, combination: tuple[int, int, int, int, int], others: int = 0) -> Scene:
    """A scene with the given main object and place; everything else is drawn."""
    *main, place = combination
    shape = shapes.SHAPES[main[0]]
    if others == 0:
        camera = sample_camera(draw, 0.92 * shape.rest, (0.50, 0.72))
        spec = _object(draw, (main[0], main[1], main[2], main[3]), 0.0, 0.0, camera.azimuth)
        return Scene((spec,), (), place, camera, sample_light(draw, camera.azimuth))
    camera = sample_camera(draw, 0.8, (0.30, 0.36) if others == 1 else (0.27, 0.31))
    specs, relations = _arrange(draw, (main[0], main[1], main[2], main[3]), others, camera.azimuth)
    return Scene(specs, relations, place, camera, sample_light(draw, camera.azimuth))


def _arrange(
    draw: Draw, main: tuple[int, int, int, int], others: int, azimuth: float
) -> tuple[tuple[ObjectSpec, ...], tuple[str, ...]]:
    """Objects around the main one, without two of the same shape and without hiding it."""
    right, near = (math.cos(azimuth), -math.sin(azimuth)), (math.sin(azimuth), math.cos(azimuth))
    first = draw.integer(len(RELATIONS))
    # The second neighbour takes the opposite side, so that neither hides the main object.
    relations = [RELATIONS[first]] + ([RELATIONS[first ^ 1]] if others == 2 else [])
    offsets = []
    for relation in relations:
        wide, shift = draw.uniform(2.0, 2.5), draw.uniform(-0.35, 0.35)
        deep, aside = draw.uniform(2.2, 2.8), draw.uniform(0.75, 1.15) * (1.0 if draw.uniform() < 0.5 else -1.0)
        offsets.append({
            "left of": (wide, shift), "right of": (-wide, shift),
            "in front of": (aside, -deep), "behind": (aside, deep),
        }[relation])  # fmt: skip
    places = [(0.0, 0.0), *offsets]
    middle = tuple(sum(p[i] for p in places) / len(places) for i in range(2))
    specs, used = [], set()
    for i, (u, v) in enumerate(places):
        kind = main if i == 0 else _neighbour(draw, used)
        used.add(kind[0])
        u, v = u - middle[0], v - middle[1]
        specs.append(_object(draw, kind, u * right[0] + v * near[0], u * right[1] + v * near[1], azimuth))
    return tuple(specs), tuple(relations)


def _neighbour(draw: Draw, used: set[int]) -> tuple[int, int, int, int]:
    while True:
        shape, colour = draw.integer(len(SHAPES)), draw.integer(len(COLOURS))
        pattern = 0 if draw.uniform() < 0.5 else draw.integer(len(PATTERNS))
        material = draw.integer(len(MATERIALS))
        if shape not in used and compatible(colour, material):
            return shape, colour, pattern, material


def sample_scenes(
    seed: int, indices: Iterable[int], *, objects: Literal["single"] | None = None, held_out: bool = False
) -> list[Scene]:
    """Scenes of the toy world.

    Args:
        seed: Names the data set.
        indices: Which of its scenes; scene i depends on (seed, i) and the options only.
        objects: "single" for one object each; None for a mixture: 70 % one, 20 % two, 10 % three.
        held_out: Draw from the attribute combinations that training scenes never show.
    """
    return [_sample(seed, index, objects == "single", held_out) for index in indices]


def _sample(seed: int, index: int, single: bool, held_out: bool) -> Scene:
    draw, combination = _held_out(seed, index) if held_out else _trained(seed, index)
    fate = draw.uniform()
    others = 0 if single or fate < 0.7 else 1 if fate < 0.9 else 2
    return make_scene(draw, combination, others)


def _trained(seed: int, index: int) -> tuple[Draw, tuple[int, int, int, int, int]]:
    """Numbers for a training scene and its combination, redrawn until allowed."""
    draw = Draw(seed, "toys/scene", index, count=256)
    combination = _combination(draw)
    while not _allowed(combination, held_out=False):
        combination = _combination(draw)
    return draw, combination


def _held_out(seed: int, index: int) -> tuple[Draw, tuple[int, int, int, int, int]]:
    """The same from the other side of the line; held-out combinations are rare, so every try has its own numbers."""
    for attempt in itertools.count():
        draw = Draw(seed, "toys/held-out", index, attempt, count=256)
        combination = _combination(draw)
        if _allowed(combination, held_out=True):
            return draw, combination
    raise AssertionError("unreachable: count() does not end")


def attributes(scene: Scene) -> dict[str, int]:
    """Exact labels of the main object and the place: indices into the tables of :data:`ATTRIBUTES`."""
    main = scene.objects[0]
    return {
        "shape": main.shape, "colour": main.colour, "pattern": main.pattern, "material": main.material,
        "place": scene.place,
    }  # fmt: skip
