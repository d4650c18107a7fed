"""Light on the scene: the key light's shadows, contact darkening, and the ground and backdrop under both."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lrdiff.world import sdf
from lrdiff.world.places import PLACES
from lrdiff.world.scene import Scene
from lrdiff.world.solids import SOLID_SHAPES, Solid, apply
from lrdiff.world.surface import Rays


def lights_of(scenes: Sequence[Scene]) -> list[tuple[float, float, float]]:
    """Unit direction to the key light of each image."""
    return [
        (
            math.cos(s.light.elevation) * math.sin(s.light.azimuth),
            math.sin(s.light.elevation),
            math.cos(s.light.elevation) * math.cos(s.light.azimuth),
        )
        for s in scenes
    ]


def shadows(
    solids: Sequence[Solid],
    points: Tensor,
    starts: Sequence[int],
    lights: Sequence[tuple[float, float, float]],
    wanted: Tensor,
) -> Tensor:
    """Share of the key light at world points [3, N] (image b: starts[b]:starts[b + 1]); 1 where not ``wanted``."""
    device = points.device
    lit = torch.ones(points.shape[1], device=device)
    groups: dict[int, list[Solid]] = {}
    for solid in solids:
        groups.setdefault(solid.shape, []).append(solid)
    for shape_index, members in groups.items():
        shape = SOLID_SHAPES[shape_index]
        rows, index = [], []
        for solid in members:
            low, high = starts[solid.image], starts[solid.image + 1]
            light = lights[solid.image]
            rel = tuple(points[i, low:high] - solid.centre[i] for i in range(3))
            along = rel[0] * light[0] + rel[1] * light[1] + rel[2] * light[2]
            limit = rel[0] * rel[0] + rel[1] * rel[1] + rel[2] * rel[2] - (solid.reach * 1.06) ** 2
            meets = (along * along > limit) & ((along < 0) | (limit < 0)) & wanted[low:high]
            at = meets.nonzero().squeeze(1)
            o = apply(solid.inverse, tuple(r.index_select(0, at) for r in rel))  # type: ignore[arg-type]
            d = [sum(row[k] * light[k] for k in range(3)) for row in solid.inverse]
            detail = solid.spec.detail if solid.part is None else 0.0
            rest = torch.tensor([*d, detail], device=device)[:, None].expand(4, at.numel())
            rows.append(torch.cat([torch.stack(o), rest]))
            index.append(at + low)
        ray, at = torch.cat(rows, 1), torch.cat(index)
        origin, direction = (ray[0], ray[1], ray[2]), (ray[3], ray[4], ray[5])
        near, far, crosses = sdf.span(origin, direction, shape.radius * 1.06)
        keep = crosses.nonzero().squeeze(1)
        v = torch.cat([ray, torch.stack([near, far])]).index_select(1, keep).unbind(0)
        scale = 1.0 / sdf.norm3(v[3], v[4], v[5])
        share = sdf.soft_shadow(shape.distance, v[:3], v[3:6], v[6], torch.maximum(v[7], 0.03 * scale), v[8], scale)  # type: ignore[arg-type]
        lit.scatter_reduce_(0, at[keep], share, "amin")
    return lit


def contact(solids: Sequence[Solid], points: Tensor, count: int, on_ground: Tensor) -> Tensor:
    """Ambient openness of ground points [3, B * count]: darker under and beside objects."""
    open_ = torch.ones(points.shape[1], device=points.device)
    for solid in solids:
        low = solid.image * count
        shape = SOLID_SHAPES[solid.shape]
        rel = tuple(points[i, low : low + count] - solid.centre[i] for i in range(3))
        reach = solid.reach * 1.5
        near = (rel[0] * rel[0] + rel[1] * rel[1] + rel[2] * rel[2] < reach * reach) & on_ground[low : low + count]
        at = near.nonzero().squeeze(1)
        unit = solid.reach / shape.radius
        detail = torch.full((at.numel(),), solid.spec.detail if solid.part is None else 0.0, device=points.device)
        share = torch.ones_like(detail)
        for lift, weight in ((0.12, 0.42), (0.40, 0.42)):
            up = (rel[0].index_select(0, at), rel[1].index_select(0, at) + lift * unit, rel[2].index_select(0, at))
            h = shape.distance(*apply(solid.inverse, up), detail)
            share = share * (1.0 - weight * (1.0 - h / lift).clamp(0.0, 1.0))
        open_[at + low] *= share
    return open_


def surroundings_of(scenes: Sequence[Scene], device: torch.device) -> Tensor:
    """[12, B]: sky, horizon, floor and key colours per image."""
    rows = []
    for scene in scenes:
        place, light = PLACES[scene.place], scene.light
        warm = (1.0 + 0.10 * light.warmth, 1.0, 1.0 - 0.12 * light.warmth)
        key = [c * light.strength * w for c, w in zip(place.key, warm, strict=True)]
        rows.append([*place.sky, *place.horizon, *place.floor, *key])
    return torch.tensor(rows, device=device).T.contiguous()


def background(
    scenes: Sequence[Scene],
    solids: Sequence[Solid],
    rays: Rays,
    lights: Sequence[tuple[float, float, float]],
    around: Tensor,
    seen: Tensor,
) -> Tensor:
    """Ground and backdrop, lit and shadowed, linear [3, B, P]; shadows are traced where the ground is ``seen`` only."""
    batch, count = rays.dirs.shape[1:]
    device = rays.dirs.device
    dx, dy, dz = rays.dirs.unbind(0)
    eye = torch.tensor(rays.eye, device=device)
    ex, ey, ez = (eye[:, i : i + 1] for i in range(3))
    radius = torch.tensor([PLACES[s.place].radius for s in scenes], device=device)[:, None]
    level = dx * dx + dz * dz
    b = ex * dx + ez * dz
    far = ((b * b - level * (ex * ex + ez * ez - radius * radius)).clamp_min(0.0).sqrt() - b) / level.clamp_min(1e-6)
    fall = ey / (-dy).clamp_min(1e-4)
    ground_t = torch.minimum(fall, far)
    gx, gz = ex + dx * ground_t, ez + dz * ground_t
    r = torch.sqrt(gx * gx + gz * gz)
    wx, wy, wz = ex + dx * far, ey + dy * far, ez + dz * far
    turn = torch.atan2(wx, wz) * (1.0 / math.tau)
    footprint = rays.pixel * ground_t / (-dy).clamp_min(0.02).sqrt()
    on_ground = (0.5 + (far - fall) / (rays.pixel * far * 1.2) * (-dy).clamp_min(0.02)).clamp(0.0, 1.0)
    colour = torch.empty(3, batch, count, device=device)
    wall = torch.empty(3, batch, count, device=device)
    haze = torch.tensor([PLACES[s.place].haze for s in scenes], device=device)[:, None]
    for index in sorted({s.place for s in scenes}):
        place = PLACES[index]
        at = torch.tensor([i for i, s in enumerate(scenes) if s.place == index], device=device)
        flat = [a.index_select(0, at).reshape(-1) for a in (gx, gz, r, footprint)]
        colour[:, at] = place.ground(*flat).reshape(3, -1, count)
        flat = [a.index_select(0, at).reshape(-1) for a in (turn, wy, dy, rays.pixel * far)]
        wall[:, at] = place.backdrop(*flat).reshape(3, -1, count)
    points = torch.stack([gx, torch.zeros_like(gx), gz]).reshape(3, -1)
    near_ground = (on_ground > 0).reshape(-1) & seen
    starts = [i * count for i in range(batch + 1)]
    lit = shadows(solids, points, starts, lights, near_ground).reshape(batch, count)
    open_ = contact(solids, points, count, near_ground).reshape(batch, count)
    height = torch.tensor([light[1] for light in lights], device=device)[:, None]
    sky, key = around[0:3, :, None] * 0.5 + around[3:6, :, None] * 0.5, around[9:12, :, None]
    # Ground textures are drawn as they should look in full light, so the light is normalised to 1 there.
    full = (key * height + sky).amax(0, keepdim=True).clamp_min(1e-3)
    light = (key * (height * lit) + sky * open_) / full
    colour = colour * light
    mist = 1.0 - torch.exp(-haze * r)
    colour = colour + (around[3:6, :, None] / 0.62 - colour) * mist
    return wall + (colour - wall) * on_ground
