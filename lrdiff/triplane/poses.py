"""Where photos were taken from: estimates, corrections, and angles."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lrdiff.rng import stream
from lrdiff.triplane.cameras import camera_vector, look_at, split_camera
from lrdiff.triplane.generator import TriplaneGenerator

LIMITS = (0.2, 0.25)
"""Widest yaw and pitch by which a camera is corrected, in radians."""
DRAWN, VIEWS = 600, 6
"""Pictures that poses are learned from, and how many of them show one head."""
RIDGE, WIDTH = 0.01, 0.3
"""Of the kernel regression: what is added to the kernel's diagonal, and the factor on squared distances of pictures,
which are vectors of length 1."""


@torch.no_grad()
def estimate_cameras(generator: TriplaneGenerator, raw: Tensor, yaws: float, pitches: float, seed: int) -> Tensor:
    """Return the cameras [N, 25] from which photos were taken, as the generator's own heads say.

    Random heads are drawn from random cameras, and a kernel ridge regression learns yaw and pitch of small pictures:

        (yaw, pitch)(x) = mean + k(x, X) (k(X, X) + 0.01)^-1 (Y - mean),   k(x, x') = exp(-0.3 |x - x'|^2)

    Brightness and contrast are taken out of the pictures first, since they say little about the pose.

    Args:
        generator: Draws the heads.
        raw: Photos [N, 3, s, s]; heads are drawn at their side.
        yaws: Range of the cameras, in radians to both sides.
        pitches: The same up and down.
        seed: Of heads and cameras.
    """
    own, side, rng = generator.config, raw.shape[-1], stream(seed, "poses")
    limits = torch.tensor([yaws, pitches])
    angles = (torch.rand(DRAWN // VIEWS, VIEWS, 2, generator=rng) * 2 - 1) * limits
    z = torch.randn(len(angles), own.z, generator=rng)
    drawn = []
    for one, turns in zip(z.to(raw.device), angles, strict=True):
        cameras = look_at(turns[:, 0], turns[:, 1], own.radius, own.focal, own.pivot).to(raw.device)
        ws = generator.mapping(one[None], cameras[:1] if own.c else None)
        planes = generator.planes(ws).expand(VIEWS, -1, -1, -1, -1)
        drawn.append(generator.render(planes, cameras, side).colours[..., :3].transpose(1, 2))
    x, wanted = _standard(torch.cat(drawn).reshape(DRAWN, -1)), _standard(raw.flatten(1))
    known = angles.reshape(DRAWN, 2).to(x)
    kernel = _kernel(x, x) + RIDGE * torch.eye(DRAWN).to(x)
    found = known.mean(0) + _kernel(wanted, x) @ torch.linalg.solve(kernel, known - known.mean(0))
    found = found.clamp(-limits.to(x), limits.to(x))
    return look_at(found[:, 0].cpu(), found[:, 1].cpu(), own.radius, own.focal, own.pivot).to(raw.device)


def _standard(pictures: Tensor) -> Tensor:
    """Return pictures [N, D] as vectors of length 1 without their mean."""
    return functional.normalize(pictures - pictures.mean(1, keepdim=True), dim=1)


def _kernel(one: Tensor, other: Tensor) -> Tensor:
    return torch.exp(-WIDTH * torch.cdist(one, other).square())


def corrected(cameras: Tensor, angles: Tensor, generator: TriplaneGenerator) -> Tensor:
    """Turn cameras around the generator's pivot by bounded yaw and pitch (differentiable).

    Args:
        cameras: [N, 25].
        angles: [N, 2]; yaw is 0.2 tanh(a / 0.2), pitch 0.25 tanh(b / 0.25), in radians.
        generator: Its pivot is the centre.
    """
    pose, inner = split_camera(cameras)
    yaw, pitch = (limit * torch.tanh(angles[:, i] / limit) for i, limit in enumerate(LIMITS))
    zero, one = torch.zeros_like(yaw), torch.ones_like(yaw)
    cos, sin = yaw.cos(), yaw.sin()
    turn = torch.stack([cos, zero, sin, zero, one, zero, -sin, zero, cos], 1).reshape(-1, 3, 3)
    x, y, z = pose[:, :3, 0].unbind(1)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).reshape(-1, 3, 3)
    # Rodrigues' formula around the camera's own right; towards its down is negative.
    tilt = torch.eye(3).to(pose) - pitch.sin()[:, None, None] * cross
    tilt = tilt + (1 - pitch.cos())[:, None, None] * (cross @ cross)
    whole = turn @ tilt
    pivot = pose.new_tensor(generator.config.pivot)
    position = pivot + (whole @ (pose[:, :3, 3] - pivot)[:, :, None])[:, :, 0]
    rows = torch.cat([whole @ pose[:, :3, :3], position[:, :, None]], 2)
    return camera_vector(torch.cat([rows, pose[:, 3:]], 1), inner)


def yaw_pitch(cameras: Tensor, generator: TriplaneGenerator) -> Tensor:
    """Return yaw and pitch [N, 2] of cameras around the generator's pivot, in radians."""
    pose, _ = split_camera(cameras)
    x, y, z = functional.normalize(pose[:, :3, 3] - pose.new_tensor(generator.config.pivot), dim=1).unbind(1)
    return torch.stack([torch.atan2(x, z), torch.asin(y)], 1)
