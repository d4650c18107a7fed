"""A generator of pictures of 3D heads: a latent becomes three feature planes, which any camera can look into."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrdiff.errors import ShapeError
from lrdiff.triplane.cameras import rays
from lrdiff.triplane.config import TriplaneConfig
from lrdiff.triplane.layers import Linear, Noise
from lrdiff.triplane.planes import Decoder, sample_planes
from lrdiff.triplane.synthesis import Mapping, Superresolution, Synthesis
from lrdiff.triplane.volume import Rendered, importance, march, merged, stratified


@dataclass(frozen=True, slots=True)
class View:
    """What a camera sees.

    Attributes:
        image: [B, 3, side, side] about in [-1, 1]: the finished picture.
        raw: [B, 3, s, s]: the picture before super-resolution.
        depth: [B, 1, s, s]: mean distance along the ray, in world units.
        opacity: [B, 1, s, s] in [0, 1]: how much of a ray was stopped.
    """

    image: Tensor
    raw: Tensor
    depth: Tensor
    opacity: Tensor


@dataclass(frozen=True, slots=True)
class Window:
    """A square part of a rendered picture, in its pixels.

    Attributes:
        top: First row.
        left: First column.
        size: Rows and columns.
    """

    top: int
    left: int
    size: int

    def rays(self, side: int) -> Tensor:
        """Return the numbers [size^2] of its pixels in a picture of `side`, row by row.

        Raises:
            ShapeError: The window does not lie inside the picture.
        """
        if min(self.top, self.left, side - self.top - self.size, side - self.left - self.size) < 0:
            raise ShapeError(f"window {self} does not lie inside a picture of {side} pixels")
        rows, columns = (start + torch.arange(self.size) for start in (self.top, self.left))
        return (rows[:, None] * side + columns).flatten()

    def mirrored(self, side: int) -> Window:
        """Return the window that shows the same in the flipped picture."""
        return Window(self.top, side - self.left - self.size, self.size)

    def crop(self, images: Tensor, side: int) -> Tensor:
        """Cut the part out of finished pictures [B, C, k side, k side]: [B, C, k size, k size]."""
        scale = images.shape[-1] // side
        top, left, size = (scale * value for value in (self.top, self.left, self.size))
        return images[..., top : top + size, left : left + size]


class Backbone(nn.Module):
    """Mapping and synthesis of the planes."""

    def __init__(self, config: TriplaneConfig) -> None:
        super().__init__()
        self.mapping = Mapping(config)
        self.synthesis = Synthesis(config)


class TriplaneGenerator(nn.Module):
    """Tri-plane generator with volume rendering and optional super-resolution (EG3D, arXiv 2112.07945).

    Written from the published mathematics. Parameters have the names and shapes of the published weights, so that a
    user's own copy of those can be loaded (see `lrdiff.triplane.pickles`).

    Args:
        config: Sizes; `eg3d_config` gives the published ones. Weights are random, drawn from torch's generator.

    Differs from the paper: everything is plain PyTorch; rendering is deterministic unless a generator of random
    numbers is given; depth cells divide [near, far] (see :func:`lrdiff.triplane.volume.stratified`).
    """

    def __init__(self, config: TriplaneConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.decoder = Decoder(config)
        if config.superres is not None:
            self.superresolution = Superresolution(config.superres, config.colours, config.w)
        self._apply_gains()

    def _apply_gains(self) -> None:
        """Put in the gains that a file states in place of those that follow from the sizes."""
        layers = {name: layer for name, layer in self.named_modules() if isinstance(layer, Linear)}
        for name, (weight_gain, bias_gain) in self.config.gains.items():
            if name not in layers:
                raise ShapeError(f"gains: there is no fully connected layer {name!r}; take it out of the configuration")
            layers[name].weight_gain, layers[name].bias_gain = weight_gain, bias_gain

    def mapping(self, z: Tensor, camera: Tensor | None = None, truncation: float = 1.0) -> Tensor:
        """Return the latents [B, latents, w] of z [B, z]; see :class:`Mapping`."""
        return self.backbone.mapping(z, camera, truncation)

    def planes(self, ws: Tensor, noise: Noise = "const") -> Tensor:
        """Return the planes of latents, which any number of views can share.

        Args:
            ws: [B, latents, w], or [B, w] for one w in all layers.
            noise: Whether learned noise is added.

        Returns:
            [B, 3, features, S, S].
        """
        made = self.backbone.synthesis(self._latents(ws), noise)
        return made.reshape(len(made), 3, self.config.features, *made.shape[2:])

    def _latents(self, ws: Tensor) -> Tensor:
        ws = ws[:, None].expand(-1, self.config.latents, -1) if ws.ndim == 2 else ws
        if ws.shape[1:] != (self.config.latents, self.config.w):
            raise ShapeError(
                f"latents have shape {tuple(ws.shape)}; this generator takes [B, {self.config.latents}, "
                f"{self.config.w}] or [B, {self.config.w}]"
            )
        return ws

    def density(self, planes: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return raw density [B, N] and colours [B, N, C] in [0, 1] at points [B, N, 3]."""
        render = self.config.render
        return self.decoder(sample_planes(planes, points, render.box, render.legacy_axes))

    def render(
        self,
        planes: Tensor,
        camera: Tensor,
        side: int | None = None,
        rng: torch.Generator | None = None,
        chunk: int | None = None,
        window: Window | None = None,
    ) -> Rendered:
        """Look into planes.

        Args:
            planes: [B, 3, features, S, S].
            camera: [B, 25].
            side: Rays per row and column; None takes the configuration's.
            rng: On the CPU, for jittered depths. None takes fixed ones, so that equal inputs give equal bits.
            chunk: Rays at a time, to bound the memory; None takes all at once.
            window: Only this part of the picture; None takes all of it.

        Returns:
            Rays row by row: colours [B, side^2, C], depth and weights.
        """
        side = side or self.config.render.side
        origins, directions = rays(camera, side)
        if window is not None:
            chosen = window.rays(side).to(origins.device)
            origins, directions = origins[:, chosen], directions[:, chosen]
        if chunk is None:
            return self.look(planes, origins, directions, rng)
        parts = zip(origins.split(chunk, 1), directions.split(chunk, 1), strict=True)
        seen = [self.look(planes, origin, direction, rng) for origin, direction in parts]
        return Rendered(*(torch.cat([getattr(part, item.name) for part in seen], 1) for item in _FIELDS))

    def look(self, planes: Tensor, origins: Tensor, directions: Tensor, rng: torch.Generator | None = None) -> Rendered:
        """Follow rays with origins and unit directions [B, N, 3]."""
        render = self.config.render
        shape = (int(origins.shape[0]), int(origins.shape[1]))
        depths = stratified(render.near, render.far, render.coarse, shape, rng).to(origins.device)
        found = self.along(planes, origins, directions, depths)
        if render.fine:
            with torch.no_grad():
                coarse = march(*found, white=render.white, scale=render.density_scale)
                depths = importance(depths, coarse.weights, render.fine, rng)
            found = merged(found, self.along(planes, origins, directions, depths))
        return march(*found, white=render.white, scale=render.density_scale)

    def along(
        self, planes: Tensor, origins: Tensor, directions: Tensor, depths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return depths [B, N, D], raw density [B, N, D] and colours [B, N, D, C] on rays."""
        points = origins[..., None, :] + depths[..., None] * directions[..., None, :]
        sigma, colours = self.density(planes, points.flatten(1, 2))
        return depths, sigma.reshape(depths.shape), colours.reshape(*depths.shape, -1)

    def view(
        self,
        ws: Tensor,
        camera: Tensor,
        planes: Tensor | None = None,
        side: int | None = None,
        rng: torch.Generator | None = None,
        noise: Noise = "const",
        chunk: int | None = None,
        half: bool = False,
        window: Window | None = None,
    ) -> View:
        """Return what cameras see of latents.

        Args:
            ws: [B, latents, w] or [B, w].
            camera: [B, 25].
            planes: What `planes(ws)` gave, to save making them again.
            side: Rendered side; None takes the configuration's.
            rng: For jittered depths; None renders the same bits every time.
            noise: Whether learned noise is added to the planes.
            chunk: Rays at a time.
            half: Super-resolution in float16 (for GPUs).
            window: Only this part of the picture. Convolutions of super-resolution know nothing beyond its border.

        Raises:
            ShapeError: Latents have another size, or a window is asked of a picture that super-resolution resizes.
        """
        side = side or self.config.render.side
        superres = self.config.superres
        if window is not None and superres is not None and superres.input != side:
            raise ShapeError(
                f"a window needs a rendered side of {superres.input}, which is what super-resolution takes"
            )
        ws = self._latents(ws)
        planes = self.planes(ws, noise) if planes is None else planes
        seen = self.render(planes, camera, side, rng, chunk, window)
        shown = side if window is None else window.size
        features = seen.colours.transpose(1, 2).reshape(len(ws), -1, shown, shown)
        raw = image = features[:, :3]
        if superres is not None:
            enlarge = self.superresolution if window is None else self.superresolution.enlarge
            image = enlarge(features, ws, half)
        shape = (len(ws), 1, shown, shown)
        return View(image, raw, seen.depth.reshape(shape), seen.opacity.reshape(shape))

    def forward(self, z: Tensor, camera: Tensor, truncation: float = 1.0) -> View:
        """Return what a camera sees of a latent z [B, z]; the camera also conditions the mapping."""
        return self.view(self.mapping(z, camera, truncation), camera)


_FIELDS = dataclasses.fields(Rendered)
