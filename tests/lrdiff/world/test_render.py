"""What the attributes, relations and bodies of a scene do to its picture."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from lrdiff.world import places, shapes
from lrdiff.world.accessories import FORMS
from lrdiff.world.scene import ObjectSpec, Scene
from lrdiff.world.solids import SOLID_SHAPES, solids_of
from lrdiff.world.subjects import SHIPPED, subject_scene
from lrdiff.world.toys import ATTRIBUTES, DULL, SHAPES, Draw, compatible, make_scene, render, sample_scenes

ORDER = ("shape", "colour", "pattern", "material", "place")


def variants(attribute: str) -> list[Scene]:
    """Return one scene per value of an attribute, alike in everything else."""
    base = {"shape": SHAPES.index("mug"), "colour": 0, "pattern": 0, "material": 0, "place": 11}
    combinations = [{**base, attribute: i} for i in range(len(ATTRIBUTES[attribute]))]
    return [
        make_scene(Draw(3, "test", 0, count=256), (c["shape"], c["colour"], c["pattern"], c["material"], c["place"]))
        for c in combinations
    ]


def closest(images: Tensor, mask: Tensor) -> float:
    """Return the smallest mean difference of any two images inside a mask."""
    flat = images[:, :, mask].flatten(1)
    distance = torch.cdist(flat, flat, p=1) / flat.shape[1]
    return float(distance.fill_diagonal_(9.0).min())


@pytest.mark.parametrize("attribute", ["colour", "pattern", "material"])
def test_each_value_of_an_attribute_looks_unlike_the_others(attribute: str) -> None:
    drawn = render(variants(attribute), size=64)
    assert bool((drawn.masks == drawn.masks[:1]).all()), "the outline does not depend on the surface"
    assert closest(drawn.images, drawn.masks[0, 0]) > 0.05


def test_each_place_looks_unlike_the_others() -> None:
    drawn = render(variants("place"), size=64)
    assert closest(drawn.images, ~drawn.masks[0, 0]) > 0.1


def test_relations_hold_in_the_picture() -> None:
    scenes = [scene for scene in sample_scenes(11, range(80)) if len(scene.objects) == 2]
    assert {scene.relations[0] for scene in scenes} == {"left of", "right of", "in front of", "behind"}
    drawn = render(scenes, size=32)
    for scene, boxes in zip(scenes, drawn.boxes.float(), strict=True):
        middle = (boxes[:, 0] + boxes[:, 2]) / 2
        relation = scene.relations[0]
        if relation == "left of":
            assert middle[0] < middle[1]
        elif relation == "right of":
            assert middle[0] > middle[1]
        elif relation == "in front of":
            assert boxes[0, 3] > boxes[1, 3], "what stands nearer stands lower in the picture"
        else:
            assert boxes[0, 3] < boxes[1, 3]


def test_the_main_object_is_large_and_inside_the_picture() -> None:
    drawn = render(sample_scenes(12, range(24), objects="single"), size=32)
    left, top, right, bottom = drawn.boxes[:, 0].unbind(1)
    assert float((torch.maximum(right - left, bottom - top) / 32).min()) > 0.35
    # A tall shape near the camera may touch an edge; most must not.
    inside = (left > 0) & (top > 0) & (right < 32) & (bottom < 32)
    assert float(inside.float().mean()) > 0.8


def test_boxes_are_the_bounds_of_the_masks() -> None:
    drawn = render(sample_scenes(13, range(8)), size=48)
    for masks, boxes in zip(drawn.masks, drawn.boxes, strict=True):
        for mask, box in zip(masks, boxes.tolist(), strict=True):
            rows, columns = mask.nonzero().unbind(1)
            expected = [0, 0, 0, 0]
            if rows.numel():
                expected = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
            assert box == expected


def test_dull_colours_never_glow() -> None:
    glowing = ATTRIBUTES["material"].index("glowing")
    for colour, name in enumerate(ATTRIBUTES["colour"]):
        assert compatible(colour, glowing) == (name not in DULL)
    for scene in sample_scenes(14, range(300)):
        assert all(compatible(item.colour, item.material) for item in scene.objects)


def test_ordinary_objects_are_one_solid_and_subjects_more() -> None:
    ordinary = sample_scenes(15, range(50))
    assert all(item.look is None for scene in ordinary for item in scene.objects)
    assert len(solids_of(ordinary)) == sum(len(scene.objects) for scene in ordinary)
    for subject in SHIPPED.values():
        assert len(solids_of([subject_scene(subject, 0, 0)])) == 1 + len(subject.look.parts)


def test_every_solid_lies_in_its_bounding_sphere_and_objects_on_the_ground() -> None:
    g = torch.linspace(-1.9, 1.9, 39)
    x, y, z = (c.reshape(-1) for c in torch.meshgrid(g, g, g, indexing="ij"))
    for shape in SOLID_SHAPES:
        for detail in (-1.0, 0.0, 1.0):
            solid = shape.distance(x, y, z, torch.full_like(x, detail)) <= 0
            assert bool(solid.any()), shape.name
            radius = float((x * x + y * y + z * z)[solid].max().sqrt())
            # The sphere may shave the very tips of a corner (pyramid, bear): less than a pixel.
            assert radius <= 1.04 * shape.radius, shape.name
            if shape not in FORMS:
                # Half a cell of the grid and the rounding that details change.
                assert abs(float(y[solid].min()) + shape.rest) < 0.12, shape.name
    assert len(SOLID_SHAPES) == len(shapes.SHAPES) + len(FORMS)


def test_a_subject_keeps_its_colours_when_the_place_changes() -> None:
    subject = SHIPPED["sprout-teapot"]
    scenes = [subject_scene(subject, 0, 2, place=name) for name in ("studio", "meadow")]
    drawn = render(scenes, size=64)
    assert torch.equal(drawn.masks[0], drawn.masks[1])
    a, b = (image[:, drawn.masks[0, 0]].mean(1) for image in drawn.images)
    assert float((a - b).abs().max()) < 0.25


def test_rendered_images_can_be_trained_on() -> None:
    weight = torch.ones(3, 1, 1, requires_grad=True)
    drawn = render(sample_scenes(16, [0]), size=32)
    (weight * drawn.images).square().mean().backward()
    assert weight.grad is not None
    assert float(weight.grad.abs().sum()) > 0


def test_noise_repeats_after_one_period() -> None:
    u, v = torch.rand(2, 200)
    assert torch.allclose(places.noise(u, v), places.noise(u + 3.0, v - 2.0), atol=1e-3)


def test_objects_can_be_moved_without_changing_their_kind() -> None:
    scene = variants("shape")[0]
    moved: ObjectSpec = dataclasses.replace(scene.objects[0], x=0.3)
    masks = render([scene, dataclasses.replace(scene, objects=(moved,))], size=48).masks[:, 0]
    assert not torch.equal(masks[0], masks[1])
    assert abs(int(masks[0].sum()) - int(masks[1].sum())) < 0.2 * int(masks[0].sum())
