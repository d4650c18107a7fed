"""From scenes to images: a deferred sphere-tracing renderer in plain tensor operations.

Objects are traced at ``SUPERSAMPLE`` times the image size, one solid at a time inside its bounding sphere and in its
own coordinates; solids of one shape share one call. The ground and the backdrop are filtered analytically and shaded
once per pixel. All light is linear until the last step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lrdiff.world import paint, sdf
from lrdiff.world.accessories import FORM_NAMES, FORMS
from lrdiff.world.paint import COLOURS, LAYOUTS, MATERIALS, Surroundings
from lrdiff.world.places import PLACES
from lrdiff.world.scene import ObjectSpec, Part, Scene
from lrdiff.world.sdf import Vec
from lrdiff.world.shapes import SHAPES, TRIMS, Shape

SUPERSAMPLE = 2
CHUNK = 32
SLOTS = 3
GLOWING = MATERIALS.index("glowing")
SOLID_SHAPES: tuple[Shape, ...] = (*SHAPES, *FORMS)


@dataclass(frozen=True)
class Rendered:
    """A batch of images and what can be seen in them.

    Attributes:
        images: [B, 3, size, size] float32 in [-1, 1], sRGB.
        masks: [B, 3, size, size] bool; slot i holds the pixels in which object i (with its accessories) is in front.
        boxes: [B, 3, 4] int64 pixel boxes (left, top, right, bottom; the last two exclusive); zeros for empty slots.
    """

    images: Tensor
    masks: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class _Solid:
    """One traceable body: an object or an accessory of one, with its world-to-local map."""

    image: int
    slot: int
    shape: int
    inverse: tuple[tuple[float, float, float], ...]
    centre: tuple[float, float, float]
    reach: float
    spec: ObjectSpec
    part: Part | None


def _matmul(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> tuple[tuple[float, float, float], ...]:
    return tuple(tuple(sum(a[i][k] * b[k][j] for k in range(3)) for j in range(3)) for i in range(3))  # type: ignore[return-value]


def _object_solid(image: int, slot: int, spec: ObjectSpec) -> tuple[_Solid, tuple[tuple[float, float, float], ...]]:
    shape = SHAPES[spec.shape]
    sx, sy = spec.size * math.exp(spec.wide), spec.size * math.exp(spec.tall)
    c, s = math.cos(spec.yaw), math.sin(spec.yaw)
    inverse = ((c / sx, 0.0, -s / sx), (0.0, 1.0 / sy, 0.0), (s / sx, 0.0, c / sx))
    forward = ((c * sx, 0.0, s * sx), (0.0, sy, 0.0), (-s * sx, 0.0, c * sx))
    centre = (spec.x, shape.rest * sy, spec.z)
    return _Solid(image, slot, spec.shape, inverse, centre, shape.radius * max(sx, sy), spec, None), forward


def _part_solid(parent: _Solid, forward: Sequence[Sequence[float]], part: Part) -> _Solid:
    index = FORM_NAMES.index(part.form)
    length = math.sqrt(sum(v * v for v in part.up))
    up = [v / length for v in part.up]
    # The form's z axis stays as close to the object's front as its y axis allows.
    front = (0.0, 0.0, 1.0) if abs(up[2]) < 0.9 else (0.0, 1.0, 0.0)
    side = [
        up[1] * front[2] - up[2] * front[1],
        up[2] * front[0] - up[0] * front[2],
        up[0] * front[1] - up[1] * front[0],
    ]
    length = math.sqrt(sum(v * v for v in side))
    side = [v / length for v in side]
    ahead = [side[1] * up[2] - side[2] * up[1], side[2] * up[0] - side[0] * up[2], side[0] * up[1] - side[1] * up[0]]
    rows = [[v / size for v in axis] for axis, size in zip((side, up, ahead), part.size, strict=True)]
    offset = [sum(forward[i][k] * part.at[k] for k in range(3)) for i in range(3)]
    centre = tuple(parent.centre[i] + offset[i] for i in range(3))
    scale = parent.reach / SHAPES[parent.shape].radius
    return _Solid(
        parent.image, parent.slot, len(SHAPES) + index, _matmul(rows, parent.inverse), centre,  # type: ignore[arg-type]
        FORMS[index].radius * max(part.size) * scale, parent.spec, part,
    )  # fmt: skip


def _solids(scenes: Sequence[Scene]) -> list[_Solid]:
    found: list[_Solid] = []
    for image, scene in enumerate(scenes):
        for slot, spec in enumerate(scene.objects):
            solid, forward = _object_solid(image, slot, spec)
            found.append(solid)
            if spec.look is not None:
                found.extend(_part_solid(solid, forward, part) for part in spec.look.parts)
    return found


def _apply(m: Sequence[Sequence[float]], v: Vec) -> Vec:
    x, y, z = v
    return tuple(x * r[0] + y * r[1] + z * r[2] for r in m)  # type: ignore[return-value]


class _Rays:
    """Camera rays of a batch: ``eye[b]`` (three floats) and unit directions [3, B, n * n]."""

    def __init__(self, scenes: Sequence[Scene], n: int, device: torch.device) -> None:
        self.eye: list[tuple[float, float, float]] = []
        basis = torch.empty(9, len(scenes))
        for b, scene in enumerate(scenes):
            cam = scene.camera
            ca, sa, ce, se = (
                math.cos(cam.azimuth),
                math.sin(cam.azimuth),
                math.cos(cam.elevation),
                math.sin(cam.elevation),
            )
            back = (ce * sa, se, ce * ca)
            self.eye.append(tuple(t + cam.distance * v for t, v in zip(cam.target, back, strict=True)))  # type: ignore[arg-type]
            half = math.tan(cam.fov / 2)
            right = (ca * half, 0.0, -sa * half)
            up = (-se * sa * half, ce * half, -se * ca * half)
            basis[:, b] = torch.tensor([*right, *up, *(-v for v in back)])
        basis = basis.to(device)[:, :, None]
        steps = (torch.arange(n, device=device, dtype=torch.float32) + 0.5) * (2.0 / n) - 1.0
        u, v = steps.repeat(n), -steps.repeat_interleave(n)
        d = [u * basis[i] + v * basis[3 + i] + basis[6 + i] for i in range(3)]
        self.dirs = torch.stack(paint.unit((d[0], d[1], d[2])))
        self.pixel = torch.tensor([2.0 * math.tan(s.camera.fov / 2) / n for s in scenes], device=device)[:, None]


def _trace(solids: Sequence[_Solid], rays: _Rays) -> tuple[Tensor, dict[int, list[tuple[Tensor, Tensor, Tensor]]]]:
    """Depth buffer [B * P] and, per shape, (pixel, solid, depth) of every candidate that hit something."""
    batch, count = rays.dirs.shape[1:]
    device = rays.dirs.device
    depth = torch.full((batch * count,), float("inf"), device=device)
    hits: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}
    groups: dict[int, list[int]] = {}
    for i, solid in enumerate(solids):
        groups.setdefault(solid.shape, []).append(i)
    for shape_index, members in groups.items():
        shape = SOLID_SHAPES[shape_index]
        origins, dirs, details, pixels, owners = [], [], [], [], []
        for i in members:
            solid = solids[i]
            d = rays.dirs[:, solid.image]
            eye = rays.eye[solid.image]
            rel = [e - c for e, c in zip(eye, solid.centre, strict=True)]
            along = d[0] * rel[0] + d[1] * rel[1] + d[2] * rel[2]
            limit = sum(v * v for v in rel) - solid.reach**2
            near = ((along < 0) & (along * along > limit)).nonzero().squeeze(1)
            local = _apply(solid.inverse, tuple(d.index_select(1, near).unbind(0)))  # type: ignore[arg-type]
            dirs.append(torch.stack(local))
            start = [sum(row[k] * rel[k] for k in range(3)) for row in solid.inverse]
            origins.append(torch.tensor(start, device=device)[:, None].expand(3, near.numel()))
            details.append(torch.full((near.numel(),), solid.spec.detail if solid.part is None else 0.0, device=device))
            pixels.append(near + solid.image * count)
            owners.append(torch.full_like(near, i))
        o, d = torch.cat(origins, 1), torch.cat(dirs, 1)
        k, pixel, owner = torch.cat(details), torch.cat(pixels), torch.cat(owners)
        origin, direction = (o[0], o[1], o[2]), (d[0], d[1], d[2])
        near, far, crosses = sdf.span(origin, direction, shape.radius)
        keep = crosses.nonzero().squeeze(1)
        pick = torch.stack([*origin, *direction, k, near, far]).index_select(1, keep).unbind(0)
        scale = 1.0 / sdf.norm3(*pick[3:6])
        t = sdf.trace(shape.distance, pick[:3], pick[3:6], pick[6], pick[7], pick[8], scale)  # type: ignore[arg-type]
        found = torch.isfinite(t).nonzero().squeeze(1)
        pixel, owner, t = pixel[keep[found]], owner[keep[found]], t[found]
        depth.scatter_reduce_(0, pixel, t, "amin")
        hits[shape_index] = [(pixel, owner, t)]
    return depth, hits


@dataclass
class _Surface:
    """Visible object points of the whole batch, ordered by pixel. ``starts[b]:starts[b + 1]`` is image b."""

    pixel: Tensor
    owner: Tensor
    starts: list[int]
    world: Tensor
    normal: Tensor
    view: Tensor
    local: Tensor
    local_normal: Tensor
    open_: Tensor
    trim: Tensor
    trimmed: Tensor


def _gather(
    solids: Sequence[_Solid], rays: _Rays, depth: Tensor, hits: dict[int, list[tuple[Tensor, Tensor, Tensor]]]
) -> _Surface:
    """Points, normals, openness and trim of the visible surface."""
    batch, count = rays.dirs.shape[1:]
    device = depth.device
    pixel = torch.isfinite(depth).nonzero().squeeze(1)
    total = pixel.numel()
    position = torch.empty(batch * count, dtype=torch.long, device=device)
    position[pixel] = torch.arange(total, device=device)
    bounds = torch.searchsorted(pixel, torch.arange(batch + 1, device=device) * count)
    view = rays.dirs.reshape(3, -1).index_select(1, pixel)
    eyes = torch.tensor(rays.eye, device=device).T.contiguous()
    world = eyes[:, pixel // count] + view * depth[pixel]
    inverse = torch.tensor([[v for row in s.inverse for v in row] for s in solids], device=device).T.contiguous()
    centres = torch.tensor([s.centre for s in solids], device=device).T.contiguous()
    details = torch.tensor([s.spec.detail if s.part is None else 0.0 for s in solids], device=device)
    owner = torch.zeros(total, dtype=torch.long, device=device)
    local, local_normal, normal, trim = (torch.zeros(3, total, device=device) for _ in range(4))
    open_, trimmed = torch.ones(total, device=device), torch.zeros(total, device=device)
    for shape_index, found in hits.items():
        shape = SOLID_SHAPES[shape_index]
        pix, own, t = found[0]
        front = (t == depth[pix]).nonzero().squeeze(1)
        at, own = position[pix[front]], own[front]
        m = inverse.index_select(1, own)
        rel = world.index_select(1, at) - centres.index_select(1, own)
        p = tuple(m[3 * i] * rel[0] + m[3 * i + 1] * rel[1] + m[3 * i + 2] * rel[2] for i in range(3))
        k = details[own]
        n = sdf.normals(shape.distance, *p, k)
        nw = paint.unit(tuple(m[i] * n[0] + m[3 + i] * n[1] + m[6 + i] * n[2] for i in range(3)))  # type: ignore[arg-type]
        occlusion = torch.ones_like(k)
        for reach, weight in ((0.10, 0.45), (0.28, 0.40)):
            h = shape.distance(p[0] + n[0] * reach, p[1] + n[1] * reach, p[2] + n[2] * reach, k)
            occlusion = occlusion * (1.0 - weight * (1.0 - h / reach).clamp(0.0, 1.0))
        owner[at] = own
        local[:, at], local_normal[:, at], normal[:, at] = torch.stack(p), torch.stack(n), torch.stack(nw)
        open_[at] = occlusion
        if shape.trim is not None:
            colour, share = _trim(shape, solids, own, p, k)  # type: ignore[arg-type]
            trim[:, at], trimmed[at] = colour, share
    return _Surface(pixel, owner, bounds.tolist(), world, normal, view, local, local_normal, open_, trim, trimmed)


def _trim(shape: Shape, solids: Sequence[_Solid], own: Tensor, p: Vec, k: Tensor) -> tuple[Tensor, Tensor]:
    """Colour [3, N] and share [N] of the shape's own trim."""
    assert shape.trim is not None
    regions = shape.trim(*p, k)
    colour, share = torch.zeros(3, k.numel(), device=k.device), torch.zeros_like(k)
    for name, d in regions:
        table = torch.tensor(TRIMS[name], device=k.device).expand(len(solids), 3).clone()
        for i in own.unique().tolist():
            look = solids[i].spec.look
            for other, rgb in () if look is None else look.trims:
                if other == name:
                    table[i] = torch.tensor(rgb, device=k.device)
        inside = (0.5 - d * 60.0).clamp(0.0, 1.0)
        colour = colour + (table[own].T - colour) * inside
        share = torch.maximum(share, inside)
    return colour / share.clamp_min(1e-3), share


