"""Training of the generator `heads`: regression on procedural heads whose latents are known.

It is a distilled generator and no GAN: z goes through the generator and through the world's own renderer, and what rays
see is compared. Nothing can collapse, and z ~ N(0, I) gives new heads. Super-resolution learns from patches of
neighbouring rays, and the generator with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge, Le
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional

from lrdiff.errors import RunError
from lrdiff.rng import stream
from lrdiff.triplane.config import RenderConfig, SuperresConfig, TriplaneConfig
from lrdiff.triplane.generator import TriplaneGenerator
from lrdiff.triplane.losses import psnr
from lrdiff.triplane.personal import orbit as cameras
from lrdiff.triplane.store import WEIGHTS, load
from lrdiff.triplane.volume import march, stratified
from lrdiff.world.heads import LATENT, Heads, heads
from lrdiff.world.heads_outline import outline
from lrdiff.world.heads_render import FOCAL, RADIUS, HeadView, eyes_at, look, orbit, places_of, rays_through
from lrdiff.world.heads_shape import distance
from trainers.config import Settings
from trainers.embedded.export import load_trained
from trainers.method import Batch, Method, Metrics, ParamGroup
from trainers.rundir import RunDir, open_run

SMOOTH = 2
"""Rays on a side of each pixel of the pictures that are measured on."""
HELD_OUT_SEED = 7
BORDER = 3
"""Rays at a patch's border that super-resolution sees and is not judged on, since it knows nothing beyond them."""
SHELL = (-0.008, 0.022)
"""Where colours count as the surface's, along the ray from it, in world units."""
BESIDE = 0.012
"""Deviation of what rays at outlines aim at, in world units; a pixel of a picture of 64 is 0.016 wide."""
CLEAR = 0.03
"""Distance from the surface, in world units, beyond which nothing may be dense."""
ROOM = 0.7
"""Half the side of the cube around the head that cameras look into, in world units."""
FACE = ((-0.17, -0.22, 0.15), (0.17, 0.2, 0.33))
"""Corners of the box around eyes, nose and mouth, in world units."""


class HeadsConfig(Settings):
    """How the generator of heads is built and trained."""

    w: PositiveInt = 128
    """Size of the mapped latent."""

    channels: tuple[PositiveInt, ...] = (128, 128, 96, 64, 32)
    """Channels at 4, 8, 16, ... cells; the last entry is the side of the planes."""

    features: PositiveInt = 16
    """Channels of each plane."""

    hidden: PositiveInt = 64
    """Width of the decoder."""

    colours: Annotated[int, Ge(3)] = 6
    """What the decoder gives at a point: red, green, blue, and what only super-resolution sees."""

    side: PositiveInt = 64
    """Rendered side, in pixels."""

    coarse: Annotated[int, Ge(4)] = 24
    """Depths of the first pass over a ray, outside training."""

    fine: NonNegativeInt = 24
    """Depths of the second pass."""

    batch: PositiveInt = 12
    """Heads per step."""

    rays: PositiveInt = 512
    """Rays per head and step, all of one camera, at random places of its picture."""

    face: Annotated[float, Ge(0.0), Le(1.0)] = 0.0
    """Share of the rays that aim at the face, where what tells people apart is small."""

    eyes: Annotated[float, Ge(0.0), Le(1.0)] = 0.0
    """Share of those that aim at the eyes."""

    outline: Annotated[float, Ge(0.0), Le(1.0)] = 0.0
    """Share of the rays that aim at outlines, of head, jaw, ears and neck, and of the patches. Nearly nine tenths of
    the squared error of a generator that has learned without lie within two pixels of the silhouette."""

    around: PositiveInt = 6
    """Samples of a ray beside the known surface."""

    between: Annotated[int, Ge(4)] = 6
    """Samples spread over the whole ray."""

    free: NonNegativeInt = 512
    """Points per head anywhere around it, where nothing may be dense. Rays have few samples there, and one that meets
    dense matter is stopped, so that it has no gradient: specks stay in the air."""

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

    surface_weight: NonNegativeFloat = 1.0
    """Weight of the colours at the surface itself. While densities are soft, a ray's colour is a mixture along it, and
    small features, eyes above all, do not appear for thousands of steps."""

    matrix_lr: PositiveFloat = 12.0
    """Factor on the learning rate of weights, which take orthogonal steps; biases and the constant take AdamW's."""

    free_weight: NonNegativeFloat = 1.0
    """Weight of the density in free space."""

    superres: tuple[PositiveInt, PositiveInt] | None = None
    """Channels of the two blocks that double the picture's side; None leaves them out."""

    superres_weight: PositiveFloat = 1.0
    """Weight of the error of enlarged patches."""

    patch: Annotated[int, Ge(8)] = 24
    """Side of the patch of neighbouring rays that super-resolution learns from, in rays."""

    start: Path | None = None
    """Training, or folder of a generator, whose weights are the start. Super-resolution may be new."""

    held_out: PositiveInt = 24
    """Unseen heads to measure on."""

    def generator(self) -> TriplaneConfig:
        """Return the generator's sizes. z is not normalised, because its length says how unusual a head is."""
        return TriplaneConfig(
            z=LATENT, w=self.w, c=0, mapping_gain=1.0, normalise=False, channels=self.channels,
            features=self.features, hidden=self.hidden, colours=self.colours, noise=False, radius=RADIUS, focal=FOCAL,
            render=RenderConfig(
                coarse=self.coarse, fine=self.fine, near=2.0, far=3.4, box=1.15, white=True, density_scale=20.0,
                side=self.side,
            ),
            superres=SuperresConfig(self.side, self.superres, (False, True), border=BORDER) if self.superres else None,
        )  # fmt: skip


