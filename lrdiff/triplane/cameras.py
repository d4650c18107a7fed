"""Cameras: OpenCV axes (x right, y down, z forward), world y up, the front of a head towards +z.

A camera is a vector of 25 numbers: the row-major 4 x 4 camera-to-world matrix, then 3 x 3 intrinsics in picture sides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lrdiff.errors import ShapeError
from lrdiff.triplane.config import TriplaneConfig

MIRRORED = (1, 2, 4, 8, 3)
ORBIT = 120


def look_at(
    yaw: Tensor, pitch: Tensor, radius: float, focal: float, pivot: Sequence[float] = (0.0, 0.0, 0.0)
) -> Tensor:
    """Return cameras on a sphere that look at its centre.

    position = pivot + radius (sin yaw cos pitch, sin pitch, cos yaw cos pitch).

    Args:
        yaw: [B] in radians; positive looks from the +x side.
        pitch: [B] in radians, inside +-pi/2; positive looks from above.
        radius: Distance to the pivot.
        focal: In picture sides.
        pivot: The point looked at.

    Returns:
        [B, 25].
    """
    direction = torch.stack([yaw.sin() * pitch.cos(), pitch.sin(), yaw.cos() * pitch.cos()], 1)
    forward = -direction
    right = torch.stack([yaw.cos(), torch.zeros_like(yaw), -yaw.sin()], 1)
    down = torch.linalg.cross(forward, right)
    position = direction * radius + direction.new_tensor(pivot)
    pose = torch.eye(4, dtype=yaw.dtype, device=yaw.device).repeat(len(yaw), 1, 1)
    pose[:, :3] = torch.stack([right, down, forward, position], 2)
    return camera_vector(pose, intrinsics(focal, len(yaw)).to(pose))


def frontal(config: TriplaneConfig, count: int = 1) -> Tensor:
    """Return the camera straight in front of a configuration's pivot, [count, 25]."""
    zero = torch.zeros(count)
    return look_at(zero, zero, config.radius, config.focal, config.pivot)


def intrinsics(focal: float, count: int = 1) -> Tensor:
    """Return [count, 3, 3] intrinsics with the optical axis in the middle of the picture."""
    return torch.tensor([[focal, 0.0, 0.5], [0.0, focal, 0.5], [0.0, 0.0, 1.0]]).repeat(count, 1, 1)


def camera_vector(pose: Tensor, inner: Tensor) -> Tensor:
    """Return [B, 25] of poses [B, 4, 4] and intrinsics [B, 3, 3]."""
    return torch.cat([pose.flatten(1), inner.flatten(1)], 1)


def split_camera(camera: Tensor) -> tuple[Tensor, Tensor]:
    """Return poses [B, 4, 4] and intrinsics [B, 3, 3] of [B, 25], checked.

    Raises:
        ShapeError: Another shape, a number that is not finite, a pose that is no rotation, or singular intrinsics.
    """
    if camera.ndim != 2 or camera.shape[1] != 25:
        raise ShapeError(f"cameras have shape {tuple(camera.shape)}; give [B, 25]: a 4 x 4 pose and 3 x 3 intrinsics")
    if not bool(torch.isfinite(camera.detach()).all()):
        raise ShapeError("a camera holds NaN or infinity; correct the camera file")
    pose, inner = camera[:, :16].reshape(-1, 4, 4), camera[:, 16:].reshape(-1, 3, 3)
    turn = pose[:, :3, :3].detach()
    away = (turn @ turn.transpose(1, 2) - torch.eye(3).to(turn)).abs().amax((1, 2))
    for number in range(len(camera)):
        if away[number] > 1e-2:
            raise ShapeError(f"camera {number}: its 3 x 3 part is no rotation; give camera-to-world, row by row")
        if float(inner[number].detach().diagonal()[:2].abs().min()) < 1e-6:
            raise ShapeError(
                f"camera {number}: singular intrinsics (a focal length of 0); give it in picture sides, such as 2.7"
            )
    return pose, inner


def mirrored(camera: Tensor) -> Tensor:
    """Return the cameras that see a scene as these see its mirror image in x = 0, both pictures flipped.

    M P M with M = diag(-1, 1, 1): five entries of the pose change sign.
    """
    sign = torch.ones(25, dtype=camera.dtype, device=camera.device)
    sign[list(MIRRORED)] = -1
    return camera * sign


def rays(camera: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return origins and unit directions through the centres (i + 0.5) / side of all pixels.

    Args:
        camera: [B, 25].
        side: Rays per row and column.

    Returns:
        [B, side^2, 3] twice, row by row.
    """
    pose, inner = split_camera(camera)
    centres = (torch.arange(side, device=camera.device, dtype=camera.dtype) + 0.5) / side
    v, u = (grid.reshape(1, -1) for grid in torch.meshgrid(centres, centres, indexing="ij"))
    fx, skew, cx = (inner[:, 0, column, None] for column in range(3))
    y = (v - inner[:, 1, 2, None]) / inner[:, 1, 1, None]
    x = (u - cx - skew * y) / fx
    local = torch.stack([x, y, torch.ones_like(x)], -1)
    direction = torch.nn.functional.normalize(local @ pose[:, :3, :3].transpose(1, 2), dim=-1)
    return pose[:, None, :3, 3].expand_as(direction), direction


def project(camera: Tensor, points: Tensor) -> Tensor:
    """Return where points [B, N, 3] are seen, in picture sides [B, N, 2], right and down from the upper left."""
    pose, inner = split_camera(camera)
    local = (points - pose[:, None, :3, 3]) @ pose[:, :3, :3]
    seen = local @ inner.transpose(1, 2)
    return seen[..., :2] / seen[..., 2:]


def symmetric_pair(frame: int, config: TriplaneConfig) -> tuple[Tensor, Tensor]:
    """Return two cameras [1, 25] of an orbit whose yaws are opposite: frames f and 119 - f (My3DGen).

    yaw(f) = 0.35 sin(2 pi f / 120), pitch(f) = -0.05 + 0.25 cos(2 pi f / 120), around the origin. The pitch of both is
    the same up to one frame, as published.
    """

    def camera(number: int) -> Tensor:
        angle = 2 * math.pi * number / ORBIT
        yaw, pitch = 0.35 * math.sin(angle), -0.05 + 0.25 * math.cos(angle)
        return look_at(torch.tensor([yaw]), torch.tensor([pitch]), config.radius, config.focal)

    return camera(frame), camera(ORBIT - 1 - frame)
