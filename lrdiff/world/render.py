"""From scenes to images: a deferred sphere-tracing renderer in plain tensor operations.

Objects are traced at ``SUPERSAMPLE`` times the image size. The ground and the backdrop are filtered analytically and
shaded once per pixel. All light is linear until the last step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lrdiff.world import paint
from lrdiff.world.lighting import background, lights_of, shadows, surroundings_of
from lrdiff.world.paint import MATERIALS, Surroundings
from lrdiff.world.scene import Scene
from lrdiff.world.solids import solids_of
from lrdiff.world.surface import Rays, albedo_of, gather, trace_solids

SUPERSAMPLE = 2
CHUNK = 32
SLOTS = 3
GLOWING = MATERIALS.index("glowing")


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


def _halo(emission: Tensor) -> Tensor:
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
    solids, lights, around = solids_of(scenes), lights_of(scenes), surroundings_of(scenes, device)
    rays = Rays(scenes, fine, device)
    depth, hits = trace_solids(solids, rays)
    surface = gather(solids, rays, depth, hits)
    image = surface.pixel // count
    light = torch.tensor(lights, device=device).T.contiguous().index_select(1, image)
    n = surface.normal
    facing = n[0] * light[0] + n[1] * light[1] + n[2] * light[2] > 0
    starts = surface.starts
    lit = shadows(solids, surface.world + n * 0.02, starts, lights, facing)
    low = torch.exp(-surface.world[1].clamp_min(0.0) * 3.0) * (0.5 - 0.5 * n[1])
    open_ = surface.open_ * (1.0 - 0.6 * low)
    material = torch.tensor([s.spec.material for s in solids], device=device)[surface.owner]
    env = around.index_select(1, image)
    albedo = albedo_of(solids, surface)
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
    seen = pooled[6].reshape(-1) < 1.0
    back = background(scenes, solids, Rays(scenes, size, device), lights, around, seen).reshape(3, batch, size, size)
    picture = (pooled[0:3] + back * (1.0 - pooled[6])).transpose(0, 1)
    glowing = sorted({s.image for s in solids if s.spec.material == GLOWING})
    if glowing:
        at = torch.tensor(glowing, device=device)
        alpha = pooled[6, at][:, None]
        picture[at] = picture[at] + _halo(pooled[3:6].transpose(0, 1)[at]) * (1.0 - 0.85 * alpha)
    masks = (pooled[7:10] >= 0.5).transpose(0, 1).contiguous()
    return Rendered(_tone(picture).contiguous(), masks, _boxes(masks))


@torch.no_grad()
def render(scenes: Sequence[Scene], size: int = 128, device: str | torch.device = "cpu") -> Rendered:
    """Render scenes.

    An image depends on its scene and on ``size`` only, not on the other scenes of the call.

    Args:
        scenes: At least one scene.
        size: Height and width in pixels.
        device: Where to compute; the result stays there.
    """
    where = torch.device(device)
    # Inference mode spares every small operation its bookkeeping; the concatenation below makes ordinary tensors again.
    with torch.inference_mode():
        chunks = [_render_chunk(scenes[i : i + CHUNK], size, where) for i in range(0, len(scenes), CHUNK)]
    return Rendered(*(torch.cat([getattr(c, name) for c in chunks]) for name in ("images", "masks", "boxes")))
