"""Captions: exact sentences about scenes. A caption may leave attributes out, but never says anything untrue."""

from __future__ import annotations

import torch

from lrdiff.world.scene import ObjectSpec, Scene
from lrdiff.world.toys import COLOURS, MATERIALS, PATTERNS, PLACES, SHAPES, attributes, sample_scenes

PLACE_PHRASES: dict[str, tuple[str, ...]] = {
    "table": ("on a wooden table", "on a table"),
    "meadow": ("on grass", "in a meadow"),
    "beach": ("on a beach", "on sand by the sea"),
    "snow": ("in snow", "on snow"),
    "desert": ("in a desert", "on orange sand"),
    "bathroom": ("in a bathroom", "on white tiles"),
    "chessboard": ("on a chessboard floor", "on a chessboard"),
    "street": ("on a street", "on a road"),
    "carpet": ("on a red carpet", "on a carpet"),
    "night": ("at night", "under the stars"),
    "moon": ("on the moon",),
    "studio": ("in a studio", "on a white background"),
    "stage": ("on a stage", "in a theatre"),
    "volcano": ("on lava", "by a volcano"),
    "sea": ("in water", "in the sea"),
    "forest": ("in a forest", "among trees"),
}

NOUN_FIRST = 0.25
"""Share of captions that put the noun before its attributes."""

KEEP = {"colour": 0.9, "pattern": 0.8, "material": 0.6, "place": 0.85}
"""How often a caption names an attribute."""

OPENINGS = ("a photo of ", "a picture of ", "a rendering of ", "")
RELATION_PHRASES = {
    "left of": "to the left of",
    "right of": "to the right of",
    "in front of": "in front of",
    "behind": "behind",
}


def describe(scene: Scene) -> str:
    """Return the canonical caption that names everything: "a photo of a red striped glossy mug on a wooden table"."""
    main, *others = scene.objects
    relations = [
        f"{RELATION_PHRASES[relation]} {_object(other, set(KEEP))}"
        for other, relation in zip(others, scene.relations, strict=True)
    ]
    words = ["a photo of", _object(main, set(KEEP)), " and ".join(relations), PLACE_PHRASES[PLACES[scene.place]][0]]
    return " ".join(word for word in words if word)


def caption(scene: Scene, rng: torch.Generator) -> str:
    """Return one of the many true captions of a scene.

    Attributes are left out at random, and the order of words and the names of places vary. Captions of scenes with
    several objects name the others with their colour and shape only, which keeps them short.

    Args:
        scene: What is seen.
        rng: Decides which caption.
    """
    kept = {name for name, share in KEEP.items() if _chance(rng, share)}
    opening = OPENINGS[_pick(rng, len(OPENINGS))]
    main = scene.objects[0]
    text = opening + (_noun_first(main, kept) if _chance(rng, NOUN_FIRST) else _object(main, kept))
    relations = [
        f"{RELATION_PHRASES[relation]} {_object(other, {'colour'})}"
        for other, relation in zip(scene.objects[1:], scene.relations, strict=True)
        if _chance(rng, 0.9)
    ]
    if relations:
        text += f" {' and '.join(relations)}"
    if "place" in kept:
        phrases = PLACE_PHRASES[PLACES[scene.place]]
        text += f" {phrases[_pick(rng, len(phrases))]}"
    return text


def _words(spec: ObjectSpec, kept: set[str]) -> list[str]:
    """Return the adjectives of an object; a plain pattern needs no word."""
    words = [COLOURS[spec.colour]] if "colour" in kept else []
    if "pattern" in kept and PATTERNS[spec.pattern] != "plain":
        words.append(PATTERNS[spec.pattern])
    return words + ([MATERIALS[spec.material]] if "material" in kept else [])


def _object(spec: ObjectSpec, kept: set[str]) -> str:
    words = " ".join([*_words(spec, kept), SHAPES[spec.shape]])
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _noun_first(spec: ObjectSpec, kept: set[str]) -> str:
    noun, words = SHAPES[spec.shape], _words(spec, kept)
    return f"a {noun}" if not words else f"a {noun}, {' and '.join(words)},"


def _chance(rng: torch.Generator, share: float) -> bool:
    return float(torch.rand((), generator=rng)) < share


def _pick(rng: torch.Generator, count: int) -> int:
    return int(torch.randint(0, count, (), generator=rng))


def _vocabulary() -> tuple[str, ...]:
    phrases = [*OPENINGS, *RELATION_PHRASES.values(), *(p for many in PLACE_PHRASES.values() for p in many)]
    tables = [*SHAPES, *COLOURS, *PATTERNS, *MATERIALS]
    words = {word for phrase in [*phrases, *tables] for word in phrase.split()}
    return tuple(sorted(words | {"a", "an", "and", ",", "."}))


WORDS: tuple[str, ...] = _vocabulary()
"""Every word that captions use."""


def held_out_captions(count: int, seed: int) -> list[tuple[str, dict[str, int]]]:
    """Return canonical captions, with labels, of single objects whose combination no training scene shows."""
    scenes = sample_scenes(seed, range(count), objects="single", held_out=True)
    return [(describe(scene), attributes(scene)) for scene in scenes]
