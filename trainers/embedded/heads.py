"""Training of the generator `heads`: regression on procedural heads whose latents are known.

It is a distilled generator and no GAN: z goes through the generator and through the world's own renderer, and the
pictures are compared. Nothing can collapse, and z ~ N(0, I) gives new heads.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional

from lrdiff.rng import stream
from lrdiff.triplane.cameras import look_at
from lrdiff.triplane.config import RenderConfig, SuperresConfig, TriplaneConfig
from lrdiff.triplane.generator import TriplaneGenerator
from lrdiff.triplane.losses import psnr, pyramid
from lrdiff.world.heads import LATENT, heads
from lrdiff.world.heads_render import FOCAL, RADIUS, HeadView, orbit
from trainers.config import Settings
from trainers.method import Batch, Method, Metrics, ParamGroup

HEADS = TriplaneConfig(
    z=LATENT, w=128, c=0, mapping_gain=1.0, channels=(256, 256, 192, 128, 64), features=24, hidden=64, colours=16,
    noise=False, superres=SuperresConfig(64, (64, 32), up=(True, False)), radius=RADIUS, focal=FOCAL,
    render=RenderConfig(coarse=48, fine=0, near=2.0, far=3.4, box=1.3, white=True, density_scale=20.0, side=64),
)  # fmt: skip
"""The shipped generator: 128 px, rendered at 64 px."""
SMOOTH = 2
SCALE = 4096.0
"""Depths are kept as 16-bit steps of 1 / 4096 of a world unit."""


class HeadsConfig(Settings):
    """How the generator of heads is trained."""

    pool: NonNegativeInt = 0
    """Heads that are rendered once and learned from again and again; 0 renders new ones for every batch."""

    batch: PositiveInt = 32
    """Heads per step."""

    yaw: PositiveFloat = 1.2
    """Widest yaw, in radians."""

    pitch: PositiveFloat = 0.4
    """Widest pitch, in radians."""

    mask_weight: NonNegativeFloat = 0.5
    """Weight of the silhouette."""

    depth_weight: NonNegativeFloat = 0.5
    """Weight of the depth, where the head is."""

    held_out: PositiveInt = 32
    """Unseen heads to measure on."""


class TrainHeads(Method[HeadsConfig]):
    """L1 at three scales of finished and raw picture, plus silhouette and depth, between generator and renderer."""

    def __init__(self, config: HeadsConfig, generator: TriplaneConfig = HEADS, seed: int = 1) -> None:
        """Build a random generator and render what is to be learned.

        Args:
            config: How to train.
            generator: Sizes.
            seed: Of the pool's heads; held-out heads are drawn from another stream.
        """
        super().__init__(config)
        self.generator = TriplaneGenerator(generator)
        self.known = self._draw(config.pool, stream(seed, "heads pool")) if config.pool else None
        self.unseen = self._draw(config.held_out, stream(seed, "heads held out"))

    def _draw(self, count: int, rng: torch.Generator) -> dict[str, Tensor]:
        """Draw latents and poses, and render them in parts, kept as bytes."""
        z = torch.randn(count, LATENT, generator=rng)
        angles = (torch.rand(count, 2, generator=rng) * 2 - 1) * torch.tensor([self.config.yaw, self.config.pitch])
        views = [self._view(part, pose) for part, pose in zip(z.split(16), angles.split(16), strict=True)]
        pixels = torch.cat([view.image for view in views]).add(1).mul(127.5).round().byte()
        depth = torch.cat([view.depth for view in views]).mul(SCALE).round().to(torch.int16)
        mask = torch.cat([view.mask for view in views]).bool()
        return {"z": z, "angles": angles, "pixels": pixels, "depth": depth, "mask": mask}

    def _view(self, z: Tensor, angles: Tensor) -> HeadView:
        return orbit(heads(z), angles[:, 0], angles[:, 1], self.generator.config.side, SMOOTH)

    def batch(self, index: int, rng: torch.Generator) -> Batch:
        """Draw known heads, or new ones."""
        if self.known is None:
            return self._draw(self.config.batch, rng)
        chosen = torch.randint(0, self.config.pool, (self.config.batch,), generator=rng)
        return {name: values[chosen] for name, values in self.known.items()}

    def forward(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """Return the loss, and the PSNR of the raw and of the finished picture."""
        target = self._targets(batch)
        seen = self._seen(batch, rng)
        loss = pyramid(seen.image.float(), target["image"]).mean()
        if self.generator.config.superres is not None:
            loss = loss + pyramid(seen.raw.float(), target["raw"]).mean()
        mask = (seen.opacity - target["mask"]).abs().mean()
        inside = (target["mask"] > 0.99).float()
        depth = ((seen.depth - target["depth"]).abs() * inside).sum() / inside.sum().clamp_min(1)
        loss = loss + self.config.mask_weight * mask + self.config.depth_weight * depth
        with torch.no_grad():
            metrics = {
                "psnr": psnr(seen.image.float(), target["image"]).mean(),
                "psnr_raw": psnr(seen.raw.float(), target["raw"]).mean(),
                "mask": mask,
                "depth": depth,
            }
        return loss, {name: value.detach() for name, value in metrics.items()}

    def _targets(self, batch: Batch) -> dict[str, Tensor]:
        side = self.generator.config.render.side
        image = batch["pixels"].float() / 127.5 - 1
        step = image.shape[-1] // side
        return {
            "image": image,
            "raw": functional.avg_pool2d(image, step),
            "mask": functional.avg_pool2d(batch["mask"].float(), step),
            "depth": functional.avg_pool2d(batch["depth"].float() / SCALE, step),
        }

    def _seen(self, batch: Batch, rng: torch.Generator | None) -> Any:
        z, angles = batch["z"], batch["angles"]
        own = self.generator.config
        cameras = look_at(angles[:, 0], angles[:, 1], own.radius, own.focal, own.pivot)
        return self.generator.view(self.generator.mapping(z), cameras, rng=rng)

    def param_groups(self) -> Iterable[ParamGroup]:
        """Everything is trained, nothing decays: equalised rates take the place of decay."""
        return [ParamGroup("generator", list(self.generator.parameters()), decay=False)]

    def artifact(self) -> None:
        """Nothing: the folder is written by :func:`trainers.embedded.heads_make.make`."""

    @torch.no_grad()
    def evaluate(self, rng: torch.Generator) -> dict[str, float]:
        """Measure on unseen heads with known latents: PSNR of both pictures, error of depth and silhouette."""
        device = next(self.generator.parameters()).device
        totals: dict[str, float] = {}
        for start in range(0, self.config.held_out, 8):
            part = {name: values[start : start + 8].to(device) for name, values in self.unseen.items()}
            _, found = self.forward(part, rng)
            for name, value in found.items():
                totals[name] = totals.get(name, 0.0) + float(value) * len(part["z"])
        return {f"{name}_unseen": total / self.config.held_out for name, total in totals.items()}

    @torch.no_grad()
    def preview(self, rng: torch.Generator) -> dict[str, Tensor]:
        """Show generated heads and what they should be."""
        device = next(self.generator.parameters()).device
        part = {name: values[:8].to(device) for name, values in self.unseen.items()}
        made = self._seen(part, None).image.float().cpu().clamp(-1, 1)
        return {"made": made, "meant": self._targets(part)["image"].cpu()}