def _albedo(solids: Sequence[_Solid], surface: _Surface) -> Tensor:
    """Surface colour [3, N] from pattern, trim and painted spots."""
    device = surface.pixel.device
    rows = []
    for s in solids:
        look = s.spec.look
        if s.part is not None:
            colours, layout = (s.part.rgb,) * 3, 0
        elif look is not None:
            colours, layout = look.colours, LAYOUTS.index(look.layout)
        else:
            colour = COLOURS[s.spec.colour]
            colours, layout = (colour.rgb, colour.second, colour.second), s.spec.pattern
        rows.append(
            [
                *colours[0],
                *colours[1],
                *colours[2],
                s.spec.pattern_scale,
                s.spec.phase,
                *SOLID_SHAPES[s.shape].stripes,
                layout,
            ]
        )
    table = torch.tensor(rows, device=device).T.contiguous()
    values = table.index_select(1, surface.owner)
    albedo = values[0:3].clone()
    layout_of = values[14]
    for layout in sorted({int(row[14]) for row in rows} - {0}):
        at = (layout_of == layout).nonzero().squeeze(1)
        v, p, n = (a.index_select(1, at) for a in (values, surface.local, surface.local_normal))
        second, third = paint.pattern(layout, tuple(p), tuple(n), (v[11], v[12], v[13]), v[9], v[10])  # type: ignore[arg-type]
        mixed = v[0:3] + (v[3:6] - v[0:3]) * second
        albedo[:, at] = mixed + (v[6:9] - mixed) * third
    albedo = albedo + (surface.trim - albedo) * surface.trimmed
    for i, s in enumerate(solids):
        if s.part is None and s.spec.look is not None and s.spec.look.spots:
            at = (surface.owner == i).nonzero().squeeze(1)
            p = surface.local[:, at]
            own = albedo[:, at]
            for spot in s.spec.look.spots:
                d = sdf.sphere(p[0] - spot.at[0], p[1] - spot.at[1], p[2] - spot.at[2], spot.radius)
                own = own + (torch.tensor(spot.rgb, device=device)[:, None] - own) * (0.5 - d * 50.0).clamp(0.0, 1.0)
            albedo[:, at] = own
    return albedo


