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
from lrdiff.triplane.cameras import frontal
from lrdiff.triplane.generator import TriplaneGenerator
from lrdiff.triplane.losses import psnr, reconstruction
from lrdiff.triplane.poses import corrected, estimate_cameras

CENTRE = (18, 21)
"""Where a camera says which column and row its axis meets, in picture sides."""
POSE_SIDE = 16
"""Side of the pictures from which unknown cameras are estimated."""
OWN_RATE = 0.3
"""Rate of what a photo has of its own, as a share of the rate of what all share."""
TYPICAL = 0.01
"""Weight of the squared distance of what all share from the mean latent, in deviations."""


@dataclass(frozen=True, slots=True)
class InversionConfig:
    """How anchors are searched.

    Attributes:
        steps: Optimizer steps, for all photos at once.
        lr: Peak rate of latents, in deviations; 5 % of the steps warm up, the last quarter falls as a cosine.
        camera_lr: The same for yaw and pitch, in radians.
        together: How strongly the anchors are held to what they share, since all photos show one person: weight of
            the mean squared deviation of each from it. 0 lets each photo be anybody.
        extended: One w for each layer (W+) instead of one for all (W).
        cameras: "given" keeps the cameras, "refine" corrects them, "unknown" estimates them first.
        noise: Noise on latents at first, in deviations; it fades until 3/4 of the steps.
        side: Pixels in a row that each step compares, before super-resolution: every second, say, of the rendered side,
            beginning at another one every time. None compares the whole finished picture, and the one before
            super-resolution where there is one, which takes several times as long.
        samples: Latents whose mean is the start.
        yaws: Range of the search for unknown cameras, in radians to both sides.
        pitches: The same up and down.
        seed: Of start and noise.
    """

    steps: int = 300
    lr: float = 0.2
    camera_lr: float = 0.01
    together: float = 3.0
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
        if self.together < 0:
            raise ConfigError(f"together {self.together} must be 0 or more")


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

    def first(self, count: int) -> Anchors:
        """Return those of the first photos."""
        return Anchors(self.ws[:count], self.cameras[:count], self.psnr[:count])


