"""Heads are what they say they are: symmetric, exact, repeatable, with marks where they belong."""

from __future__ import annotations

import pytest
import torch

from lrdiff.errors import ShapeError
from lrdiff.triplane.cameras import look_at, rays
from lrdiff.world.heads import IDENTITY, MARKS, ONE_SIDED_MARKS, SYMMETRIC_MARKS, Heads, heads, mirrored
from lrdiff.world.heads_paint import albedo
from lrdiff.world.heads_render import FAR, FOCAL, RADIUS, orbit, orbit_rays, render
from lrdiff.world.heads_shape import distance, normals

SIDE = 24


def people(count: int = 2, seed: int = 0) -> Heads:
    return heads(torch.randn(count, 24, generator=torch.Generator().manual_seed(seed)))


def seen(person: Heads, yaw: float = 0.0, pitch: float = 0.0, side: int = SIDE):
    return orbit(person, torch.full((len(person),), yaw), torch.full((len(person),), pitch), side, smooth=1)


def test_depth_and_normals_are_those_of_the_surface() -> None:
    person = people()
    origins, directions = orbit_rays(torch.tensor([0.4, -0.8]), torch.tensor([0.1, -0.2]), SIDE)
    view = render(person, origins, directions)
    hit = view.mask.flatten(1).bool()
    assert 0.2 < float(hit.float().mean()) < 0.8
    points = origins + view.depth.flatten(1)[..., None] * directions
    assert float(distance(person, points)[hit].abs().max()) < 5e-3
    normal = view.normal.flatten(2).transpose(1, 2)
    torch.testing.assert_close(normal[hit].norm(dim=1), torch.ones(int(hit.sum())), atol=1e-4, rtol=0)
    assert float(((normal * directions).sum(-1)[hit] < 0.05).float().mean()) > 0.99, "what is seen faces the camera"
    assert bool((view.depth.flatten(1)[~hit] == FAR).all())
    assert bool((view.image.transpose(0, 1)[:, ~view.mask[:, 0].bool()] == 1).all()), "white where nothing is"
    # Nothing lies before the surface: on the way there no point is inside.
    before = origins + 0.97 * view.depth.flatten(1)[..., None] * directions
    assert float((distance(person, before)[hit] > 0).float().mean()) > 0.99


def test_normals_are_gradients_of_the_distance() -> None:
    person = people(1)
    points = (0.25 * torch.randn(1, 50, 3, generator=torch.Generator().manual_seed(1))).requires_grad_(True)
    (slope,) = torch.autograd.grad(distance(person, points).sum(), points)
    cosine = torch.nn.functional.cosine_similarity(slope, normals(person, points.detach()), dim=-1)
    assert float((cosine > 0.99).float().mean()) > 0.9  # the rest lies in seams, where the slope jumps


def test_heads_without_marks_are_exactly_symmetric() -> None:
    person = people(3).lit_from_the_front()
    points = 0.3 * torch.randn(3, 300, 3, generator=torch.Generator().manual_seed(2))
    other = points * torch.tensor([-1.0, 1.0, 1.0])
    assert torch.equal(distance(person, points), distance(person, other))
    assert torch.equal(albedo(person, points)[0], albedo(person, other)[0])
    for mark in SYMMETRIC_MARKS:
        marked = person.marked(**{mark: True})
        assert torch.equal(albedo(marked, points)[0], albedo(marked, other)[0])
    left, right = seen(person, 0.6, 0.2), seen(person, -0.6, 0.2)
    # Rays that graze an edge may end on either side of it.
    assert float(((left.image - right.image.flip(3)).abs() > 0.02).float().mean()) < 0.01
    assert float((left.depth - right.depth.flip(3)).abs().median()) < 1e-5


def test_only_light_breaks_symmetry_and_can_be_mirrored() -> None:
    person = people(2)
    one, other = seen(person, 0.5).image, seen(mirrored(person), -0.5).image.flip(3)
    assert float(((one - other).abs() > 0.02).float().mean()) < 0.015
    with pytest.raises(ShapeError, match="one-sided mark"):
        mirrored(person.marked(scar=True))


@pytest.mark.parametrize("mark", MARKS)
def test_marks_change_a_small_part_and_their_side_is_theirs(mark: str) -> None:
    person = people(1).lit_from_the_front()
    bare, marked = person, person.marked(**{mark: True})
    changed = [seen(marked, yaw, side=32).image - seen(bare, yaw, side=32).image for yaw in (-0.5, 0.5)]
    parts = [float((change.abs().amax(1) > 0.1).float().mean()) for change in changed]
    assert 0.002 < max(parts) < 0.3
    if mark in SYMMETRIC_MARKS:
        assert parts[0] == pytest.approx(parts[1], abs=0.01)
    else:
        assert mark in ONE_SIDED_MARKS
        assert (parts[0] > parts[1]) == (mark == "spot"), "the beauty spot is at x < 0, the rest at x > 0"


def test_identity_is_the_person_and_nothing_else() -> None:
    z = torch.randn(1, 24)
    other = z.clone()
    other[:, IDENTITY:] += 1
    one, two = heads(z), heads(other)
    assert torch.equal(one.identity, two.identity)
    assert torch.equal(one.skull, two.skull)
    assert not torch.equal(one.smile, two.smile)
    assert not torch.equal(one.light, two.light)
    assert one.identity.shape == (1, 18)
    assert one.marks().tolist() == [[0.0] * 5]
    assert one.marked(scar=True).marks().tolist() == [[0, 0, 1, 0, 0]]
    different = z.clone()
    different[:, 3] += 1
    assert not torch.equal(heads(different).jaw_width, one.jaw_width)


def test_every_number_of_a_latent_is_seen() -> None:
    z = torch.zeros(24, 24)
    base = seen(heads(z[:1])).image
    moved = seen(heads(z + 1.5 * torch.eye(24))).image
    assert bool(((moved - base).abs().amax((1, 2, 3)) > 0.05).all())


def test_the_cameras_are_those_of_the_generators() -> None:
    yaw, pitch = torch.tensor([0.3, -1.0]), torch.tensor([0.2, -0.3])
    own, other = orbit_rays(yaw, pitch, 6), rays(look_at(yaw, pitch, RADIUS, FOCAL), 6)
    for one, two in zip(own, other, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=0)


def test_smoothing_averages_the_picture_and_keeps_depth_exact() -> None:
    person = people(1)
    yaw, pitch = torch.zeros(1), torch.zeros(1)
    rough, fine = orbit(person, yaw, pitch, 2 * SIDE, smooth=1), orbit(person, yaw, pitch, SIDE, smooth=2)
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(rough.image, 2), fine.image)
    assert torch.equal(rough.depth[:, :, ::2, ::2], fine.depth)


def test_albedo_stays_a_colour() -> None:
    person = people(4).marked(glasses=True, scar=True, streak=True)
    colour, hair, eye = albedo(person, 0.4 * torch.randn(4, 200, 3))
    assert bool(((colour >= 0) & (colour <= 1.05)).all())
    assert bool(((hair >= 0) & (hair <= 1) & (eye >= 0) & (eye <= 1)).all())


def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\[B, 24\]"):
        heads(torch.randn(1, 10))
    with pytest.raises(ShapeError, match="'beard'"):
        people(1).marked(beard=True)
    with pytest.raises(ShapeError, match="no square"):
        render(people(1), torch.zeros(1, 5, 3), torch.zeros(1, 5, 3))