class TrainHeads(Method[HeadsConfig]):
    """|C - C*| + mask |O - O*| + depth |D - D*| + surface |c - C*| over rays, plus |S - S*| over enlarged patches.

    C is what a ray sums up, c the colour at the surface, and * what the world's renderer says. Density in free space is
    added, free softplus(sigma - 1).

    The surface is known, so a ray takes few samples: some beside it, some anywhere. Outside training it takes
    two passes that know nothing.
    """

    def __init__(self, config: HeadsConfig) -> None:
        super().__init__(config)
        self.generator = TriplaneGenerator(config.generator())
        rng = stream(HELD_OUT_SEED, "heads held out")
        self.unseen_z, self.unseen_angles = self._draw(config.held_out, rng)
        if config.start is not None:
            self._go_on_from(config.start)

    def _go_on_from(self, path: Path) -> None:
        """Take the weights of another generator, which may have been without super-resolution."""
        before = load(path) if (path / WEIGHTS).is_file() else _trained(open_run(path))
        own, given = ({name: value.shape for name, value in g.state_dict().items()} for g in (self.generator, before))
        other = {name for name in own | given if own.get(name) != given.get(name)}
        other = sorted(name for name in other if name in given or not name.startswith("superresolution."))
        if other:
            raise RunError(f"{path}: its generator is another one ({other[0]}); give equal sizes")
        self.generator.load_state_dict(before.state_dict(), strict=False)

    @cached_property
    def unseen(self) -> HeadView:
        """Pictures of the unseen heads, at the rendered side."""
        yaw, pitch = self.unseen_angles.T
        return orbit(heads(self.unseen_z), yaw, pitch, self.config.side, SMOOTH)

    def _draw(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return latents [N, 24], and yaws and pitches [N, 2]."""
        z = torch.randn(count, LATENT, generator=rng)
        limits = torch.tensor([self.config.yaw, self.config.pitch])
        return z, (torch.rand(count, 2, generator=rng) * 2 - 1) * limits

    def batch(self, index: int, rng: torch.Generator) -> Batch:
        """Draw new heads, and let the world's renderer say what random rays see of them."""
        z, angles = self._draw(self.config.batch, rng)
        person = heads(z)
        places = torch.rand(len(z), self.config.rays, 2, generator=rng) - 0.5
        aimed = round(self.config.face * self.config.rays)
        if aimed:
            points = self._aims(person, aimed, rng)
            places = torch.cat([places[:, aimed:], places_of(angles[:, 0], angles[:, 1], points)], 1)
        edges = round(self.config.outline * self.config.rays)
        if edges:
            points = self._edges(person, angles, edges, rng)
            places = torch.cat([places[:, edges:], places_of(angles[:, 0], angles[:, 1], points)], 1)
        patch = {}
        if self.config.superres:
            aims = self._aims(person, 1, rng)
            at_edge = round(self.config.outline * len(z))
            if at_edge:
                aims[:at_edge] = self._edges(person, angles, 1, rng)[:at_edge]
            middle = places_of(angles[:, 0], angles[:, 1], aims)
            raw, fine = self._patches(middle, rng)
            places = torch.cat([places, raw], 1)
            patch = {"patch": look(person, *rays_through(angles[:, 0], angles[:, 1], fine)).colour}
        origins, directions = rays_through(angles[:, 0], angles[:, 1], places)
        seen = look(person, origins, directions)
        known = {name: getattr(seen, name) for name in ("colour", "depth", "hit", "nearest")}
        if self.config.free:
            points = (2 * torch.rand(len(z), self.config.free, 3, generator=rng) - 1) * ROOM
            known |= {"points": points, "clear": distance(person, points) > CLEAR}
        return {"z": z, "origins": origins, "directions": directions} | known | patch

    def _patches(self, middle: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return places of all rays of a patch [B, P^2, 2], and anywhere in each pixel of twice the side [B, 4 P^2, 2].

        Args:
            middle: Where the patches should lie, [B, 1, 2]; they lie inside the picture.
            rng: Of the places within a pixel.
        """
        size, side = self.config.patch, self.config.side
        corner = ((middle + 0.5) * side - size / 2).round().clamp(0, side - size)

        def grid(count: int, step: float) -> Tensor:
            rows, columns = torch.meshgrid(torch.arange(count), torch.arange(count), indexing="ij")
            return step * torch.stack([columns, rows], -1).reshape(1, -1, 2)

        inside = torch.rand(len(middle), 4 * size * size, 2, generator=rng)
        return (corner + grid(size, 1.0) + 0.5) / side - 0.5, (corner + grid(2 * size, 0.5) + 0.5 * inside) / side - 0.5

    def _aims(self, person: Heads, count: int, rng: torch.Generator) -> Tensor:
        """Return points [B, count, 3] in the box around the face, and about the eyes."""
        points = torch.rand(len(person), count, 3, generator=rng)
        points = torch.tensor(FACE[0]).lerp(torch.tensor(FACE[1]), points)
        many = round(self.config.eyes * count)
        if many:
            side = torch.arange(many) % 2 * 2.0 - 1
            eyes = torch.stack(
                [
                    person.eye_x * side,
                    torch.full((len(person), many), 0.05),
                    0.9 * person.skull[..., 2].expand(-1, many),
                ],
                -1,
            )
            spread = person.eye_r[..., None] * torch.randn(len(person), many, 3, generator=rng)
            points = torch.cat([points[:, many:], eyes + spread], 1)
        return points

    def _edges(self, person: Heads, angles: Tensor, count: int, rng: torch.Generator) -> Tensor:
        """Return points [B, count, 3] beside what cameras see as outlines."""
        points = outline(person, eyes_at(angles[:, 0], angles[:, 1]), count, rng)
        return points + BESIDE * torch.randn(points.shape, generator=rng)

    def forward(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """Return the loss and its parts, and the PSNR of the rays' colours."""
        own, hit = self.generator.config.render, batch["hit"]
        ws = self.generator.mapping(batch["z"])
        planes = self.generator.planes(ws)
        depths = self._depths(batch["nearest"], rng)
        samples = self.generator.along(planes, batch["origins"], batch["directions"], depths)
        seen = march(*samples, white=own.white, scale=own.density_scale)
        meant = batch["colour"] * 2 - 1
        colour = (seen.colours[..., :3] - meant).abs().mean()
        mask = (seen.opacity - hit.float()).abs().mean()
        depth = ((seen.depth - batch["depth"]).abs() * hit).sum() / hit.sum().clamp_min(1)
        surface = self._surface(planes, batch, rng)
        loss = colour + self.config.mask_weight * mask + self.config.depth_weight * depth
        loss = loss + self.config.surface_weight * surface
        error = (seen.colours[..., :3].detach().clamp(-1, 1) - meant).square().mean()
        metrics = {"psnr": -10 * torch.log10(error / 4), "mask": mask.detach(), "depth": depth.detach()}
        metrics["surface"] = surface.detach()
        if "points" in batch:
            free = self._free(planes, batch["points"], batch["clear"])
            metrics["free"] = free.detach()
            loss = loss + self.config.free_weight * free
        if "patch" in batch:
            finished = self._finished(seen.colours, ws, batch["patch"])
            metrics["finished"] = finished.detach()
            loss = loss + self.config.superres_weight * finished
        return loss, metrics

    def _surface(self, planes: Tensor, batch: Batch, rng: torch.Generator) -> Tensor:
        """Return the mean absolute error of the colours at the surface, or just before or behind it."""
        hit, depth = batch["hit"], batch["depth"][..., None]
        low, high = SHELL
        depth = depth + low + (high - low) * torch.rand(depth.shape, generator=rng).to(depth)
        _, _, colours = self.generator.along(planes, batch["origins"], batch["directions"], depth)
        apart = (2 * colours[..., 0, :3] - 2 * batch["colour"]).abs().mean(-1)
        return (apart * hit).sum() / hit.sum().clamp_min(1)

    def _free(self, planes: Tensor, points: Tensor, clear: Tensor) -> Tensor:
        """Return the mean density, before its scale, where there should be none."""
        sigma, _ = self.generator.density(planes, points)
        return (functional.softplus(sigma.flatten(1) - 1) * clear).sum() / clear.sum().clamp_min(1)

    def _finished(self, colours: Tensor, ws: Tensor, meant: Tensor) -> Tensor:
        """Return the mean absolute error of the enlarged patches, [B, 4 P^2, 3] being meant, in [0, 1]."""
        size = self.config.patch
        features = colours[:, -size * size :].transpose(1, 2).reshape(len(ws), -1, size, size)
        made = self.generator.superresolution.enlarge(features.float(), ws.float())
        goal = (meant * 2 - 1).transpose(1, 2).reshape(len(ws), 3, 2 * size, 2 * size)
        inner = slice(2 * BORDER, -2 * BORDER)
        return (made - goal)[..., inner, inner].abs().mean()

    def _depths(self, nearest: Tensor, rng: torch.Generator) -> Tensor:
        """Return the depths [B, N, D] of samples: anywhere, and beside the surface.

        A ray that misses takes them where it comes nearest: density that is left there would be seen by the two passes
        outside training, as a silhouette that is too large, and missed by samples that lie anywhere.
        """
        own, rays = self.generator.config.render, tuple(nearest.shape)
        spread = stratified(own.near, own.far, self.config.between, rays, rng)
        width = self.config.width
        beside = nearest[..., None] + stratified(-width, width, self.config.around, rays, rng).to(nearest)
        return torch.cat([spread.to(nearest), beside], -1).sort(-1).values

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
def _trained(run: RunDir) -> TriplaneGenerator:
    """Return the generator of a training, at its newest checkpoint."""
    config = HeadsConfig.model_validate(run.read()["config"]["method"])
    method = TrainHeads(config.model_copy(update={"start": None}))
    load_trained(method, run)
    return method.generator


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
        units (a head is about 0.9 high); `mask_unseen`, mean absolute error of the silhouette; `specks_unseen`, share
        of the pixels further than two from the head that are more than a tenth opaque.
    """
    found: dict[str, list[Tensor]] = {"psnr": [], "depth": [], "mask": [], "specks": []}
    for part in torch.arange(len(z)).split(8):
        seen = generator.view(generator.mapping(z[part]), cameras(generator, angles[part]))
        mask = meant.mask[part]
        depth = ((seen.depth - meant.depth[part]).abs() * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp_min(1)
        found["psnr"].append(psnr(seen.raw, meant.image[part]))
        found["depth"].append(depth)
        found["mask"].append((seen.opacity - mask).abs().mean((1, 2, 3)))
        beside = functional.max_pool2d(mask, 5, stride=1, padding=2) == 0
        found["specks"].append(((seen.opacity > 0.1) & beside).sum((1, 2, 3)) / beside.sum((1, 2, 3)).clamp_min(1))
    return {f"{name}_unseen": float(torch.cat(values).mean()) for name, values in found.items()}
