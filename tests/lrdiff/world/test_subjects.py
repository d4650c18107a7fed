"""Subjects: the same individual in every picture, and unlike anything ordinary."""

from __future__ import annotations

from lrdiff.world.accessories import FORM_NAMES
from lrdiff.world.paint import LAYOUTS
from lrdiff.world.subjects import SHIPPED, on_surface, sample_subject, subject_scene
from lrdiff.world.toys import PLACES, SHAPES, render


def test_there_are_six_or_more_with_accessories() -> None:
    assert len(SHIPPED) >= 6
    for subject in SHIPPED.values():
        assert subject.shape in SHAPES
        assert subject.noun == subject.shape
        assert subject.look.parts
        assert subject.look.layout in LAYOUTS
        assert all(part.form in FORM_NAMES for part in subject.look.parts)


def test_a_sampled_subject_depends_on_seed_and_index_alone() -> None:
    assert sample_subject(1, 5) == sample_subject(1, 5)
    assert len({str(sample_subject(1, i)) for i in range(50)}) == 50
    assert sample_subject(2, 5) != sample_subject(1, 5)


def test_pictures_vary_while_the_subject_stays() -> None:
    subject = SHIPPED["horned-mug"]
    scenes = [subject_scene(subject, 0, i) for i in range(6)]
    assert len({scene.place for scene in scenes}) > 1
    assert len({scene.camera for scene in scenes}) == 6
    assert {scene.objects[0].look for scene in scenes} == {subject.look}
    assert subject_scene(subject, 0, 0, place="moon").place == PLACES.index("moon")


def test_accessories_change_the_outline() -> None:
    scene = subject_scene(SHIPPED["horned-mug"], 0, 1, place="studio")
    bare = type(scene)(
        (type(scene.objects[0])(**{**vars_of(scene.objects[0]), "look": None}),),
        (),
        scene.place,
        scene.camera,
        scene.light,
    )
    masks = render([scene, bare], size=64).masks[:, 0]
    assert int(masks[0].sum()) > int(masks[1].sum())


def vars_of(spec: object) -> dict[str, object]:
    """Return the fields of a frozen dataclass."""
    return {name: getattr(spec, name) for name in spec.__dataclass_fields__}  # type: ignore[attr-defined]


def test_a_point_on_the_surface_is_on_the_surface() -> None:
    x, y, z = on_surface("ball", (0.0, 2.0, 0.0), sink=0.0)
    assert (x, z) == (0.0, 0.0)
    assert abs(y - 0.95) < 0.002
