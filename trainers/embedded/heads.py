"""Training of the generator `heads`: regression on procedural heads whose latents are known.

It is a distilled generator and no GAN: z goes through the generator and through the world's own renderer, and what rays
see is compared. Nothing can collapse, and z ~ N(0, I) gives new heads.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge, Le
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from lrdiff.rng import stream
from lrdiff.triplane.config import RenderConfig, TriplaneConfig
from lrdiff.triplane.generator import TriplaneGenerator
from lrdiff.triplane.losses import psnr
from lrdiff.triplane.personal import orbit as cameras
from lrdiff.triplane.volume import march, stratified
from lrdiff.world.heads import LATENT, heads
from lrdiff.world.heads_render import FOCAL, RADIUS, HeadView, look, orbit, places_of, rays_through
from trainers.config import Settings
from trainers.embedded.export import load_trained
from trainers.method import Batch, Method, Metrics, ParamGroup
from trainers.rundir import open_run

SMOOTH = 2
"""Rays on a side of each pixel of the pictures that are measured on."""
HELD_OUT_SEED = 7
FACE = ((-0.2, -0.27, 0.15), (0.2, 0.22, 0.35))
"""Corners of the box around eyes, nose and mouth, in world units."""


class HeadsConfig(Settings):
    """How the generator of heads is built and trained."""

    w: PositiveInt = 96
    """Size of the mapped latent."""

    channels: tuple[PositiveInt, ...] = (128, 128, 96, 64, 32)
    """Channels at 4, 8, 16, ... cells; the last entry is the side of the planes."""

    features: PositiveInt = 16
    """Channels of each plane."""

    hidden: PositiveInt = 48
    """Width of the decoder."""

    side: PositiveInt = 64
    """Rendered side, in pixels."""

    coarse: Annotated[int, Ge(4)] = 24
    """Depths of the first pass over a ray, outside training."""

    fine: NonNegativeInt = 24
    """Depths of the second pass."""

    batch: PositiveInt = 8
    """Heads per step."""

    rays: PositiveInt = 1024
    """Rays per head and step, all of one camera, at random places of its picture."""

    face: Annotated[float, Ge(0.0), Le(1.0)] = 0.0
    """Share of the rays that aim at the face, where what tells people apart is small."""

    around: PositiveInt = 6
    """Samples of a ray beside the known surface."""

    between: Annotated[int, Ge(4)] = 8
    """Samples spread over the whole ray."""

    width: PositiveFloat = 0.08
    """How far samples beside the surface lie from it at most, in world units."""

    yaw: PositiveFloat = 1.2
    """Widest yaw, in radians."""

    pitch: PositiveFloat = 0.4
    """Widest pitch, in radians."""

    mask_weight: NonNegativeFloat = 0.5
    """Weight of the silhouette."""

    depth_weight: NonNegativeFloat = 1.0
    """Weight of the depth, where the head is."""

    matrix_lr: PositiveFloat = 12.0
    """Factor on the learning rate of weights, which take orthogonal steps; biases and the constant take AdamW's."""

    start: Path | None = None
    """Training whose weights are the start."""

    held_out: PositiveInt = 32
    """Unseen heads to measure on."""

    def generator(self) -> TriplaneConfig:
        """Return the generator's sizes. z is not normalised, because its length says how unusual a head is."""
        return TriplaneConfig(
            z=LATENT, w=self.w, c=0, mapping_gain=1.0, normalise=False, channels=self.channels,
            features=self.features, hidden=self.hidden, colours=3, noise=False, radius=RADIUS, focal=FOCAL,
            render=RenderConfig(
                coarse=self.coarse, fine=self.fine, near=2.0, far=3.4, box=1.3, white=True, density_scale=20.0,
                side=self.side,
            ),
        )  # fmt: skip


