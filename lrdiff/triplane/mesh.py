"""A head's surface as a coloured mesh: marching tetrahedra on a grid of densities, written as .glb."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from lrdiff.errors import ConfigError
from lrdiff.files import write_bytes
from lrdiff.triplane.generator import TriplaneGenerator

SPLIT = ((0, 1, 3, 7), (0, 3, 2, 7), (0, 2, 6, 7), (0, 6, 4, 7), (0, 4, 5, 7), (0, 5, 1, 7))
"""Six tetrahedra around a cube's diagonal; corner number = 4 x + 2 y + z. Neighbouring cubes cut faces alike."""
FLOAT, UINT, ARRAY, ELEMENTS = 5126, 5125, 34962, 34963


@dataclass(frozen=True, slots=True)
class Mesh:
    """Triangles.

    Attributes:
        vertices: [V, 3] in world units.
        faces: [F, 3] indices, counter-clockwise seen from outside.
        colours: [V, 3] in [0, 1].
    """

    vertices: Tensor
    faces: Tensor
    colours: Tensor


def marching(field: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """Return the surface field = level, of what lies above it.

    Args:
        field: [X, Y, Z] on a grid.
        level: Between the field's extremes.

    Returns:
        Vertices [V, 3] in grid steps, and faces [F, 3], counter-clockwise seen from below the level.

    Raises:
        ConfigError: The field does not cross the level.
    """
    low, high = float(field.min()), float(field.max())
    if not low < level < high:
        raise ConfigError(f"level: {level:g} is not between the extremes {low:.3g} and {high:.3g}; choose another")
    shape = field.shape
    cells = [size - 1 for size in shape]
    ids = torch.arange(field.numel(), device=field.device).reshape(shape)
    steps = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    blocks = [ids[x : x + cells[0], y : y + cells[1], z : z + cells[2]] for x, y, z in steps]
    corners = torch.stack(blocks, -1).reshape(-1, 8)
    flat = field.flatten()
    mixed = (flat[corners] > level).any(1) & (flat[corners] <= level).any(1)
    tetrahedra = torch.cat([corners[mixed][:, list(split)] for split in SPLIT])
    inside = flat[tetrahedra] > level
    order = inside.int().sort(dim=1, descending=True, stable=True).indices
    tetrahedra, count = tetrahedra.gather(1, order), inside.sum(1)
    pairs = torch.cat([_triangles(tetrahedra[count == n], n) for n in (1, 2, 3)])
    edges, faces = torch.unique(pairs.reshape(-1, 2), dim=0, return_inverse=True)
    above, below = flat[edges[:, 0]], flat[edges[:, 1]]
    share = ((above - level) / (above - below))[:, None]
    start, end = _places(edges[:, 0], shape), _places(edges[:, 1], shape)
    vertices, faces = start + share * (end - start), faces.reshape(-1, 3)
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    outwards = (end - start)[faces].sum(1)
    wrong = (torch.linalg.cross(b - a, c - a) * outwards).sum(1) < 0
    return vertices, torch.where(wrong[:, None], faces.flip(1), faces)


def _triangles(tetrahedra: Tensor, count: int) -> Tensor:
    """Return triangles [F, 3, 2] of cut edges (inside, outside); a tetrahedron's inside corners come first."""
    cuts = {
        1: (((0, 1), (0, 2), (0, 3)),),
        2: (((0, 2), (0, 3), (1, 3)), ((0, 2), (1, 3), (1, 2))),
        3: (((0, 3), (1, 3), (2, 3)),),
    }[count]
    return torch.cat([tetrahedra[:, torch.tensor(cut, device=tetrahedra.device)] for cut in cuts])


def _places(ids: Tensor, shape: torch.Size) -> Tensor:
    return torch.stack([ids // (shape[1] * shape[2]), ids // shape[2] % shape[1], ids % shape[2]], 1).float()


@torch.no_grad()
def head_mesh(
    generator: TriplaneGenerator, ws: Tensor, resolution: int = 96, level: float = 10.0, chunk: int = 65536
) -> Mesh:
    """Return the surface of a head where its density is `level`.

    Args:
        generator: With or without an adapter.
        ws: [1, latents, w] or [1, w].
        resolution: Grid points on a side of the box.
        level: Density per world unit; 10 stops two thirds of the light within a tenth of a unit.
        chunk: Points at a time.

    Raises:
        ConfigError: The density is nowhere, or everywhere, above the level.
    """
    render = generator.config.render
    planes = generator.planes(ws)
    # Features fade to 0 in the outermost half cell of the planes, which is not a density of 0.
    line = torch.linspace(-0.49, 0.49, resolution, device=ws.device) * render.box
    grid = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1).reshape(1, -1, 3)
    sigma = torch.cat([generator.density(planes, part)[0][0] for part in grid.split(chunk, 1)])
    field = render.density_scale * functional.softplus(sigma - 1).reshape(resolution, resolution, resolution)
    vertices, faces = marching(functional.pad(field, (1,) * 6), level)
    vertices = (vertices - 1) * float(line[1] - line[0]) + line[0]
    parts = [generator.density(planes, part)[1][0, :, :3] for part in vertices[None].split(chunk, 1)]
    return Mesh(vertices.cpu(), faces.cpu(), torch.cat(parts).clamp(0, 1).cpu())


def write_glb(path: Path, mesh: Mesh) -> None:
    """Write a mesh with vertex colours as binary glTF 2.0.

    Raises:
        ConfigError: The name does not end in .glb, or the file cannot be written.
    """
    if path.suffix.lower() != ".glb":
        raise ConfigError(f"{path}: give a name that ends in .glb")
    parts = [
        mesh.vertices.float().numpy().tobytes(),
        mesh.colours.float().numpy().tobytes(),
        mesh.faces.int().numpy().tobytes(),
    ]
    offsets = [0, len(parts[0]), len(parts[0]) + len(parts[1])]
    views = [
        {"buffer": 0, "byteOffset": offset, "byteLength": len(part), "target": target}
        for part, offset, target in zip(parts, offsets, (ARRAY, ARRAY, ELEMENTS), strict=True)
    ]
    corners = {"min": mesh.vertices.amin(0).tolist(), "max": mesh.vertices.amax(0).tolist()}
    count = len(mesh.vertices)
    accessors = [
        {"bufferView": 0, "componentType": FLOAT, "count": count, "type": "VEC3", **corners},
        {"bufferView": 1, "componentType": FLOAT, "count": count, "type": "VEC3"},
        {"bufferView": 2, "componentType": UINT, "count": mesh.faces.numel(), "type": "SCALAR"},
    ]
    scene = {
        "asset": {"version": "2.0", "generator": "lrdiff"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "COLOR_0": 1}, "indices": 2}]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": sum(map(len, parts))}],
    }
    text = json.dumps(scene, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    body = b"".join(parts)
    length = 12 + 8 + len(text) + 8 + len(body)
    data = struct.pack("<4sII", b"glTF", 2, length) + struct.pack("<I4s", len(text), b"JSON") + text
    try:
        write_bytes(path, data + struct.pack("<I4s", len(body), b"BIN\0") + body)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error}); choose another place") from error
