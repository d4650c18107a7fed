"""Samplers: from noise to a clean sample, as functions of one signature.

A sampler asks the network through `predict(x, t, cond)`, so a caller decides what runs inside: `backbone.predict`
itself, a checkpointed one, or one that computes without gradient at chosen times. Nothing here detaches or disables
gradients: the result is differentiable in everything `predict` is differentiable in.

Guidance (arXiv 2207.12598) evaluates both branches in one batched call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lrdiff.errors import ConfigError
from lrdiff.schedule import Schedule

Cond = Mapping[str, Tensor]
Predict = Callable[[Tensor, Tensor, Cond], Tensor]
Callback = Callable[[dict[str, Any]], None]
Rng = torch.Generator | Sequence[torch.Generator]


class Sampler(Protocol):
    """The signature every sampler has; `ddim` describes it."""

    def __call__(
        self,
        predict: Predict,
        x: Tensor,
        cond: Cond,
        uncond: Cond | None,
        schedule: Schedule,
        timesteps: Tensor,
        guidance: float,
        *,
        eta: float = 0.0,
        rng: Rng | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Return clean samples."""
        ...


def ddim(
    predict: Predict,
    x: Tensor,
    cond: Cond,
    uncond: Cond | None,
    schedule: Schedule,
    timesteps: Tensor,
    guidance: float,
    *,
    eta: float = 0.0,
    rng: Rng | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Sample with DDIM (eq. 12 and 16 of arXiv 2010.02502); on a flow schedule this is Euler's method.

    Args:
        predict: The network: (x [B, ...], t [B], cond) -> out [B, ...]. With guidance it is called with 2 B samples,
            the unconditional ones first.
        x: Noise to start from, [B, ...], at the first of `timesteps`.
        cond: Conditioning, each tensor [B, ...].
        uncond: Conditioning of the negative prompt, the same keys; may be None when `guidance` is 1.
        schedule: The model's schedule.
        timesteps: Decreasing times, [n], from `schedule.timesteps(n)`.
        guidance: Strength w of out = out_uncond + w (out_cond - out_uncond); 1 uses `cond` alone.
        eta: 0 is deterministic, 1 is as random as DDPM. Discrete schedules only.
        rng: Where the noise of `eta` > 0 comes from: one generator, or one per sample so that a sample does not depend
            on its neighbours in the batch.
        callback: Called after each step with {step, steps, t, x, x0, out}: 0-based index, count, time as a number, the
            new sample, the current estimate of the clean sample, the guided output. May raise to stop the sampling.

    Returns:
        Clean samples, [B, ...], float32 or wider.

    Differs from diffusers: a step leads to the next of `timesteps`, where diffusers subtracts a rounded stride. The
    two agree for "leading", and for "trailing" when n divides the number of training steps.
    """
    _check_eta(eta, rng, schedule)
    for i, (t, after) in enumerate(_pairs(timesteps)):
        out = guided(predict, x, t, cond, uncond, guidance)
        noise = draw(x, rng) if rng is not None and eta > 0 else None
        x, x0 = ddim_step(schedule, x, out, t, after, eta=eta, noise=noise)
        _report(callback, i, timesteps, x=x, x0=x0, out=out)
    return x


def ddim_step(
    schedule: Schedule,
    x: Tensor,
    out: Tensor,
    t: Tensor,
    after: Tensor | None,
    *,
    eta: float = 0.0,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Take one DDIM step from time `t` to time `after` (None: the schedule's end).

    Args:
        schedule: The model's schedule.
        x: Samples at `t`, [B, ...].
        out: Network output at (x, t).
        t: Present time, a scalar tensor.
        after: Next time, a scalar tensor, or None.
        eta: Share of DDPM's noise.
        noise: Unit Gaussian in the shape of `x`, needed when `eta` > 0.

    Returns:
        The samples at `after` and the estimate of the clean samples.
    """
    a, s = schedule.scales(t)
    a_next, s_next = schedule.final_scales() if after is None else schedule.scales(after)
    x0, eps = schedule.to_x0(x, out, t), schedule.to_eps(x, out, t)
    if eta == 0.0:
        return float(a_next) * x0 + float(s_next) * eps, x0
    if noise is None:
        raise ConfigError("DDIM with eta above 0 needs noise: give rng")
    variance = eta**2 * (s_next / s).square() * (1.0 - (a / a_next).square())
    direction = (s_next.square() - variance).clamp(min=0.0).sqrt()  # rounding alone can make it negative
    return float(a_next) * x0 + float(direction) * eps + float(variance.sqrt()) * noise.to(x0.dtype), x0


def dpm_solver_2m(
    predict: Predict,
    x: Tensor,
    cond: Cond,
    uncond: Cond | None,
    schedule: Schedule,
    timesteps: Tensor,
    guidance: float,
    *,
    eta: float = 0.0,
    rng: Rng | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Sample with DPM-Solver++(2M), midpoint form (Algorithm 2 of arXiv 2211.01095). Arguments as in `ddim`.

    With lambda = log(a / s), h the next and h' the previous difference of lambda:

        D = x0 + h / (2 h') (x0 - x0_previous)
        x <- (s_next / s) x + (a_next - a s_next / s) D

    The first and the last step are of first order (D = x0); the last one ends noise-free.

    Raises:
        ConfigError: `eta` is not 0: this sampler is deterministic.
    """
    _deterministic("dpm++2m", eta)
    previous, h_before = None, torch.tensor(0.0)
    for i, (t, after) in enumerate(_pairs(timesteps)):
        out = guided(predict, x, t, cond, uncond, guidance)
        x0 = schedule.to_x0(x, out, t)
        a, s = schedule.scales(t)
        clean = torch.ones_like(a), torch.zeros_like(a)
        a_next, s_next = clean if after is None else schedule.scales(after)
        h = torch.log(a_next / s_next) - torch.log(a / s)
        d = x0
        if previous is not None and after is not None:
            d = x0 + float(0.5 * h / h_before) * (x0 - previous)
        x = float(s_next / s) * x.to(x0.dtype) + float(a_next - a * s_next / s) * d
        previous, h_before = x0, h
        _report(callback, i, timesteps, x=x, x0=x0, out=out)
    return x


def euler_flow(
    predict: Predict,
    x: Tensor,
    cond: Cond,
    uncond: Cond | None,
    schedule: Schedule,
    timesteps: Tensor,
    guidance: float,
    *,
    eta: float = 0.0,
    rng: Rng | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Sample a flow model with Euler's method: x <- x + (s_next - s) out. Arguments as in `ddim`.

    Raises:
        ConfigError: The schedule is not flow, or `eta` is not 0.
    """
    _deterministic("euler", eta)
    if schedule.prediction != "flow":
        raise ConfigError(f"sampler euler is for flow models, this model predicts {schedule.prediction}; use ddim")
    for i, (t, after) in enumerate(_pairs(timesteps)):
        out = guided(predict, x, t, cond, uncond, guidance)
        s = float(schedule.scales(t)[1])
        s_next = 0.0 if after is None else float(schedule.scales(after)[1])
        x0 = schedule.to_x0(x, out, t)
        x = x.to(x0.dtype) + (s_next - s) * out
        _report(callback, i, timesteps, x=x, x0=x0, out=out)
    return x


SAMPLERS: dict[str, Sampler] = {"ddim": ddim, "dpm++2m": dpm_solver_2m, "euler": euler_flow}


def guided(predict: Predict, x: Tensor, t: Tensor, cond: Cond, uncond: Cond | None, guidance: float) -> Tensor:
    """Return out_uncond + guidance (out_cond - out_uncond), both from one call with 2 B samples.

    Args:
        predict: The network.
        x: Samples, [B, ...].
        t: Time, a scalar tensor on any device.
        cond: Conditioning, each tensor [B, ...].
        uncond: Negative conditioning with the same keys, or None when `guidance` is 1.
        guidance: Strength; 1 calls the network on `cond` alone.

    Raises:
        ConfigError: Guidance without a negative conditioning.
    """
    times = (t.float() if t.is_floating_point() else t).to(x.device).expand(len(x))
    if guidance == 1.0:
        return predict(x, times, cond)
    if uncond is None:
        raise ConfigError(f"guidance {guidance} needs the conditioning of a negative prompt (it may be empty)")
    both = {key: torch.cat([uncond[key], cond[key]]) for key in cond}
    out_uncond, out_cond = predict(torch.cat([x, x]), torch.cat([times, times]), both).chunk(2)
    return out_uncond + guidance * (out_cond - out_uncond)


def draw(like: Tensor, rng: Rng) -> Tensor:
    """Draw unit Gaussian noise in the shape of `like`, on the generator's device, then moved to `like`'s.

    Args:
        like: [B, ...].
        rng: One generator for the batch, or one for each sample.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    if isinstance(rng, torch.Generator):
        return torch.randn(like.shape, generator=rng, device=rng.device, dtype=dtype).to(like.device)
    rows = [torch.randn(x.shape, generator=g, device=g.device, dtype=dtype) for x, g in zip(like, rng, strict=True)]
    return torch.stack(rows).to(like.device)


def _pairs(timesteps: Tensor) -> list[tuple[Tensor, Tensor | None]]:
    """Return each time with the one that follows it, None after the last."""
    times = list(timesteps.cpu())
    return list(zip(times, [*times[1:], None], strict=True))


def _report(callback: Callback | None, step: int, timesteps: Tensor, **values: Any) -> None:
    if callback is not None:
        callback({"step": step, "steps": len(timesteps), "t": timesteps[step].item(), **values})


def _deterministic(name: str, eta: float) -> None:
    if eta != 0.0:
        raise ConfigError(f"eta = {eta}: sampler {name} is deterministic; use sampler ddim or eta 0")


def _check_eta(eta: float, rng: Rng | None, schedule: Schedule) -> None:
    if not 0.0 <= eta <= 1.0:
        raise ConfigError(f"eta = {eta} is outside 0 (deterministic) to 1 (DDPM)")
    if eta > 0.0 and schedule.prediction == "flow":
        raise ConfigError("eta above 0 is defined for discrete schedules only; use eta 0 with a flow model")
    if eta > 0.0 and rng is None:
        raise ConfigError("DDIM with eta above 0 needs a random generator (rng)")