def _lights(scenes: Sequence[Scene]) -> list[tuple[float, float, float]]:
    """Unit direction to the key light of each image."""
    return [
        (
            math.cos(s.light.elevation) * math.sin(s.light.azimuth),
            math.sin(s.light.elevation),
            math.cos(s.light.elevation) * math.cos(s.light.azimuth),
        )
        for s in scenes
    ]


def _shadows(
    solids: Sequence[_Solid],
    points: Tensor,
    starts: Sequence[int],
    lights: Sequence[tuple[float, float, float]],
    wanted: Tensor,
) -> Tensor:
    """Share of the key light at world points [3, N] (image b: starts[b]:starts[b + 1]); 1 where not ``wanted``."""
    device = points.device
    lit = torch.ones(points.shape[1], device=device)
    groups: dict[int, list[_Solid]] = {}
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
            o = _apply(solid.inverse, tuple(r.index_select(0, at) for r in rel))  # type: ignore[arg-type]
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


def _contact(solids: Sequence[_Solid], points: Tensor, count: int, on_ground: Tensor) -> Tensor:
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
            h = shape.distance(*_apply(solid.inverse, up), detail)
            share = share * (1.0 - weight * (1.0 - h / lift).clamp(0.0, 1.0))
        open_[at + low] *= share
    return open_


