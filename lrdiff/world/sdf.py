"""Signed distance functions and a batched sphere tracer.

A signed distance function (SDF) gives, for a point, the distance to a surface: negative inside, positive outside. Every
function here takes coordinates as separate flat tensors (``x``, ``y``, ``z``, each [N]) because that is what runs fast:
contiguous memory, one vector instruction after another, no matrix products whose rounding depends on the batch.

Sphere tracing walks along a ray in steps as long as the distance to the nearest surface (Hart, "Sphere tracing", 1996).
Rays of many images travel in one flat list; finished rays leave the list at fixed step numbers, so what a ray returns
does not depend on which other rays were with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Scalar = float | Tensor
Distance = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x, y, z, detail) -> signed distance, all [N]."""
Vec = tuple[Tensor, Tensor, Tensor]


def norm2(x: Tensor, y: Tensor) -> Tensor:
    """Length of 2D vectors."""
    return torch.addcmul(x * x, y, y).sqrt_()


def norm3(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Length of 3D vectors."""
    return torch.addcmul(torch.addcmul(x * x, y, y), z, z).sqrt_()


def sphere(x: Tensor, y: Tensor, z: Tensor, r: Scalar) -> Tensor:
    """Sphere of radius ``r`` at the origin (exact)."""
    return norm3(x, y, z) - r


def ellipsoid(x: Tensor, y: Tensor, z: Tensor, rx: float, ry: float, rz: float) -> Tensor:
    """Ellipsoid with semi-axes ``rx, ry, rz``: the first-order estimate k0 (k0 - 1) / k1, good near the surface."""
    ax, ay, az = x * (1 / rx), y * (1 / ry), z * (1 / rz)
    k0 = norm3(ax, ay, az)
    k1 = norm3(ax * (1 / rx), ay * (1 / ry), az * (1 / rz)).clamp_min_(1e-6)
    estimate = k0 * (k0 - 1.0) / k1
    return torch.where(k0 < 1.0, (k0 - 1.0) * min(rx, ry, rz), estimate)


def _outside2(a: Tensor, b: Tensor) -> Tensor:
    """Distance to the quadrant a <= 0, b <= 0."""
    return norm2(a.clamp_min(0.0), b.clamp_min(0.0)) + torch.maximum(a, b).clamp_max_(0.0)


def box2(x: Tensor, y: Tensor, bx: Scalar, by: Scalar, r: Scalar = 0.0) -> Tensor:
    """Rectangle with half sizes ``bx, by``; corners rounded by ``r`` (exact)."""
    return _outside2(x.abs() - (bx - r), y.abs() - (by - r)) - r


def box(x: Tensor, y: Tensor, z: Tensor, bx: Scalar, by: Scalar, bz: Scalar, r: Scalar = 0.0) -> Tensor:
    """Box with half sizes ``bx, by, bz``; edges rounded by ``r`` (exact)."""
    qx, qy, qz = x.abs() - (bx - r), y.abs() - (by - r), z.abs() - (bz - r)
    inside = torch.maximum(torch.maximum(qx, qy), qz).clamp_max_(0.0)
    return norm3(qx.clamp_min_(0.0), qy.clamp_min_(0.0), qz.clamp_min_(0.0)) + inside - r


def cylinder(x: Tensor, y: Tensor, z: Tensor, radius: Scalar, half: Scalar, r: Scalar = 0.0) -> Tensor:
    """Cylinder along y with edges rounded by ``r`` (exact)."""
    return _outside2(norm2(x, z) - (radius - r), y.abs() - (half - r)) - r


def cone2(q: Tensor, y: Tensor, r1: float, r2: float, half: float) -> Tensor:
    """Half-profile of a capped cone: q >= 0 is the radius, ``r1`` at y = -half, ``r2`` at y = +half (exact)."""
    cap_r = torch.where(y < 0, q.clamp_max(r1), q.clamp_max(r2))
    ax, ay = q - cap_r, y.abs() - half
    kx, ky = r2 - r1, 2.0 * half
    h = (((r2 - q) * kx + (half - y) * ky) * (1.0 / (kx * kx + ky * ky))).clamp_(0.0, 1.0)
    bx, by = q - r2 + h * kx, y - half + h * ky
    inside = (bx < 0) & (ay < 0)
    d = torch.minimum(torch.addcmul(ax * ax, ay, ay), torch.addcmul(bx * bx, by, by)).sqrt_()
    return torch.where(inside, -d, d)


def cone(x: Tensor, y: Tensor, z: Tensor, r1: float, r2: float, half: float, r: float = 0.0) -> Tensor:
    """Capped cone along y, radius ``r1`` below and ``r2`` above, rounded by ``r``."""
    return cone2(norm2(x, z), y, max(r1 - r, 0.0), max(r2 - r, 0.0), half - r) - r


def torus(x: Tensor, y: Tensor, z: Tensor, ring: Scalar, tube: Scalar) -> Tensor:
    """Torus around the z axis (exact); permute the arguments for another axis."""
    return norm2(norm2(x, y) - ring, z) - tube


def capsule(x: Tensor, y: Tensor, z: Tensor, a: Sequence[float], b: Sequence[float], r: Scalar) -> Tensor:
    """Capsule between points ``a`` and ``b`` (exact)."""
    bx, by, bz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    px, py, pz = x - a[0], y - a[1], z - a[2]
    h = ((px * bx + py * by + pz * bz) * (1.0 / (bx * bx + by * by + bz * bz))).clamp_(0.0, 1.0)
    return norm3(px - h * bx, py - h * by, pz - h * bz) - r


def horn(x: Tensor, y: Tensor, z: Tensor, a: Sequence[float], b: Sequence[float], ra: float, rb: float) -> Tensor:
    """Round cone: a capsule whose radius goes from ``ra`` to ``rb``, scaled so that it never overestimates."""
    bx, by, bz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    px, py, pz = x - a[0], y - a[1], z - a[2]
    length_sq = bx * bx + by * by + bz * bz
    h = ((px * bx + py * by + pz * bz) * (1.0 / length_sq)).clamp_(0.0, 1.0)
    slope = (rb - ra) / length_sq**0.5
    return (norm3(px - h * bx, py - h * by, pz - h * bz) - (ra + h * (rb - ra))) * (1.0 / (1.0 + slope * slope) ** 0.5)


def union(*parts: Tensor) -> Tensor:
    """Smallest distance of all parts."""
    d = parts[0]
    for part in parts[1:]:
        d = torch.minimum(d, part)
    return d


def blend(a: Tensor, b: Tensor, k: float) -> Tensor:
    """Union with a fillet of width ``k`` (quadratic smooth minimum)."""
    h = (k - (a - b).abs_()).clamp_min_(0.0)
    return torch.minimum(a, b) - h * h * (0.25 / k)


def cut(a: Tensor, b: Tensor) -> Tensor:
    """``a`` without ``b``."""
    return torch.maximum(a, -b)


def extrude(d2: Tensor, z: Tensor, half: float, r: float = 0.0) -> Tensor:
    """A flat shape with thickness 2 ``half`` along z; edges rounded outwards by ``r``."""
    return _outside2(d2, z.abs() - (half - r)) - r


def polygon(x: Tensor, y: Tensor, points: Sequence[tuple[float, float]]) -> Tensor:
    """Distance to a simple polygon (exact): nearest edge, sign from the winding of the outline."""
    best = (x - points[0][0]) ** 2 + (y - points[0][1]) ** 2
    flips = torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(points, [points[-1], *points[:-1]], strict=True):
        ex, ey = bx - ax, by - ay
        wx, wy = x - ax, y - ay
        h = ((wx * ex + wy * ey) * (1.0 / (ex * ex + ey * ey))).clamp_(0.0, 1.0)
        best = torch.minimum(best, torch.addcmul((wx - h * ex) ** 2, wy - h * ey, wy - h * ey))
        if ey != 0.0:
            crosses = (wy >= 0) != (y - by >= 0)
            flips ^= crosses & (wx < wy * (ex / ey))
    d = best.sqrt_()
    return torch.where(flips, -d, d)


def span(origin: Vec, direction: Vec, radius: float) -> tuple[Tensor, Tensor, Tensor]:
    """Where rays cross the bounding sphere of ``radius``.

    Directions need not have unit length; parameters are in units of them.

    Returns:
        (near, far, crosses): near is clamped to 0.
    """
    ox, oy, oz = origin
    dx, dy, dz = direction
    a = dx * dx + dy * dy + dz * dz
    b = ox * dx + oy * dy + oz * dz
    c = ox * ox + oy * oy + oz * oz - radius * radius
    disc = b * b - a * c
    root = disc.clamp_min(0.0).sqrt_()
    near, far = (-b - root) / a, (root - b) / a
    return near.clamp_min_(0.0), far, (disc > 0) & (far > 0)


def trace(
    distance: Distance,
    origin: Vec,
    direction: Vec,
    detail: Tensor,
    near: Tensor,
    far: Tensor,
    scale: Tensor,
    *,
    rounds: int = 12,
    per_round: int = 4,
    eps: float = 2e-3,
) -> Tensor:
    """First surface along each ray.

    Args:
        distance: The shape, in local coordinates.
        origin: Local ray origins, three tensors [N].
        direction: Local directions, three tensors [N], any length.
        detail: Shape detail per ray [N].
        near: Start parameter [N].
        far: End parameter [N].
        scale: [N] ray-parameter step that moves at most one local unit, i.e. 1 / |direction|.
        rounds: Number of rounds; finished rays leave the list after each.
        per_round: Steps per round.
        eps: A ray this close (local units) has arrived.

    Returns:
        [N] ray parameter of the hit, ``inf`` where nothing was hit.
    """
    out = torch.full_like(near, float("inf"))
    index = torch.arange(near.numel(), device=near.device)
    rays = torch.stack([*origin, *direction, detail, near, far, scale])
    for _ in range(rounds):
        if rays.shape[1] == 0:
            return out
        ox, oy, oz, dx, dy, dz, k, t, end, step = rays.unbind(0)
        h = t
        for _ in range(per_round):
            h = distance(torch.addcmul(ox, t, dx), torch.addcmul(oy, t, dy), torch.addcmul(oz, t, dz), k)
            t = torch.addcmul(t, h, step)
        hit = (h < eps) & (t < end)
        out[index[hit]] = t[hit]
        keep = ((h >= eps) & (t < end)).nonzero().squeeze(1)
        rays[7] = t
        rays, index = rays.index_select(1, keep), index.index_select(0, keep)
    return out


def soft_shadow(
    distance: Distance,
    origin: Vec,
    direction: Vec,
    detail: Tensor,
    near: Tensor,
    far: Tensor,
    scale: Tensor,
    *,
    width: float = 0.10,
    rounds: int = 5,
    per_round: int = 4,
) -> Tensor:
    """Share of an extended light that reaches the start of each ray, in [0, 1].

    The smallest ratio of distance to (light half-width x way) along the ray, negative inside, mapped smoothly to the
    lit share of a disc. Arguments as in :func:`trace`; ``width`` is the tangent of the light's angular half-width.
    """
    lit = torch.ones_like(near)
    index = torch.arange(near.numel(), device=near.device)
    rays = torch.stack([*origin, *direction, detail, near, far, scale, lit])
    for _ in range(rounds):
        if rays.shape[1] == 0:
            break
        ox, oy, oz, dx, dy, dz, k, t, end, step, low = rays.unbind(0)
        for _ in range(per_round):
            h = distance(torch.addcmul(ox, t, dx), torch.addcmul(oy, t, dy), torch.addcmul(oz, t, dz), k)
            ratio = torch.where(t < end, h * step / (width * t).clamp_min_(1e-3), low)
            low = torch.minimum(low, ratio)
            t = torch.addcmul(t, h.clamp(0.03, 0.5), step)
        lit[index] = low
        keep = ((low > -1.0) & (t < end)).nonzero().squeeze(1)
        rays[7], rays[10] = t, low
        rays, index = rays.index_select(1, keep), index.index_select(0, keep)
    lit = lit.clamp_(-1.0, 1.0)
    return 0.25 * (1.0 + lit) ** 2 * (2.0 - lit)


def normals(distance: Distance, x: Tensor, y: Tensor, z: Tensor, detail: Tensor, eps: float = 4e-3) -> Vec:
    """Surface normals (unit, local) from four distances at the corners of a small tetrahedron."""
    a = distance(x + eps, y - eps, z - eps, detail)
    b = distance(x - eps, y - eps, z + eps, detail)
    c = distance(x - eps, y + eps, z - eps, detail)
    d = distance(x + eps, y + eps, z + eps, detail)
    nx, ny, nz = a - b - c + d, c + d - a - b, b + d - a - c
    inv = 1.0 / norm3(nx, ny, nz).clamp_min_(1e-12)
    return nx * inv, ny * inv, nz * inv