def latent_space(generator: TriplaneGenerator, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the mean w [w] over random z under the frontal camera, and a root S [w, w] of the covariance, S S^T.

    w = mean + S u with u ~ N(0, I) has the same mean and covariance, so the numbers of u are deviations, each as likely
    as any other. Those of w are not: along their principal directions they differ by factors of 100 and more.
    """
    z = torch.randn(samples, generator.config.z, generator=stream(seed, "mean latent"))
    device = next(generator.parameters()).device
    with torch.no_grad():
        camera = frontal(generator.config, samples).to(device) if generator.config.c else None
        ws = generator.mapping(z.to(device), camera)[:, 0]
    values, vectors = torch.linalg.eigh(torch.cov(ws.T))
    return ws.mean(0), vectors * values.clamp_min(0).sqrt()


def invert(
    generator: TriplaneGenerator,
    photos: Tensor,
    cameras: Tensor | None,
    config: InversionConfig,
    report: Callable[[int, float], None] | None = None,
) -> Anchors:
    """Search the anchors of all photos of a person at once. The generator is not changed.

        argmin over s, u_i, cameras of  sum_i d(G(w_i, camera_i), photo_i) + t |u_i|^2 / w + 0.01 |s|^2 / w
        w_i = mean + S (s + u_i)

    s is what all photos share, u_i what is a photo's own, t the setting `together`. Photos from one side alone do not
    say how deep a head is, and a mark that the generator cannot draw pulls each photo towards another shape; together
    they agree on one person.

    Args:
        generator: Any; gradients go through it to latents and cameras.
        photos: [N, 3, side, side] in [-1, 1], of the generator's finished side.
        cameras: [N, 25], or None where they are unknown.
        config: How to search.
        report: Called with step and loss.

    Raises:
        ShapeError: Photos have another side, or there are not as many cameras as photos.
        ConfigError: Cameras are to be kept or corrected and there are none.

    Differs from the paper: photos are not inverted one by one, and latents are searched in deviations.
    """
    _check(generator, photos, cameras, config)
    raw = _resized(photos, generator.config.render.side)
    mean, root = latent_space(generator, config.samples, config.seed)
    if config.cameras == "unknown" or cameras is None:
        small = _resized(photos, min(POSE_SIDE, generator.config.render.side))
        cameras = estimate_cameras(generator, small, config.yaws, config.pitches, config.seed)
    layers = generator.config.latents if config.extended else 1
    shared = torch.zeros(1, layers, len(mean), device=photos.device, requires_grad=True)
    own = torch.zeros(len(photos), layers, len(mean), device=photos.device, requires_grad=True)
    angles = torch.zeros(len(photos), 2, device=photos.device, requires_grad=config.cameras != "given")
    moving = [shared, own, angles] if angles.requires_grad else [shared, own]
    peaks = (config.lr, config.lr * OWN_RATE, config.camera_lr)[: len(moving)]
    optimizer = torch.optim.Adam([{"params": [x], "lr": lr} for x, lr in zip(moving, peaks, strict=True)])
    for step in range(config.steps):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * _ramp(step / config.steps)
        rng = stream(config.seed, "inversion", step)
        noise = torch.randn(own.shape, generator=rng).to(own)
        noise = noise * config.noise * max(0.0, 1 - step / config.steps / 0.75) ** 2
        ws = mean + (shared + own + noise) @ root.T
        turned = corrected(cameras, angles, generator)
        if config.side is None:
            loss = _finished(generator, ws, turned, photos, raw).sum()
        else:
            loss = _grid(generator, ws, turned, raw, config.side, rng).sum()
        held = config.together * own.square().mean((1, 2)).sum() + TYPICAL * len(photos) * shared.square().mean()
        optimizer.zero_grad()
        for value, slope in zip(moving, torch.autograd.grad(loss + held, moving), strict=True):
            value.grad = slope
        optimizer.step()
        if report is not None:
            report(step, float(loss.detach()) / len(photos))
    with torch.no_grad():
        ws, found = mean + (shared + own) @ root.T, corrected(cameras, angles, generator)
        image = generator.view(ws.expand(-1, generator.config.latents, -1), found).image
    return Anchors(ws=ws.detach(), cameras=found, psnr=psnr(image, photos))


def _check(generator: TriplaneGenerator, photos: Tensor, cameras: Tensor | None, config: InversionConfig) -> None:
    side = generator.config.side
    if photos.ndim != 4 or photos.shape[1:] != (3, side, side) or not len(photos):
        raise ShapeError(f"photos have shape {tuple(photos.shape)}; this generator takes [N, 3, {side}, {side}]")
    if config.side is not None and generator.config.render.side % config.side:
        raise ConfigError(
            f"side {config.side} does not divide the rendered side {generator.config.render.side}; give one that does"
        )
    if cameras is None and config.cameras != "unknown":
        raise ConfigError(f"cameras are to be taken as {config.cameras}, and there are none; give a camera file")
    if cameras is not None and len(cameras) != len(photos):
        raise ShapeError(f"{len(cameras)} cameras for {len(photos)} photos; give one for each")


def _finished(generator: TriplaneGenerator, ws: Tensor, cameras: Tensor, photos: Tensor, raw: Tensor) -> Tensor:
    """Return the distance of finished pictures, and of those before super-resolution where there is one, [N]."""
    seen = generator.view(ws.expand(-1, generator.config.latents, -1), cameras)
    found = reconstruction(seen.image, photos)
    return found + reconstruction(seen.raw, raw) if generator.config.superres is not None else found


def _grid(
    generator: TriplaneGenerator, ws: Tensor, cameras: Tensor, raw: Tensor, side: int, rng: torch.Generator
) -> Tensor:
    """Return the distance before super-resolution on a grid of side^2 pixels of each photo, [N]."""
    cameras, wanted = every_other(cameras, raw, side, rng)
    colours = generator.render(generator.planes(ws.expand(-1, generator.config.latents, -1)), cameras, side).colours
    return reconstruction(colours[..., :3].transpose(1, 2).reshape(wanted.shape), wanted)


def every_other(cameras: Tensor, raw: Tensor, side: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Take every k-th pixel of pictures in both directions, from a first one at random, k = their side / `side`.

    Args:
        cameras: [N, 25], of the whole pictures.
        raw: [N, 3, k side, k side].
        side: Pixels taken in a row.
        rng: On the CPU, of the first pixels.

    Returns:
        Cameras [N, 25] whose pixels at `side` are the ones taken, and these, [N, 3, side, side].
    """
    count, step = len(raw), raw.shape[-1] // side
    first = torch.randint(0, step, (count, 2), generator=rng)
    cells = raw.reshape(count, 3, side, step, side, step).permute(0, 3, 5, 1, 2, 4)
    shift = torch.zeros(count, 25)
    shift[:, CENTRE] = ((first + 0.5) / step - 0.5) / side
    return cameras - shift.to(cameras), cells[torch.arange(count), first[:, 1], first[:, 0]]


def _resized(photos: Tensor, side: int) -> Tensor:
    if photos.shape[-1] == side:
        return photos
    return functional.interpolate(photos, (side, side), mode="bilinear", align_corners=False, antialias=True)


def _ramp(t: float) -> float:
    """Warm up linearly over 5 %, fall as a cosine over the last 25 %."""
    down = min(1.0, (1 - t) / 0.25)
    return min(1.0, (t + 1e-3) / 0.05) * (0.5 - 0.5 * math.cos(math.pi * down))