def _surroundings(scenes: Sequence[Scene], device: torch.device) -> Tensor:
    """[12, B]: sky, horizon, floor and key colours per image."""
    rows = []
    for scene in scenes:
        place, light = PLACES[scene.place], scene.light
        warm = (1.0 + 0.10 * light.warmth, 1.0, 1.0 - 0.12 * light.warmth)
        key = [c * light.strength * w for c, w in zip(place.key, warm, strict=True)]
        rows.append([*place.sky, *place.horizon, *place.floor, *key])
    return torch.tensor(rows, device=device).T.contiguous()


def _background(
    scenes: Sequence[Scene],
    solids: Sequence[_Solid],
    rays: _Rays,
    lights: Sequence[tuple[float, float, float]],
    around: Tensor,
) -> Tensor:
    """Ground and backdrop, lit and shadowed, linear [3, B, P]."""
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
    near_ground = (on_ground > 0).reshape(-1)
    starts = [i * count for i in range(batch + 1)]
    lit = _shadows(solids, points, starts, lights, near_ground).reshape(batch, count)
    open_ = _contact(solids, points, count, near_ground).reshape(batch, count)
    height = torch.tensor([light[1] for light in lights], device=device)[:, None]
    sky, key = around[0:3, :, None] * 0.5 + around[3:6, :, None] * 0.5, around[9:12, :, None]
    # Ground textures are drawn as they should look in full light, so the light is normalised to 1 there.
    full = (key * height + sky).amax(0, keepdim=True).clamp_min(1e-3)
    light = (key * (height * lit) + sky * open_) / full
    colour = colour * light
    mist = 1.0 - torch.exp(-haze * r)
    colour = colour + (around[3:6, :, None] / 0.62 - colour) * mist
    return wall + (colour - wall) * on_ground


