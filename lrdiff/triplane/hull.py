"""A person's own part of the latent space: mixtures of the anchors of that person's photos (MyStyle, arXiv 2203.17272).

w = sum_i a_i w_i with sum a = 1 and a_i >= -beta. Between the anchors the tuned generator shows the person; far outside
it shows somebody else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lrdiff.errors import ConfigError
from lrdiff.rng import stream
from lrdiff.triplane.cameras import look_at
from lrdiff.triplane.generator import TriplaneGenerator
from lrdiff.triplane.losses import reconstruction
from lrdiff.triplane.poses import corrected

BETA = 0.02
"""How far mixtures may leave the triangle between anchors."""
Degrade = Callable[[Tensor], Tensor]


def mixture(free: Tensor, beta: float = BETA) -> Tensor:
    """Return shares of anchors from free numbers: a = (1 + N beta) softmax(free) - beta.

    Args:
        free: [..., N], any numbers; equal ones give equal shares.
        beta: How far a share may go below 0.

    Returns:
        [..., N] with sum 1, each at least -beta.

    Differs from the paper: a softmax takes the place of softplus and division, so that sum and bound hold exactly and
    need no penalty.
    """
    return (1 + free.shape[-1] * beta) * free.softmax(-1) - beta


def mixed(anchors: Tensor, shares: Tensor) -> Tensor:
    """Return the latents of shares: anchors [N, layers, w] and shares [B, N] give [B, layers, w]."""
    return torch.einsum("bn,nlw->blw", shares, anchors)


def sample(count: int, anchors: int, rng: torch.Generator, among: int = 3) -> Tensor:
    """Draw shares [count, anchors]: those of a few anchors are uniform and brought to a sum of 1, the others 0.

    Args:
        count: How many mixtures.
        anchors: How many anchors there are.
        rng: On the CPU.
        among: How many of them take part, at most.
    """
    chosen = torch.rand(count, anchors, generator=rng).topk(min(among, anchors), 1).indices
    shares = torch.zeros(count, anchors).scatter(1, chosen, torch.rand(chosen.shape, generator=rng) + 1e-3)
    return shares / shares.sum(1, keepdim=True)


def moved(anchors: Tensor, shares: Tensor, direction: Tensor, amount: float, beta: float = BETA) -> tuple[Tensor, bool]:
    """Move a mixture along a direction, as far as the hull reaches.

    The direction n is replaced by the nearest one that the anchors span: g = argmin |A^T g - n| with sum g = 0. The
    shares become a + t g, and t ends where a share reaches -beta.

    Args:
        anchors: [N, layers, w].
        shares: [N].
        direction: [w], the same in all layers.
        amount: How far, in lengths of the direction; negative goes the other way.
        beta: How far a share may go below 0.

    Returns:
        The new shares [N], and whether the whole amount was gone.
    """
    centred = (anchors - anchors.mean(0)).flatten(1)
    wanted = direction.expand(anchors.shape[1], -1).flatten()
    slope = torch.linalg.pinv(centred.T.double()) @ wanted.double()
    step = amount * (slope - slope.mean()).to(shares)
    room = torch.where(step < 0, (shares + beta) / (-step).clamp_min(1e-12), float("inf")).min().clamp(0, 1)
    return shares + float(room) * step, bool(room >= 1)


@dataclass(frozen=True, slots=True)
class Found:
    """A photo, explained by a person's mixture.

    Attributes:
        shares: [N].
        ws: [1, layers, w].
        camera: [1, 25].
        loss: Of the degraded picture.
    """

    shares: Tensor
    ws: Tensor
    camera: Tensor
    loss: float


def explain(
    generator: TriplaneGenerator,
    anchors: Tensor,
    photo: Tensor,
    degrade: Degrade,
    steps: int = 200,
    lr: float = 0.05,
    beta: float = BETA,
    report: Callable[[int, float], None] | None = None,
) -> Found:
    """Search the mixture and the camera whose degraded picture is a given one: in-painting, enlarging, repair.

    argmin over a, camera of d(degrade(G(sum a_i w_i, camera)), photo). A degradation that hides a part fills it in, one
    that makes small enlarges.

    Args:
        generator: With the person's adapter.
        anchors: [N, layers, w].
        photo: [1, 3, h, w'] in [-1, 1], already degraded.
        degrade: What happened to the photo, of pictures [B, 3, side, side]; differentiable.
        steps: Adam steps, after a search among 13 x 5 cameras.
        lr: Peak rate; the last quarter falls to 0.
        beta: How far mixtures may leave the triangle between anchors.
        report: Called with step and loss.

    Raises:
        ConfigError: The degraded picture has another size than the photo.
    """
    own = generator.config
    grid = torch.cartesian_prod(torch.linspace(-1.1, 1.1, 13), torch.linspace(-0.35, 0.35, 5))
    cameras = look_at(grid[:, 0], grid[:, 1], own.radius, own.focal, own.pivot).to(photo)
    start = anchors.mean(0, keepdim=True).expand(-1, own.latents, -1)
    with torch.no_grad():
        planes = generator.planes(start)
        losses = []
        for camera in cameras:
            seen = degrade(generator.view(start, camera[None], planes=planes).image)
            if seen.shape != photo.shape:
                raise ConfigError(f"the photo is {tuple(photo.shape[2:])}, but would be {tuple(seen.shape[2:])}")
            losses.append(reconstruction(seen, photo))
    camera = cameras[int(torch.cat(losses).argmin())][None]
    free = torch.zeros(1, len(anchors), device=photo.device, requires_grad=True)
    angles = torch.zeros(1, 2, device=photo.device, requires_grad=True)
    optimizer = torch.optim.Adam([{"params": [free], "lr": lr}, {"params": [angles], "lr": lr / 5}])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 4 * (1 - step / steps)))
    loss = torch.zeros(())
    for step in range(steps):
        ws = mixed(anchors, mixture(free, beta)).expand(-1, own.latents, -1)
        seen = generator.view(ws, corrected(camera, angles, generator))
        loss = reconstruction(degrade(seen.image), photo).sum()
        free.grad, angles.grad = torch.autograd.grad(loss, [free, angles])
        optimizer.step()
        schedule.step()
        if report is not None:
            report(step, float(loss.detach()))
    with torch.no_grad():
        shares = mixture(free, beta)
        return Found(shares[0], mixed(anchors, shares), corrected(camera, angles, generator), float(loss))


def hiding(mask: Tensor) -> Degrade:
    """Return the degradation that hides what a mask [1, 1, side, side] has 0 on, for in-painting."""
    return lambda pictures: pictures * mask


def shrinking(side: int) -> Degrade:
    """Return the degradation that makes pictures small, for enlarging."""
    return lambda pictures: torch.nn.functional.interpolate(
        pictures, (side, side), mode="bilinear", align_corners=False, antialias=True
    )


def directions(
    generator: TriplaneGenerator, traits: Callable[[Tensor], dict[str, Tensor]], count: int = 4000, seed: int = 0
) -> dict[str, Tensor]:
    """Find directions of traits in w: by how much w changes, on average, when a trait rises by one deviation.

    w - mean w ~ sum_k n_k t_k by least squares over random z, all traits at once, so that a direction changes one trait
    and leaves the others.

    Args:
        generator: Without camera conditioning.
        traits: Numbers [B] of latents [B, z], by name.
        count: Latents to draw.
        seed: Of the latents.

    Raises:
        ConfigError: The generator's latents depend on a camera, or a trait does not vary.
    """
    if generator.config.c:
        raise ConfigError("directions are found for generators whose latents depend on no camera")
    z = torch.randn(count, generator.config.z, generator=stream(seed, "directions"))
    with torch.no_grad():
        ws = generator.mapping(z)[:, 0]
    values = traits(z)
    table = torch.stack(list(values.values()), 1)
    spread = table.std(0)
    if bool((spread < 1e-9).any()):
        raise ConfigError(f"trait {list(values)[int(spread.argmin())]} is the same for all latents")
    table = (table - table.mean(0)) / spread
    found = torch.linalg.lstsq(table, ws - ws.mean(0)).solution
    return dict(zip(values, found, strict=True))
