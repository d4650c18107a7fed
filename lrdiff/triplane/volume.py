"""Depths along rays, and the sum of colours along them (NeRF, arXiv 2003.08934; EG3D, arXiv 2112.07945)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

FLOOR = 0.01


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a set of rays saw.

    Attributes:
        colours: [..., C] in [-1, 1] (slightly beyond for the decoder's margin).
        depth: [...] mean distance along the ray; the end of the samples where nothing was hit.
        weights: [..., N - 1] share of each interval between samples.
    """

    colours: Tensor
    depth: Tensor
    weights: Tensor

    @property
    def opacity(self) -> Tensor:
        """Share of a ray that was stopped, [...]."""
        return self.weights.sum(-1)


def stratified(near: float, far: float, count: int, rays: tuple[int, ...], rng: torch.Generator | None) -> Tensor:
    """Return one depth in each of `count` equal cells of [near, far].

    Args:
        near: Start.
        far: End.
        count: Number of cells.
        rays: Leading shape.
        rng: On the CPU; one uniform offset for each sample. None takes the middle of each cell.

    Returns:
        [*rays, count], rising.

    Differs from the paper: the cells divide [near, far], so that no sample lies beyond `far`.
    """
    width = (far - near) / count
    start = near + width * torch.arange(count, dtype=torch.float32)
    offset = torch.rand(*rays, count, generator=rng) if rng is not None else torch.full((*rays, count), 0.5)
    return start + width * offset


def smoothed(weights: Tensor) -> Tensor:
    """Return weights that also draw samples beside a peak: max-pool 2, mean-pool 2, plus 0.01. [..., N] -> [..., N]."""
    flat = weights.reshape(-1, 1, weights.shape[-1])
    flat = functional.avg_pool1d(functional.max_pool1d(flat, 2, stride=1, padding=1), 2, stride=1)
    return flat.reshape(weights.shape) + FLOOR


def inverse_cdf(edges: Tensor, weights: Tensor, uniform: Tensor) -> Tensor:
    """Map uniform numbers to a piecewise constant distribution.

    Args:
        edges: [..., N + 1], rising.
        weights: [..., N], not negative, not all zero; need not sum to 1.
        uniform: [..., M] in [0, 1].

    Returns:
        [..., M], inside the edges.
    """
    share = weights / weights.sum(-1, keepdim=True)
    cumulated = functional.pad(share.cumsum(-1), (1, 0))
    cell = (torch.searchsorted(cumulated.contiguous(), uniform.contiguous(), right=True) - 1).clamp(
        0, weights.shape[-1] - 1
    )
    low, high = edges.gather(-1, cell), edges.gather(-1, cell + 1)
    inside = (uniform - cumulated.gather(-1, cell)) / share.gather(-1, cell).clamp_min(1e-12)
    return low + (high - low) * inside.clamp(0, 1)


def importance(depths: Tensor, weights: Tensor, count: int, rng: torch.Generator | None) -> Tensor:
    """Draw further depths where the first pass found something.

    The smoothed weights of the inner intervals (the two ends are dropped) are a piecewise constant density.

    Args:
        depths: [..., N] of the first pass, rising.
        weights: [..., N - 1] of its intervals.
        count: Depths to draw.
        rng: On the CPU. None takes equidistant quantiles.

    Returns:
        [..., count], without gradient.

    Differs from the paper: a weight is spread over its own interval; the usual implementations shift it by half a cell.
    """
    rays = depths.shape[:-1]
    if rng is not None:
        uniform = torch.rand(*rays, count, generator=rng)
    else:
        uniform = ((torch.arange(count) + 0.5) / count).expand(*rays, count)
    density = smoothed(weights.detach())[..., 1:-1]
    return inverse_cdf(depths.detach()[..., 1:-1], density, uniform.to(depths))


def march(depths: Tensor, sigma: Tensor, colours: Tensor, white: bool, scale: float = 1.0) -> Rendered:
    """Sum colours along rays.

    Between neighbouring samples: sigma, colour and depth are averaged; density = scale softplus(sigma - 1);
    alpha = 1 - exp(-density delta); T = product of (1 - alpha + 1e-10) before it; weight = alpha T. The sum of
    weight colour (plus what is left of the ray in white) is taken from [0, 1] to [-1, 1].

    Args:
        depths: [..., N], rising.
        sigma: [..., N], the decoder's raw density.
        colours: [..., N, C], about in [0, 1].
        white: Fill up with white; else with black.
        scale: Factor on the density.
    """
    delta = depths.diff(dim=-1)
    density = scale * functional.softplus(_middle(sigma) - 1)
    alpha = 1 - torch.exp(-density * delta)
    kept = torch.cumprod(1 - alpha + 1e-10, -1)
    weights = alpha * functional.pad(kept[..., :-1], (1, 0), value=1.0)
    middle = (colours[..., 1:, :] + colours[..., :-1, :]) / 2
    summed = (weights[..., None] * middle).sum(-2)
    opacity = weights.sum(-1)
    if white:
        summed = summed + (1 - opacity)[..., None]
    # A ray that nothing stops has no mean depth; dividing by a tiny number instead of 0 keeps its gradient finite.
    depth = (weights * _middle(depths)).sum(-1) / opacity.clamp_min(torch.finfo(opacity.dtype).tiny)
    depth = torch.where(opacity > 0, depth, float("inf")).clamp(depths.detach().amin(), depths.detach().amax())
    return Rendered(colours=summed * 2 - 1, depth=depth, weights=weights)


def merged(
    first: tuple[Tensor, Tensor, Tensor], second: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (depths, sigma, colours) of two passes as one, sorted by depth."""
    depths, order = torch.cat([first[0], second[0]], -1).sort(-1)
    sigma = torch.cat([first[1], second[1]], -1).gather(-1, order)
    colours = torch.cat([first[2], second[2]], -2)
    return depths, sigma, colours.gather(-2, order[..., None].expand_as(colours))


def _middle(x: Tensor) -> Tensor:
    return (x[..., 1:] + x[..., :-1]) / 2