def _halo(emission: Tensor, radii: Tensor) -> Tensor:
    """Light spilled around glowing objects: two wide blurs of what they emit, [B, 3, n, n]."""
    n = emission.shape[-1]
    small = F.avg_pool2d(emission, 4) if n % 4 == 0 else emission
    m = small.shape[-1]
    total = torch.zeros_like(small)
    for width, weight in ((0.045, 0.32), (0.14, 0.38)):
        steps = torch.arange(m, device=emission.device, dtype=torch.float32)
        kernel = torch.exp(-0.5 * ((steps[:, None] - steps[None]) / (width * m)) ** 2)
        kernel = kernel / (width * m * math.sqrt(math.tau))
        total = total + weight * torch.einsum("ij,bcjk,lk->bcil", kernel, small, kernel)
    return F.interpolate(total, size=(n, n), mode="bilinear", align_corners=False)


def _tone(colour: Tensor) -> Tensor:
    """Linear light to sRGB in [-1, 1] with a soft shoulder."""
    colour = colour.clamp_min(0.0)
    colour = torch.where(colour > 0.7, 0.7 + 0.3 * (1.0 - torch.exp(-(colour - 0.7) / 0.3)), colour)
    encoded = torch.where(colour <= 0.0031308, colour * 12.92, 1.055 * colour.clamp_min(1e-6) ** (1 / 2.4) - 0.055)
    return encoded.clamp(0.0, 1.0) * 2.0 - 1.0


