"""Signed distances against slow truths, and the tracer against geometry solved by hand."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lrdiff.rng import stream
from lrdiff.world import sdf


def points(count: int, spread: float = 1.5) -> tuple[Tensor, Tensor, Tensor]:
    """Return random points in a cube."""
    x, y, z = (torch.rand(3, count, generator=stream(0, "sdf")) * 2 - 1) * spread
    return x, y, z


def test_a_box_is_as_far_as_its_nearest_point() -> None:
    x, y, z = points(500)
    half = (0.5, 0.3, 0.7)
    nearest = [c.clamp(-h, h) for c, h in zip((x, y, z), half, strict=True)]
    expected = sdf.norm3(x - nearest[0], y - nearest[1], z - nearest[2])
    outside = expected > 0
    d = sdf.box(x, y, z, *half)
    assert torch.allclose(d[outside], expected[outside], atol=1e-6)
    assert bool((d[~outside] <= 0).all())


def test_a_polygon_is_as_far_as_its_densely_sampled_outline() -> None:
    corners = [(-0.9, -0.5), (0.8, -0.7), (0.1, 0.0), (0.7, 0.8), (-0.6, 0.6)]
    outline = torch.cat(
        [
            torch.tensor(a) + torch.linspace(0, 1, 2001)[:, None] * (torch.tensor(b) - torch.tensor(a))
            for a, b in zip(corners, [*corners[1:], corners[0]], strict=True)
        ]
    )
    x, y, _ = points(300)
    expected = torch.cdist(torch.stack([x, y], 1), outline).amin(1)
    d = sdf.polygon(x, y, corners)
    assert torch.allclose(d.abs(), expected, atol=2e-3)
    inside = sdf.polygon(torch.tensor([-0.3, 0.6]), torch.tensor([0.1, 0.0]), corners)
    assert float(inside[0]) < 0 < float(inside[1])


def test_a_blend_lies_within_its_parts_and_touches_them_far_away() -> None:
    x, y, z = points(400)
    a, b = sdf.sphere(x - 0.4, y, z, 0.5), sdf.sphere(x + 0.4, y, z, 0.5)
    smooth, sharp = sdf.blend(a, b, 0.2), sdf.union(a, b)
    assert bool((smooth <= sharp + 1e-6).all())
    assert float((sharp - smooth).max()) <= 0.05 + 1e-6
    apart = (a - b).abs() > 0.2
    assert torch.equal(smooth[apart], sharp[apart])


def sphere(x: Tensor, y: Tensor, z: Tensor, k: Tensor) -> Tensor:
    """Return the distance to the sphere all rays of these tests meet."""
    return sdf.sphere(x, y, z, 0.8)


def parallel_rays(count: int, speed: float) -> tuple[sdf.Vec, sdf.Vec, Tensor]:
    """Return rays along -z from z = 3 at growing distance from the axis; ``speed`` is the length of the direction."""
    offset = torch.linspace(0.0, 0.95, count)
    zero = torch.zeros(count)
    return (offset, zero, zero + 3.0), (zero, zero, zero - speed), offset


def test_traced_rays_end_where_the_sphere_begins_whatever_their_length() -> None:
    for speed in (1.0, 0.4, 2.5):
        origin, direction, offset = parallel_rays(64, speed)
        near, far, crosses = sdf.span(origin, direction, 1.0)
        assert bool(crosses.all())
        zero = torch.zeros(64)
        t = sdf.trace(sphere, origin, direction, zero, near, far, zero + 1.0 / speed)
        hits = offset < 0.79
        expected = (3.0 - (0.64 - offset[hits] ** 2).sqrt()) / speed
        # At grazing rays the tolerance of the tracer across the surface is a longer way along the ray.
        assert torch.allclose(t[hits] * speed, expected * speed, atol=0.03)
        assert bool(torch.isinf(t[offset > 0.81]).all())


def test_a_ray_does_not_notice_the_others() -> None:
    origin, direction, _ = parallel_rays(64, 1.0)
    near, far, _ = sdf.span(origin, direction, 1.0)
    one = torch.ones(64)
    together = sdf.trace(sphere, origin, direction, one, near, far, one)
    for i in (0, 17, 50, 63):
        pick = slice(i, i + 1)
        alone = sdf.trace(
            sphere,
            (origin[0][pick], origin[1][pick], origin[2][pick]),
            (direction[0][pick], direction[1][pick], direction[2][pick]),
            one[pick],
            near[pick],
            far[pick],
            one[pick],
        )
        assert torch.equal(alone, together[pick])


def test_shadow_is_dark_behind_the_sphere_soft_at_its_rim_and_absent_beyond() -> None:
    origin, direction, offset = parallel_rays(96, 1.0)
    one = torch.ones(96)
    lit = sdf.soft_shadow(sphere, origin, direction, one, one * 1.9, one * 4.0, one, width=0.05)
    assert float(lit[offset < 0.6].max()) < 0.01
    assert float(lit[offset > 0.94].min()) > 0.9
    assert bool((lit[1:] >= lit[:-1] - 0.02).all())
    rim = lit[(offset - 0.8).abs() < 0.02]
    assert 0.2 < float(rim.mean()) < 0.8


def test_normals_of_a_sphere_point_away_from_its_centre() -> None:
    x, y, z = points(200)
    nx, ny, nz = sdf.normals(sphere, x, y, z, torch.zeros(200))
    length = sdf.norm3(x, y, z)
    far = length > 0.1
    cosine = ((nx * x + ny * y + nz * z) / length)[far]
    assert float(cosine.min()) > math.cos(math.radians(1.0))
