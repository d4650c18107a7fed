"""Surfaces of known fields, and the file."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from lrdiff.errors import ConfigError
from lrdiff.triplane.mesh import Mesh, head_mesh, marching, write_glb
from tests.lrdiff.triplane.tiny import MINI, tiny


def ball(side: int = 24, radius: float = 8.3) -> torch.Tensor:
    line = torch.arange(side) - (side - 1) / 2
    return radius - torch.stack(torch.meshgrid(line, line, line, indexing="ij")).norm(dim=0)


def test_a_ball_is_closed_round_and_turned_outwards() -> None:
    vertices, faces = marching(ball(), 0.0)
    vertices = vertices - 11.5
    torch.testing.assert_close(vertices.norm(dim=1), torch.full((len(vertices),), 8.3), atol=0.06, rtol=0)
    directed = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    forth = {tuple(edge) for edge in directed.tolist()}
    assert len(forth) == len(directed), "every edge is walked once in each direction"
    assert forth == {(b, a) for a, b in forth}
    assert len(vertices) - len(directed) // 2 + len(faces) == 2, "Euler's formula for a sphere"
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    volume = float((a * torch.linalg.cross(b, c)).sum() / 6)
    assert volume == pytest.approx(4 / 3 * math.pi * 8.3**3, rel=0.02), "positive: faces look outwards"


def test_a_plane_is_exact() -> None:
    field = torch.arange(5.0)[:, None, None].expand(5, 4, 3)
    vertices, _ = marching(field, 2.25)
    assert bool((vertices[:, 0] == 2.25).all())


def test_a_level_outside_the_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"level: 99 is not between"):
        marching(ball(), 99.0)


def test_a_heads_mesh_lies_where_its_density_is_the_level() -> None:
    generator = tiny(config=MINI)
    ws = generator.mapping(torch.randn(1, 24))
    with torch.no_grad():
        planes = generator.planes(ws)
        inner = 20 * torch.nn.functional.softplus(generator.density(planes, torch.rand(1, 500, 3) - 0.5)[0] - 1)
    level = float(inner.median())
    mesh = head_mesh(generator, ws, resolution=24, level=level, chunk=1000)
    inside = mesh.vertices.abs().amax(1) < 0.55
    with torch.no_grad():
        found = 20 * torch.nn.functional.softplus(generator.density(planes, mesh.vertices[None, inside])[0] - 1)
    assert float((found - level).abs().mean()) < 0.1 * float(inner.std())
    assert mesh.colours.shape == mesh.vertices.shape
    assert bool(((mesh.colours >= 0) & (mesh.colours <= 1)).all())


def test_the_file_is_binary_gltf_that_holds_the_mesh(tmp_path: Path) -> None:
    vertices, faces = marching(ball(), 0.0)
    mesh = Mesh(vertices, faces, torch.rand(len(vertices), 3))
    write_glb(tmp_path / "a.glb", mesh)
    data = (tmp_path / "a.glb").read_bytes()
    assert struct.unpack("<4sII", data[:12]) == (b"glTF", 2, len(data))
    size, kind = struct.unpack("<I4s", data[12:20])
    scene = json.loads(data[20 : 20 + size])
    length, second = struct.unpack("<I4s", data[20 + size : 28 + size])
    assert (kind, second) == (b"JSON", b"BIN\0")
    body = data[28 + size :]
    assert size % 4 == length % 4 == 0
    assert length == len(body) == scene["buffers"][0]["byteLength"]
    attributes = scene["meshes"][0]["primitives"][0]["attributes"]
    assert attributes == {"POSITION": 0, "COLOR_0": 1}

    def read(number: int, kind: str) -> torch.Tensor:
        view = scene["bufferViews"][number]
        part = body[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        return torch.from_numpy(np.frombuffer(part, kind).copy()).reshape(-1, 3)

    assert torch.equal(read(0, "<f4"), mesh.vertices)
    assert torch.equal(read(1, "<f4"), mesh.colours)
    assert torch.equal(read(2, "<u4").long(), mesh.faces)
    assert scene["accessors"][0]["max"] == mesh.vertices.amax(0).tolist()
    with pytest.raises(ConfigError, match=r"ends in \.glb"):
        write_glb(tmp_path / "a.ply", mesh)