def _boxes(masks: Tensor) -> Tensor:
    rows, columns = masks.any(3), masks.any(2)
    n = masks.shape[-1]

    def ends(line: Tensor) -> tuple[Tensor, Tensor]:
        steps = torch.arange(n, device=line.device)
        return torch.where(line, steps, n).amin(-1), torch.where(line, steps + 1, 0).amax(-1)

    (top, bottom), (left, right) = ends(rows), ends(columns)
    return torch.stack([left, top, right, bottom], -1) * masks.any(3).any(2)[..., None]


def _render_chunk(scenes: Sequence[Scene], size: int, device: torch.device) -> Rendered:
    fine = size * SUPERSAMPLE
    batch, count = len(scenes), fine * fine
    solids, lights, around = _solids(scenes), _lights(scenes), _surroundings(scenes, device)
    rays = _Rays(scenes, fine, device)
    depth, hits = _trace(solids, rays)
    surface = _gather(solids, rays, depth, hits)
    image = surface.pixel // count
    light = torch.tensor(lights, device=device).T.contiguous().index_select(1, image)
    n = surface.normal
    facing = n[0] * light[0] + n[1] * light[1] + n[2] * light[2] > 0
    starts = surface.starts
    lit = _shadows(solids, surface.world + n * 0.02, starts, lights, facing)
    low = torch.exp(-surface.world[1].clamp_min(0.0) * 3.0) * (0.5 - 0.5 * n[1])
    open_ = surface.open_ * (1.0 - 0.6 * low)
    material = torch.tensor([s.spec.material for s in solids], device=device)[surface.owner]
    env = around.index_select(1, image)
    albedo = _albedo(solids, surface)
    colour, emission = paint.shade(
        material, albedo, tuple(n), tuple(surface.view), tuple(light), lit, open_,  # type: ignore[arg-type]
        Surroundings(env[0:3], env[3:6], env[6:9], env[9:12]),
    )  # fmt: skip
    slot = torch.tensor([s.slot for s in solids], device=device)[surface.owner]
    layers = torch.zeros(10, batch * count, device=device)
    layers[0:3, surface.pixel] = colour.clamp_max(1.6)
    layers[3:6, surface.pixel] = emission
    layers[6, surface.pixel] = 1.0
    layers[7:10, surface.pixel] = F.one_hot(slot, SLOTS).T.to(layers.dtype)
    pooled = F.avg_pool2d(layers.reshape(10, batch, fine, fine), SUPERSAMPLE)
    back = _background(scenes, solids, _Rays(scenes, size, device), lights, around).reshape(3, batch, size, size)
    picture = (pooled[0:3] + back * (1.0 - pooled[6])).transpose(0, 1)
    glowing = sorted({s.image for s in solids if s.spec.material == GLOWING})
    if glowing:
        at = torch.tensor(glowing, device=device)
        alpha = pooled[6, at][:, None]
        picture[at] = picture[at] + _halo(pooled[3:6].transpose(0, 1)[at], alpha) * (1.0 - 0.85 * alpha)
    masks = (pooled[7:10] >= 0.5).transpose(0, 1).contiguous()
    return Rendered(_tone(picture).contiguous(), masks, _boxes(masks))


@torch.no_grad()
def render(scenes: Sequence[Scene], size: int = 128, device: str | torch.device = "cpu") -> Rendered:
    """Render scenes.

    An image depends on its scene and on ``size`` only, not on the other scenes of the call.

    Args:
        scenes: Any number of scenes.
        size: Height and width in pixels.
        device: Where to compute; the result stays there.
    """
    where = torch.device(device)
    chunks = [_render_chunk(scenes[i : i + CHUNK], size, where) for i in range(0, len(scenes), CHUNK)]
    return Rendered(*(torch.cat([getattr(c, name) for c in chunks]) for name in ("images", "masks", "boxes")))
