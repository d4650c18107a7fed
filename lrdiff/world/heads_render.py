"""Pictures of procedural heads with exact depth, normals and mask, from any rays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lrdiff.errors import ShapeError
from lrdiff.world.heads import Heads
from lrdiff.world.heads_paint import shaded
from lrdiff.world.heads_shape import distance, normals

NEAR, FAR, STEPS = 2.0, 3.6, 48
HIT, ARRIVED = 4e-3, 2e-4
PUT_ASIDE = 3
"""Steps after which rays that are done are put aside."""
RADIUS, FOCAL = 2.7, 2.7


@dataclass(frozen=True, slots=True)
class HeadView:
    """What rays saw, row by row.

    Attributes:
        image: [B, 3, S, S] in [-1, 1] on white.
        depth: [B, 1, S, S], distance along the ray to the surface; 3.6 where there is none.
        normal: [B, 3, S, S], unit, in world axes; 0 where there is no surface.
        mask: [B, 1, S, S], 1 on the head.
    """

    image: Tensor
    depth: Tensor
    normal: Tensor
    mask: Tensor


def rays_through(yaw: Tensor, pitch: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Return origins and unit directions [B, N, 3] of cameras on a sphere of radius 2.7 that look at the origin.

    Args:
        yaw: [B] in radians; positive looks from the +x side.
        pitch: [B] in radians; positive looks from above.
        places: [B or 1, N, 2], right and down from the middle of the picture, in [-0.5, 0.5]. The focal length is 2.7
            picture sides.
    """
    right, up, back = _axes(yaw, pitch)
    u, v = (places / FOCAL).split(1, -1)
    direction = u * right[:, None] - v * up[:, None] - back[:, None]
    return (RADIUS * back)[:, None].expand_as(direction), torch.nn.functional.normalize(direction, dim=-1)


def places_of(yaw: Tensor, pitch: Tensor, points: Tensor) -> Tensor:
    """Return where the cameras of :func:`rays_through` see points [B, N, 3]: [B, N, 2]."""
    x, y, z = (points @ axis[:, :, None] for axis in _axes(yaw, pitch))
    return FOCAL * torch.cat([x, -y], -1) / (RADIUS - z)


def eyes_at(yaw: Tensor, pitch: Tensor) -> Tensor:
    """Return where the cameras of :func:`rays_through` are, [B, 3]."""
    return RADIUS * _axes(yaw, pitch)[2]


