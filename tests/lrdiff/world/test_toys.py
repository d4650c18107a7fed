"""The toy world: deterministic, exact, and every shape, place and subject really drawn."""

from __future__ import annotations

import json
import time

import pytest
import torch

from lrdiff.rng import stream
from lrdiff.world import shapes
from lrdiff.world.captions import PLACE_PHRASES, WORDS, caption, describe, held_out_captions
from lrdiff.world.scene import Scene
from lrdiff.world.toys import (
    ATTRIBUTES,
    COLOURS,
    MATERIALS,
    PATTERNS,
    PLACES,
    SHAPES,
    Draw,
    attributes,
    combination_held_out,
    make_scene,
    render,
    sample_scenes,
)


def one(
    shape: str, colour: str = "red", pattern: str = "plain", material: str = "matte", place: str = "studio"
) -> Scene:
    """Return a scene with these attributes."""
    combination = (
        SHAPES.index(shape),
        COLOURS.index(colour),
        PATTERNS.index(pattern),
        MATERIALS.index(material),
        PLACES.index(place),
    )
    return make_scene(Draw(0, "test", 0, count=256), combination)


def test_the_tables_are_as_large_as_promised() -> None:
    assert len(SHAPES) >= 24
    assert len(COLOURS) >= 12
    assert len(PATTERNS) >= 5
    assert len(MATERIALS) >= 4
    assert len(PLACES) >= 12
    assert all(len(set(values)) == len(values) for values in ATTRIBUTES.values())


def test_a_scene_depends_on_seed_and_index_alone() -> None:
    many = sample_scenes(3, range(20))
    assert sample_scenes(3, [17, 4]) == [many[17], many[4]]
    assert sample_scenes(4, [17]) != [many[17]]


def test_scenes_survive_json() -> None:
    for scene in sample_scenes(5, range(30)):
        assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene


def test_rendering_is_deterministic_and_independent_of_the_batch() -> None:
    scenes = sample_scenes(7, range(4))
    whole = render(scenes, size=64)
    assert torch.equal(render(scenes, size=64).images, whole.images)
    alone = render(scenes[2:3], size=64).images[0]
    assert float((alone - whole.images[2]).abs().max()) < 1e-5


def test_images_and_masks_have_the_promised_form() -> None:
    scenes = sample_scenes(8, range(6))
    drawn = render(scenes, size=64)
    assert drawn.images.shape == (6, 3, 64, 64)
    assert drawn.images.dtype == torch.float32
    assert float(drawn.images.min()) >= -1.0
    assert float(drawn.images.max()) <= 1.0
    assert drawn.masks.shape == (6, 3, 64, 64)
    for scene, masks in zip(scenes, drawn.masks, strict=True):
        present = [bool(mask.any()) for mask in masks]
        assert present[0]
        assert not any(present[len(scene.objects) :])


@pytest.mark.parametrize(("colour", "strongest"), [("red", 0), ("green", 1), ("blue", 2)])
def test_masks_cover_the_object_whose_colour_is_asked_for(colour: str, strongest: int) -> None:
    drawn = render([one("ball", colour)], size=64)
    inside = drawn.images[0][:, drawn.masks[0, 0]].mean(1)
    assert int(inside.argmax()) == strongest


def test_every_shape_is_seen_and_no_two_have_the_same_outline() -> None:
    masks = render([one(name) for name in SHAPES], size=48).masks[:, 0]
    assert bool((masks.flatten(1).float().mean(1) > 0.03).all())
    flat = masks.flatten(1).float()
    overlap = flat @ flat.T
    sizes = flat.sum(1)
    union = sizes[:, None] + sizes[None] - overlap
    likeness = (overlap / union).fill_diagonal_(0.0)
    assert float(likeness.max()) < 0.97


def test_distances_are_negative_inside_and_do_not_overshoot() -> None:
    rng = stream(0, "points")
    for shape in shapes.SHAPES:
        p = (torch.rand(3, 4000, generator=rng) * 2 - 1) * 1.3 * shape.radius
        step = torch.randn(3, 4000, generator=rng)
        step = step / step.norm(dim=0) * 1e-3
        zero = torch.zeros(4000)
        q = p + step
        here, there = shape.distance(p[0], p[1], p[2], zero), shape.distance(q[0], q[1], q[2], zero)
        assert float(here.min()) < 0.0, shape.name
        slope = (there - here).abs() / 1e-3
        assert float(slope.quantile(0.99)) < 1.6, shape.name


def test_captions_say_only_what_is_there() -> None:
    rng = stream(0, "captions")
    for scene in sample_scenes(9, range(200)):
        text = caption(scene, rng)
        words = text.replace(",", " , ").split()
        assert set(words) <= set(WORDS)
        assert len(words) <= 28
        named = {
            name: [v for v in ATTRIBUTES[name] if v in words] for name in ("shape", "colour", "pattern", "material")
        }
        labels = [
            {
                "shape": SHAPES[item.shape],
                "colour": COLOURS[item.colour],
                "pattern": PATTERNS[item.pattern],
                "material": MATERIALS[item.material],
            }
            for item in scene.objects
        ]
        places = set(" ".join(PLACE_PHRASES[PLACES[scene.place]]).split())
        for name, values in named.items():
            assert set(values) - places <= {label[name] for label in labels}
        assert SHAPES[scene.objects[0].shape] in words


def test_the_canonical_caption_names_everything() -> None:
    scene = one("mug", "blue", "striped", "glossy", "table")
    assert describe(scene) == "a photo of a blue striped glossy mug on a wooden table"


def test_held_out_captions_show_combinations_that_are_never_trained_on() -> None:
    captions = held_out_captions(50, seed=2)
    assert len({text for text, _ in captions}) > 45
    order = ("shape", "colour", "pattern", "material", "place")
    assert all(combination_held_out(*(labels[name] for name in order)) for _, labels in captions)
    trained = [attributes(scene) for scene in sample_scenes(1, range(400))]
    assert not any(combination_held_out(*(labels[name] for name in order)) for labels in trained)


def test_an_image_takes_milliseconds() -> None:
    scenes = sample_scenes(1, range(16))
    render(scenes[:2])
    begin = time.process_time()
    render(scenes)
    each = (time.process_time() - begin) / len(scenes)
    assert each < 0.5, f"{each * 1000:.0f} ms of processor time per 128 px image"
