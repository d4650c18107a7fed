"""Cameras, there and back."""

from __future__ import annotations

import math

import pytest
import torch

from lrdiff.errors import ShapeError
from lrdiff.triplane.cameras import camera_vector, look_at, mirrored, project, rays, split_camera, symmetric_pair
from lrdiff.triplane.config import eg3d_config

FOCAL = 2985.29 / 700


def test_the_frontal_camera_is_the_published_vector() -> None:
    zero = torch.zeros(1)
    expected = [1, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, 2.7, 0, 0, 0, 1, 4.2647, 0, 0.5, 0, 4.2647, 0.5, 0, 0, 1]
    torch.testing.assert_close(look_at(zero, zero, 2.7, FOCAL)[0], torch.tensor(expected), atol=1e-4, rtol=0)
    assert math.degrees(2 * math.atan(math.sqrt(0.5) / FOCAL)) == pytest.approx(18.837, abs=0.01), "across the diagonal"


def test_the_published_positions_by_their_own_formula() -> None:
    yaw, pitch = torch.tensor([0.3, -0.6, 0.0]), torch.tensor([0.2, -0.1, 0.3])
    theta, phi = math.pi / 2 + yaw, math.pi / 2 - pitch
    expected = 2.7 * torch.stack(
        [phi.sin() * (math.pi - theta).cos(), phi.cos(), phi.sin() * (math.pi - theta).sin()], 1
    )
    pose, _ = split_camera(look_at(yaw, pitch, 2.7, FOCAL))
    torch.testing.assert_close(pose[:, :3, 3], expected, atol=1e-6, rtol=1e-6)


def test_poses_are_rotations_and_look_at_the_pivot() -> None:
    yaw, pitch = torch.linspace(-1.4, 1.4, 9), torch.linspace(-1.2, 1.2, 9)
    pivot = (0.1, -0.2, 0.3)
    camera = look_at(yaw, pitch, 2.0, 1.5, pivot)
    turn = split_camera(camera)[0][:, :3, :3]
    torch.testing.assert_close(turn @ turn.transpose(1, 2), torch.eye(3).expand(9, 3, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(turn), torch.ones(9))
    seen = project(camera, torch.tensor(pivot).expand(9, 1, 3))
    torch.testing.assert_close(seen, torch.full((9, 1, 2), 0.5), atol=1e-6, rtol=0)


def test_rays_go_through_the_pixels_that_their_points_project_to() -> None:
    torch.manual_seed(0)
    pose, _ = split_camera(look_at(torch.tensor([0.4, -0.9]), torch.tensor([0.3, -0.2]), 2.7, 3.2))
    inner = torch.tensor([[3.2, 0.1, 0.45], [0.0, 3.0, 0.52], [0.0, 0.0, 1.0]]).repeat(2, 1, 1)
    camera = camera_vector(pose, inner)
    origins, directions = rays(camera, 6)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(2, 36))
    points = origins + (1 + 2 * torch.rand(2, 36, 1)) * directions
    centres = (torch.arange(6) + 0.5) / 6
    expected = torch.stack([centres.repeat(6), centres.repeat_interleave(6)], 1).expand(2, 36, 2)
    torch.testing.assert_close(project(camera, points), expected, atol=1e-5, rtol=0)


def test_world_up_is_up_in_the_picture() -> None:
    camera = look_at(torch.zeros(1), torch.zeros(1), 2.7, FOCAL)
    up, right = project(camera, torch.tensor([[[0.0, 0.1, 0.0], [0.1, 0.0, 0.0]]]))[0]
    assert float(up[1]) < 0.5
    assert float(right[0]) > 0.5


def test_mirroring_five_numbers_sees_the_mirrored_scene() -> None:
    torch.manual_seed(1)
    camera = look_at(torch.tensor([0.7]), torch.tensor([0.2]), 2.7, FOCAL, (0.1, 0.0, 0.2))
    points = torch.randn(1, 20, 3) * 0.2
    seen = project(mirrored(camera), points * torch.tensor([-1.0, 1.0, 1.0]))
    flipped = project(camera, points) * torch.tensor([-1.0, 1.0]) + torch.tensor([1.0, 0.0])
    torch.testing.assert_close(seen, flipped, atol=1e-5, rtol=0)
    torch.testing.assert_close(mirrored(mirrored(camera)), camera)


def test_symmetric_pairs_have_opposite_yaw_and_nearly_the_same_pitch() -> None:
    config = eg3d_config("ffhq512")
    for frame in (0, 17, 30, 59):
        one, other = (split_camera(camera)[0][0, :3, 3] / 2.7 for camera in symmetric_pair(frame, config))
        yaws = [math.atan2(float(p[0]), float(p[2])) for p in (one, other)]
        assert yaws[0] == pytest.approx(-yaws[1], abs=0.35 * 2 * math.pi / 120 + 1e-6)
        assert float(one[1]) == pytest.approx(float(other[1]), abs=0.25 * 2 * math.pi / 120)
        assert frame in (0, 59) or yaws[0] > 0 > yaws[1]


def test_wrong_cameras_are_refused() -> None:
    good = look_at(torch.zeros(2), torch.zeros(2), 2.7, FOCAL)
    with pytest.raises(ShapeError, match=r"\[B, 25\]"):
        split_camera(good[:, :16])
    bad = good.clone()
    bad[1, 16] = 0
    with pytest.raises(ShapeError, match=r"camera 1.*singular"):
        split_camera(bad)
    bad = good.clone()
    bad[0, 0] = 2
    with pytest.raises(ShapeError, match=r"camera 0.*rotation"):
        split_camera(bad)
    bad = good.clone()
    bad[0, 3] = float("nan")
    with pytest.raises(ShapeError, match="NaN"):
        split_camera(bad)