def _axes(yaw: Tensor, pitch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return right, up and back of cameras, unit, [B, 3] each."""
    back = torch.stack([yaw.sin() * pitch.cos(), pitch.sin(), yaw.cos() * pitch.cos()], 1)
    right = torch.stack([yaw.cos(), torch.zeros_like(yaw), -yaw.sin()], 1)
    return right, torch.linalg.cross(back, right), back


def orbit_rays(yaw: Tensor, pitch: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return origins and unit directions [B, side^2, 3] of all pixels; see :func:`rays_through`."""
    centres = (torch.arange(side, device=yaw.device) + 0.5) / side - 0.5
    v, u = torch.meshgrid(centres, centres, indexing="ij")
    return rays_through(yaw, pitch, torch.stack([u, v], -1).reshape(1, -1, 2))


class Seen(NamedTuple):
    """What rays [B, N] see.

    Attributes:
        colour: [B, N, 3] in [0, 1], on white.
        depth: [B, N], distance along the ray to the surface; 3.6 where there is none.
        normal: [B, N, 3], unit; 0 where there is no surface.
        hit: [B, N], whether there is one.
        nearest: [B, N], distance along the ray to where it comes nearest to the surface: `depth`, if it hits.
    """

    colour: Tensor
    depth: Tensor
    normal: Tensor
    hit: Tensor
    nearest: Tensor


@torch.no_grad()
def trace(person: Heads, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Follow rays to the surface.

    Rays that have arrived, or have left, are put aside: most arrive within ten steps.

    Returns:
        Distances [B, N], 3.6 for a miss; hits [B, N]; and distances to where rays came nearest, [B, N].
    """
    shape = directions.shape[:2]
    whose = torch.arange(shape[0], device=directions.device).repeat_interleave(shape[1])
    origins, directions = (x.expand(*shape, 3).reshape(-1, 1, 3) for x in (origins, directions))
    end = torch.full((len(whose), 1), NEAR, device=directions.device)
    apart, nearest = torch.full_like(end, FAR), end.clone()
    going = torch.arange(len(whose), device=directions.device)
    here, start, along, t = person.pick(whose), origins, directions, end.clone()
    least, place = torch.full_like(end, FAR), end.clone()
    for number in range(STEPS + 1):
        gap = distance(here, start + t[..., None] * along)
        nearer = gap.abs() < least
        least, place = torch.where(nearer, gap.abs(), least), torch.where(nearer, t, place)
        if number % PUT_ASIDE == 0 or number == STEPS:
            end[going], apart[going], nearest[going] = t, gap.abs(), place
            staying = ((gap.abs() > ARRIVED) & (t < FAR))[:, 0]
            going, t, gap, least, place = (x[staying] for x in (going, t, gap, least, place))
            if not len(going):
                break
            here, start, along = here.pick(staying), start[staying], along[staying]
        t = (t + 0.85 * gap).clamp(NEAR, FAR)
    hit = ((apart < HIT) & (end < FAR)).reshape(shape)
    end, nearest = end.reshape(shape), nearest.reshape(shape)
    return torch.where(hit, end, FAR), hit, torch.where(hit, end, nearest)


@torch.no_grad()
def look(person: Heads, origins: Tensor, directions: Tensor) -> Seen:
    """Return what rays [B, N, 3] see."""
    t, hit, nearest = trace(person, origins, directions)
    origins, directions = origins.expand(*hit.shape, 3), directions.expand(*hit.shape, 3)
    seen, towards = person.pick(hit.nonzero()[:, 0]), directions[hit][:, None]
    points = origins[hit][:, None] + t[hit][:, None, None] * towards
    slope = normals(seen, points)
    colour, normal = torch.ones_like(directions).contiguous(), torch.zeros_like(directions).contiguous()
    colour[hit], normal[hit] = shaded(seen, points, slope, -towards)[:, 0], slope[:, 0]
    return Seen(colour, t, normal, hit, nearest)


@torch.no_grad()
def render(person: Heads, origins: Tensor, directions: Tensor, smooth: int = 1) -> HeadView:
    """Draw heads.

    Args:
        person: B heads.
        origins: [B, N, 3]; N is a square number, row by row.
        directions: [B, N, 3], unit.
        smooth: Rays on a side of each pixel that are averaged into the picture; depth, normal and mask are those of
            the upper left of the middle ones.

    Raises:
        ShapeError: N is no square of a multiple of `smooth`.
    """
    side = round(directions.shape[1] ** 0.5)
    if side * side != directions.shape[1] or side % smooth:
        raise ShapeError(f"{directions.shape[1]} rays are no square of {smooth} rays a pixel side; give side^2 rays")
    seen = look(person, origins, directions)

    def picture(values: Tensor) -> Tensor:
        return values.transpose(1, 2).reshape(len(values), -1, side, side)

    image = torch.nn.functional.avg_pool2d(picture(seen.colour), smooth)
    first = (smooth - 1) // 2
    exact = [
        picture(v)[:, :, first::smooth, first::smooth]
        for v in (seen.depth[..., None], seen.normal, seen.hit[..., None])
    ]
    return HeadView(image * 2 - 1, exact[0], exact[1], exact[2].float())


def orbit(person: Heads, yaw: Tensor, pitch: Tensor, side: int, smooth: int = 2) -> HeadView:
    """Draw heads from yaws and pitches [B] in radians."""
    return render(person, *orbit_rays(yaw, pitch, side * smooth), smooth=smooth)