class TrainHeads(Method[HeadsConfig]):
    """|C - C*| + mask |O - O*| + depth |D - D*| over random rays, * being the world's renderer.

    The surface is known, so a ray takes few samples: some beside the surface, some anywhere. Outside training it takes
    two passes that know nothing.
    """

    def __init__(self, config: HeadsConfig) -> None:
        super().__init__(config)
        self.generator = TriplaneGenerator(config.generator())
        rng = stream(HELD_OUT_SEED, "heads held out")
        self.unseen_z, self.unseen_angles = self._draw(config.held_out, rng)
        self.unseen = orbit(
            heads(self.unseen_z), self.unseen_angles[:, 0], self.unseen_angles[:, 1], config.side, SMOOTH
        )
        if config.start is not None:
            with torch.no_grad():
                load_trained(self, open_run(config.start))

    def _draw(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return latents [N, 24], and yaws and pitches [N, 2]."""
        z = torch.randn(count, LATENT, generator=rng)
        limits = torch.tensor([self.config.yaw, self.config.pitch])
        return z, (torch.rand(count, 2, generator=rng) * 2 - 1) * limits

    def batch(self, index: int, rng: torch.Generator) -> Batch:
        """Draw new heads, and let the world's renderer say what random rays see of them."""
        z, angles = self._draw(self.config.batch, rng)
        places = torch.rand(len(z), self.config.rays, 2, generator=rng) - 0.5
        aimed = round(self.config.face * self.config.rays)
        if aimed:
            points = torch.rand(len(z), aimed, 3, generator=rng)
            points = torch.tensor(FACE[0]).lerp(torch.tensor(FACE[1]), points)
            places = torch.cat([places[:, aimed:], places_of(angles[:, 0], angles[:, 1], points)], 1)
        origins, directions = rays_through(angles[:, 0], angles[:, 1], places)
        colour, depth, _, hit = look(heads(z), origins, directions)
        return {"z": z, "origins": origins, "directions": directions, "colour": colour, "depth": depth, "hit": hit}

    def forward(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """Return the loss and its parts, and the PSNR of the rays' colours."""
        own, hit = self.generator.config.render, batch["hit"]
        planes = self.generator.planes(self.generator.mapping(batch["z"]))
        depths = self._depths(batch["depth"], hit, rng)
        samples = self.generator.along(planes, batch["origins"], batch["directions"], depths)
        seen = march(*samples, white=own.white, scale=own.density_scale)
        meant = batch["colour"] * 2 - 1
        colour = (seen.colours - meant).abs().mean()
        mask = (seen.opacity - hit.float()).abs().mean()
        depth = ((seen.depth - batch["depth"]).abs() * hit).sum() / hit.sum().clamp_min(1)
        loss = colour + self.config.mask_weight * mask + self.config.depth_weight * depth
        error = (seen.colours.detach().clamp(-1, 1) - meant).square().mean()
        return loss, {
            "psnr": -10 * torch.log10(error / 4),
            "mask": mask.detach(),
            "depth": depth.detach(),
        }

    def _depths(self, surface: Tensor, hit: Tensor, rng: torch.Generator) -> Tensor:
        """Return the depths [B, N, D] of samples: beside the surface where there is one, and anywhere."""
        own, rays = self.generator.config.render, tuple(surface.shape)
        spread = stratified(own.near, own.far, self.config.between, rays, rng)
        width = self.config.width
        beside = stratified(-width, width, self.config.around, rays, rng)
        other = stratified(own.near, own.far, self.config.around, rays, rng)
        beside = torch.where(hit[..., None], surface[..., None] + beside.to(surface), other.to(surface))
        return torch.cat([spread.to(surface), beside], -1).sort(-1).values

    def param_groups(self) -> Iterable[ParamGroup]:
        """Return weights of layers, and the rest. Nothing decays: what a weight's size means is demodulated away."""
        named = dict(self.generator.named_parameters())
        weights = [p for name, p in named.items() if name.endswith("weight")]
        rest = [p for name, p in named.items() if not name.endswith("weight")]
        return [
            ParamGroup("weights", weights, lr_scale=self.config.matrix_lr, decay=False, orthogonal=True),
            ParamGroup("biases and constant", rest, decay=False),
        ]

    def artifact(self) -> None:
        """Nothing: the folder is written by :mod:`trainers.embedded.heads_make`."""

    @torch.no_grad()
    def evaluate(self, rng: torch.Generator) -> dict[str, float]:
        """Measure on pictures of unseen heads with known latents, with the generator's own rendering."""
        return compare(self.generator, self.unseen_z, self.unseen_angles, self.unseen)

    @torch.no_grad()
    def preview(self, rng: torch.Generator) -> dict[str, Tensor]:
        """Show generated heads and what they should be."""
        ws, shown = self.generator.mapping(self.unseen_z[:8]), cameras(self.generator, self.unseen_angles[:8])
        return {"made": self.generator.view(ws, shown).raw.clamp(-1, 1), "meant": self.unseen.image[:8]}


@torch.no_grad()
def compare(generator: TriplaneGenerator, z: Tensor, angles: Tensor, meant: HeadView) -> dict[str, float]:
    """Return how far a generator's pictures before super-resolution are from the world's.

    Args:
        generator: With its own rendering.
        z: [N, 24].
        angles: Yaws and pitches [N, 2] in radians.
        meant: What the world's renderer shows, at the rendered side.

    Returns:
        `psnr_unseen` in dB, the mean over pictures; `depth_unseen`, mean absolute error where the head is, in world
        units (a head is about 0.9 high); `mask_unseen`, mean absolute error of the silhouette.
    """
    found: dict[str, list[Tensor]] = {"psnr": [], "depth": [], "mask": []}
    for part in torch.arange(len(z)).split(8):
        seen = generator.view(generator.mapping(z[part]), cameras(generator, angles[part]))
        mask = meant.mask[part]
        depth = ((seen.depth - meant.depth[part]).abs() * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp_min(1)
        found["psnr"].append(psnr(seen.raw, meant.image[part]))
        found["depth"].append(depth)
        found["mask"].append((seen.opacity - mask).abs().mean((1, 2, 3)))
    return {f"{name}_unseen": float(torch.cat(values).mean()) for name, values in found.items()}
