"""Visible surfaces: camera rays, what they hit first, and what the surface is like there.

A solid is traced inside its bounding sphere and in its own coordinates; solids of one shape share one call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lrdiff.world import paint, sdf
from lrdiff.world.paint import COLOURS, LAYOUTS
from lrdiff.world.scene import Scene
from lrdiff.world.sdf import Vec
from lrdiff.world.shapes import TRIMS, Shape
from lrdiff.world.solids import SOLID_SHAPES, Solid, apply

Hits = dict[int, tuple[Tensor, Tensor, Tensor]]
"""Per shape: pixel, solid and depth of every candidate that hit something, all [N]."""


class Rays:
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


def trace_solids(solids: Sequence[Solid], rays: Rays) -> tuple[Tensor, Hits]:
    """Depth buffer [B * P] and, per shape, (pixel, solid, depth) of every candidate that hit something."""
    batch, count = rays.dirs.shape[1:]
    device = rays.dirs.device
    depth = torch.full((batch * count,), float("inf"), device=device)
    hits: Hits = {}
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
            local = apply(solid.inverse, tuple(d.index_select(1, near).unbind(0)))  # type: ignore[arg-type]
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
        hits[shape_index] = (pixel, owner, t)
    return depth, hits


@dataclass
class Surface:
    """Visible object points of the whole batch, ordered by pixel.

    Attributes:
        pixel: [N] position in the batch's pixels, image after image.
        owner: [N] index of the solid.
        starts: ``starts[b]:starts[b + 1]`` are the points of image b.
        world: [3, N] world positions.
        normal: [3, N] unit normals, world.
        view: [3, N] unit directions from the camera.
        local: [3, N] positions in the solid's coordinates.
        local_normal: [3, N] unit normals in the solid's coordinates.
        open_: [N] share of the surroundings that the solid itself leaves open, in (0, 1].
        trim: [3, N] linear colour of the shape's trim.
        trimmed: [N] share of the trim, in [0, 1].
    """

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


def gather(solids: Sequence[Solid], rays: Rays, depth: Tensor, hits: Hits) -> Surface:
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
        pix, own, t = found
        front = (t == depth[pix]).nonzero().squeeze(1)
        at, own = position[pix[front]], own[front]
        m = inverse.index_select(1, own)
        rel = world.index_select(1, at) - centres.index_select(1, own)
        p = tuple(m[3 * i] * rel[0] + m[3 * i + 1] * rel[1] + m[3 * i + 2] * rel[2] for i in range(3))
        k = details[own]
        n = sdf.normals(shape.distance, p[0], p[1], p[2], k)
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
    return Surface(pixel, owner, bounds.tolist(), world, normal, view, local, local_normal, open_, trim, trimmed)


def _trim(shape: Shape, solids: Sequence[Solid], own: Tensor, p: Vec, k: Tensor) -> tuple[Tensor, Tensor]:
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


def albedo_of(solids: Sequence[Solid], surface: Surface) -> Tensor:
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
        pattern = (s.spec.pattern_scale, s.spec.phase, *SOLID_SHAPES[s.shape].stripes, layout)
        rows.append([*colours[0], *colours[1], *colours[2], *pattern])
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
