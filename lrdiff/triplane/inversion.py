"""From photos to anchors: the latents and cameras with which a generator comes nearest to them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lrdiff.errors import ConfigError, ShapeError
from lrdiff.rng import stream
from lrdiff.triplane.cameras import camera_vector, frontal, look_at, split_camera
from lrdiff.triplane.generator import TriplaneGenerator
from lrdiff.triplane.losses import psnr, reconstruction

LIMITS = (0.2, 0.25)
"""Widest yaw and pitch by which a camera is corrected, in radians."""


@dataclass(frozen=True, slots=True)
class InversionConfig:
    """How anchors are searched.

    Attributes:
        steps: Optimizer steps, for all photos at once.
        lr: Peak rate for latents; 5 % of the steps warm up, the last quarter falls as a cosine.
        camera_lr: The same for yaw and pitch, in radians.
        extended: One w for each layer (W+) instead of one for all (W).
        cameras: "given" keeps the cameras, "refine" corrects them, "unknown" estimates them first.
        noise: Deviation of the noise on latents at first, in deviations of w; it fades until 3/4 of the steps.
        side: Side at which pictures before super-resolution are compared, which is quicker; None compares the finished
            picture, and the one before super-resolution where there is one.
        samples: Latents whose mean is the start.
        yaws: Range of the search for unknown cameras, in radians to both sides.
        pitches: The same up and down.
        seed: Of start and noise.
    """

    steps: int = 300
    lr: float = 0.05
    camera_lr: float = 0.01
    extended: bool = False
    cameras: str = "unknown"
    noise: float = 0.05
    side: int | None = None
    samples: int = 2000
    yaws: float = 1.1
    pitches: float = 0.35
    seed: int = 0

    def __post_init__(self) -> None:
        if self.cameras not in ("given", "refine", "unknown"):
            raise ConfigError(f"cameras: {self.cameras!r} is none of given, refine, unknown")
        if self.steps < 1 or self.samples < 2:
            raise ConfigError(f"steps {self.steps} must be 1 or more, samples {self.samples} 2 or more")


@dataclass(frozen=True, slots=True)
class Anchors:
    """What was found for photos.

    Attributes:
        ws: [N, 1, w], or [N, latents, w] for W+.
        cameras: [N, 25].
        psnr: [N] in dB, of the finished picture.
    """

    ws: Tensor
    cameras: Tensor
    psnr: Tensor


def mean_latent(generator: TriplaneGenerator, samples: int, seed: int) -> tuple[Tensor, float]:
    """Return the mean w [w] over random z under the frontal camera, and the deviation around it."""
    z = torch.randn(samples, generator.config.z, generator=stream(seed, "mean latent"))
    device = next(generator.parameters()).device
    with torch.no_grad():
        camera = frontal(generator.config, samples).to(device) if generator.config.c else None
        ws = generator.mapping(z.to(device), camera)[:, 0]
    mean = ws.mean(0)
    return mean, float((ws - mean).square().sum(1).mean().sqrt()) / math.sqrt(ws.shape[1])


def invert(
    generator: TriplaneGenerator,
    photos: Tensor,
    cameras: Tensor | None,
    config: InversionConfig,
    report: Callable[[int, float], None] | None = None,
) -> Anchors:
    """Search the anchors of all photos at once. The generator is not changed.

    Args:
        generator: Any; gradients go through it to latents and cameras.
        photos: [N, 3, side, side] in [-1, 1], of the generator's finished side.
        cameras: [N, 25], or None where they are unknown.
        config: How to search.
        report: Called with step and loss.

    Raises:
        ShapeError: Photos have another side, or there are not as many cameras as photos.
        ConfigError: Cameras are to be kept or corrected and there are none.
    """
    _check(generator, photos, cameras, config)
    raw = _resized(photos, config.side or generator.config.render.side)
    mean, deviation = mean_latent(generator, config.samples, config.seed)
    if config.cameras == "unknown" or cameras is None:
        cameras = estimate_cameras(generator, _resized(photos, generator.config.render.side), mean, config)
    layers = generator.config.latents if config.extended else 1
    ws = mean.expand(len(photos), layers, -1).clone().requires_grad_(True)
    angles = torch.zeros(len(photos), 2, device=photos.device, requires_grad=config.cameras != "given")
    groups: list[dict[str, object]] = [{"params": [ws], "lr": config.lr}]
    if angles.requires_grad:
        groups.append({"params": [angles], "lr": config.camera_lr})
    peaks = [config.lr, config.camera_lr]
    optimizer = torch.optim.Adam(groups)
    for step in range(config.steps):
        for group, peak in zip(optimizer.param_groups, peaks, strict=False):
            group["lr"] = peak * _ramp(step / config.steps)
        noise = torch.randn(ws.shape, generator=stream(config.seed, "inversion", step)).to(ws)
        noisy = ws + noise * config.noise * deviation * max(0.0, 1 - step / config.steps / 0.75) ** 2
        loss = _distance(generator, noisy, corrected(cameras, angles, generator), photos, raw, config.side).sum()
        optimizer.zero_grad()
        (ws.grad, *rest) = torch.autograd.grad(loss, [ws, angles] if angles.requires_grad else [ws])
        if rest:
            angles.grad = rest[0]
        optimizer.step()
        if report is not None:
            report(step, float(loss.detach()) / len(photos))
    with torch.no_grad():
        found = corrected(cameras, angles, generator)
        image = generator.view(ws.expand(-1, generator.config.latents, -1), found).image
    return Anchors(ws=ws.detach(), cameras=found, psnr=psnr(image, photos))


@torch.no_grad()
def estimate_cameras(generator: TriplaneGenerator, raw: Tensor, mean: Tensor, config: InversionConfig) -> Tensor:
    """Return, for each photo, the camera of a grid from which the generator's mean head looks most like it.

    Brightness and contrast are taken out first, since they say little about the pose.

    Args:
        generator: Its mean head is the template.
        raw: [N, 3, s, s] at the rendered side.
        mean: [w].
        config: Range of the grid: 13 yaws and 5 pitches.
    """
    yaw, pitch = torch.meshgrid(
        torch.linspace(-config.yaws, config.yaws, 13), torch.linspace(-config.pitches, config.pitches, 5), indexing="ij"
    )
    own = generator.config
    grid = look_at(yaw.flatten(), pitch.flatten(), own.radius, own.focal, own.pivot).to(raw.device)
    planes = generator.planes(mean[None])
    side = own.render.side
    seen = torch.cat([generator.render(planes, camera[None], side).colours[..., :3] for camera in grid])
    templates = _standard(seen.transpose(1, 2).reshape(len(grid), 3, side, side))
    distance = (_standard(raw)[:, None] - templates[None]).abs().mean((2, 3, 4))
    return grid[distance.argmin(1)]


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


def _check(generator: TriplaneGenerator, photos: Tensor, cameras: Tensor | None, config: InversionConfig) -> None:
    side = generator.config.side
    if photos.ndim != 4 or photos.shape[1:] != (3, side, side) or not len(photos):
        raise ShapeError(f"photos have shape {tuple(photos.shape)}; this generator takes [N, 3, {side}, {side}]")
    if cameras is None and config.cameras != "unknown":
        raise ConfigError(f"cameras are to be taken as {config.cameras}, and there are none; give a camera file")
    if cameras is not None and len(cameras) != len(photos):
        raise ShapeError(f"{len(cameras)} cameras for {len(photos)} photos; give one for each")


def _distance(
    generator: TriplaneGenerator, ws: Tensor, cameras: Tensor, photos: Tensor, raw: Tensor, side: int | None
) -> Tensor:
    ws = ws.expand(-1, generator.config.latents, -1)
    if side is not None:
        colours = generator.render(generator.planes(ws), cameras, side).colours[..., :3]
        return reconstruction(colours.transpose(1, 2).reshape(len(ws), 3, side, side), raw)
    seen = generator.view(ws, cameras)
    found = reconstruction(seen.image, photos)
    return found + reconstruction(seen.raw, raw) if generator.config.superres is not None else found


def _resized(photos: Tensor, side: int) -> Tensor:
    if photos.shape[-1] == side:
        return photos
    return functional.interpolate(photos, (side, side), mode="bilinear", align_corners=False, antialias=True)


def _standard(pictures: Tensor) -> Tensor:
    mean = pictures.mean((1, 2, 3), keepdim=True)
    return (pictures - mean) / (pictures.std((1, 2, 3), keepdim=True) + 1e-6)


def _ramp(t: float) -> float:
    """Warm up linearly over 5 %, fall as a cosine over the last 25 %."""
    down = min(1.0, (1 - t) / 0.25)
    return min(1.0, (t + 1e-3) / 0.05) * (0.5 - 0.5 * math.cos(math.pi * down))
