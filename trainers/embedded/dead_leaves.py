"""Dead-leaves pictures: random opaque shapes falling on each other, with colour ramps, stripes and grain.

Their edges, occlusions and scale-free sizes resemble those of photographs (Lee, Mumford and Huang, "Occlusion models
for natural images", 2001), so an autoencoder that has seen them keeps real photos too, without any photo in its
training set.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def dead_leaves(count: int, size: int, rng: torch.Generator, leaves: int = 40) -> Tensor:
    """Draw a batch of dead-leaves pictures.

    Args:
        count: Number of pictures.
        size: Height and width in pixels.
        rng: Source of all randomness, on the CPU.
        leaves: Shapes per picture; the first ones mostly end up covered.

    Returns:
        Images [count, 3, size, size] in [-1, 1].
    """
    axis = torch.linspace(-1.0, 1.0, size)
    y, x = axis[None, :, None].expand(1, size, size), axis[None, None, :].expand(1, size, size)
    images = _colours(count, rng)[..., None, None].expand(count, 3, size, size)
    for _ in range(leaves):
        images = _drop_leaf(images, x, y, rng)
    images = images + _grain(count, size, rng)
    # Some pictures are out of focus: smooth ramps are as common in photos as sharp edges.
    soft = F.avg_pool2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), 5, stride=1)
    blurred = (torch.rand(count, 1, 1, 1, generator=rng) < 0.2).float()
    return torch.lerp(images, soft, blurred).clamp(-1.0, 1.0)


def _drop_leaf(images: Tensor, x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
    """Paint one random shape over each picture."""
    count, size = images.shape[0], images.shape[-1]
    draw = torch.rand(12, count, 1, 1, generator=rng)
    # Power-law sizes: density proportional to r^-3 between the limits, as in the dead-leaves model.
    low, high = 0.06, 1.2
    radius = (low**-2 + draw[0] * (high**-2 - low**-2)) ** -0.5
    angle = draw[1] * torch.pi
    cos, sin = angle.cos(), angle.sin()
    dx, dy = x - (draw[2] * 2.6 - 1.3), y - (draw[3] * 2.6 - 1.3)
    u, v = (dx * cos + dy * sin).abs(), (dy * cos - dx * sin).abs()
    v = v * (1.0 + 3.0 * draw[4] ** 2)
    round_ = torch.sqrt(u * u + v * v)
    distance = torch.where(draw[5] < 0.5, round_, torch.maximum(u, v)) - radius
    sharpness = 0.5 * size * (0.3 + 0.7 * draw[6])
    cover = (0.5 - distance * sharpness).clamp(0.0, 1.0)[:, None]

    base, other = _colours(count, rng)[..., None, None], _colours(count, rng)[..., None, None]
    frequency = 3.0 + 40.0 * draw[7] ** 2
    wave = torch.sin(frequency * (dx * cos + dy * sin) + 6.28 * draw[8])
    dots = wave * torch.sin(frequency * (dy * cos - dx * sin))
    wave = torch.where(draw[9] < 0.5, wave, dots)
    ramp = ((dx * sin + dy * cos) / (radius + 0.2)).clamp(-1.0, 1.0)
    mix = torch.where(draw[10] < 0.25, (4.0 * wave).clamp(-1.0, 1.0), ramp)
    strength = torch.where(draw[10] < 0.25, draw[11], 0.5 * draw[11])
    paint = base + (other - base) * (strength * (0.5 + 0.5 * mix))[:, None]
    return torch.lerp(images, paint, cover)


def _colours(count: int, rng: torch.Generator) -> Tensor:
    """Return [count, 3] colours: a grey level with a random tint, so that dull and vivid ones both occur."""
    grey = torch.rand(count, 1, generator=rng) * 2.0 - 1.0
    tint = torch.randn(count, 3, generator=rng) * torch.rand(count, 1, generator=rng) * 0.8
    return (grey + tint).clamp(-1.0, 1.0)


def _grain(count: int, size: int, rng: torch.Generator) -> Tensor:
    """Return noise with a random scale and strength, from film grain to clouds."""
    total = torch.zeros(count, 3, size, size)
    for cell in (1, 4, 16):
        small = torch.randn(count, 3, max(2, size // cell), max(2, size // cell), generator=rng)
        strength = 0.12 * torch.rand(count, 1, 1, 1, generator=rng) ** 3
        total = total + F.interpolate(small, size=(size, size), mode="bilinear", align_corners=False) * strength
    return total
