"""Sampling through which a reward's gradient flows.

A step of DDIM, or of Euler's method on a flow schedule, is linear in the sample and in the network's output,

    x_{i+1} = A_i x_i + B_i out_i,        out_i = network(x_i)

so a gradient can come back on two paths: the straight one through A, and the chain through the network's input. The
modes of `windows` differ in which outputs are differentiated and in whether the chain is there.

Numbers of the schedule are computed outside of what is recomputed, and no state advances, so recomputing a step gives
the same step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lrdiff.alignprop.windows import Mode, draw_window
from lrdiff.errors import ConfigError
from lrdiff.sampling import Cond, Predict, ddim_step, draw, guided
from lrdiff.schedule import Schedule

Observe = Callable[[Tensor, Tensor, Tensor], None]
"""Told of each differentiated step: sample, time, guided output with its graph."""


@dataclass(frozen=True, slots=True)
class Gradients:
    """Where the gradient of a trajectory goes.

    Attributes:
        mode: Which steps carry it, see `windows`.
        k: Their number, or the largest number, see `draw_window`.
        repeats: Of `lv`: how often the last step is made again from fresh noise.
        detach_negative: Guidance's negative branch is a constant: half of the gradient's cost, and the gradient of the
            positive branch is unchanged.
        recompute: Keep only the samples between steps and run the network again on the way back: memory does not grow
            with the number of steps that carry gradient.
    """

    mode: Mode = "last-k"
    k: int = 1
    repeats: int = 2
    detach_negative: bool = False
    recompute: bool = True

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ConfigError(f"repeats = {self.repeats}: lv makes the last step again at least once")


def rollout(
    predict: Predict,
    x: Tensor,
    cond: Cond,
    uncond: Cond | None,
    schedule: Schedule,
    timesteps: Tensor,
    guidance: float,
    gradients: Gradients,
    rng: torch.Generator,
    *,
    stop_after: int | None = None,
    observe: Observe | None = None,
) -> Tensor:
    """Sample, with a graph through the steps that carry gradient.

    Args:
        predict: The network, as in `lrdiff.sampling.ddim`.
        x: Noise to start from, [B, ...].
        cond: Conditioning, each tensor [B, ...].
        uncond: Conditioning of the negative prompt, or None when `guidance` is 1.
        schedule: The model's schedule, discrete or flow.
        timesteps: Decreasing times, [n]. Take "trailing" ones for a short window: the last step of the other grids
            hardly moves the sample.
        guidance: Strength; 1 uses `cond` alone.
        gradients: Where the gradient goes.
        rng: Of the window, and of `lv`'s noise; on the CPU.
        stop_after: Of `spaced`: leave after this many steps with the network's estimate of the clean sample.
        observe: Called after each step that carries gradient, for penalties on its output.

    Returns:
        Clean samples [B, ...]; for `lv` [(1 + repeats) B, ...], the B samples first, so that the mean of their rewards
        averages the gradients.

    Raises:
        ConfigError: The window does not fit the steps, or `stop_after` is given to another mode or is out of range.

    Differs from the papers: AlignProp's code cuts the noise prediction of unlucky steps but runs them with a graph all
    the same; here they run without. What DRaFT-LV re-noises is a constant (its paper does not say).
    """
    steps = len(timesteps)
    if stop_after is not None and not (gradients.mode == "spaced" and 1 <= stop_after <= steps):
        raise ConfigError(f"stop_after = {stop_after}: is for the mode spaced, and 1 to {steps}")
    run = steps if stop_after is None else stop_after
    window = draw_window(gradients.mode, run, gradients.k, rng)
    path = _Path(predict, cond, uncond, schedule, timesteps, guidance, gradients, observe)
    if gradients.mode == "sparse":
        return _sparse(path, x, window)
    chained = gradients.mode != "spaced"
    for i in range(run):
        out = path.output(x if chained else x.detach(), i, i in window)
        if i == run - 1 and stop_after is not None:
            return schedule.to_x0(x, out, timesteps[i])
        x = path.step(x, out, i)
    if gradients.mode != "lv":
        return x
    return torch.cat([x, *(path.again(x.detach(), rng) for _ in range(gradients.repeats))])


def _sparse(path: _Path, x: Tensor, window: frozenset[int]) -> Tensor:
    """Sample without gradient, then let chosen outputs, computed again, reach the sample along the straight path."""
    samples, outputs, start = [], [], x
    with torch.no_grad():
        for i in range(len(path.timesteps)):
            samples.append(x)
            outputs.append(path.output(x, i, False))
            x = path.step(x, outputs[-1], i)
    traced = start
    for i, (sample, output) in enumerate(zip(samples, outputs, strict=True)):
        traced = path.step(traced, path.output(sample, i, True) if i in window else output, i)
    # The value is the sample that was really drawn; the gradient is the traced one's.
    return traced + (x - traced).detach()


class _Path:
    """The steps of one trajectory."""

    def __init__(
        self,
        predict: Predict,
        cond: Cond,
        uncond: Cond | None,
        schedule: Schedule,
        timesteps: Tensor,
        guidance: float,
        gradients: Gradients,
        observe: Observe | None,
    ) -> None:
        self.observe = observe
        self.predict, self.cond, self.uncond = predict, cond, uncond
        self.schedule, self.timesteps, self.guidance, self.gradients = schedule, timesteps, guidance, gradients

    def output(self, x: Tensor, index: int, differentiated: bool) -> Tensor:
        """Return the guided output of step `index`, with a graph or as a constant."""
        if not differentiated or not torch.is_grad_enabled():
            with torch.no_grad():
                return self._guided(x, self.timesteps[index])
        out: Any = (
            checkpoint(self._guided, x, self.timesteps[index], use_reentrant=False)
            if self.gradients.recompute
            else self._guided(x, self.timesteps[index])
        )
        if self.observe is not None:
            self.observe(x, self.timesteps[index], out)
        return out

    def step(self, x: Tensor, out: Tensor, index: int) -> Tensor:
        """Return the next sample."""
        after = self.timesteps[index + 1] if index + 1 < len(self.timesteps) else None
        return ddim_step(self.schedule, x, out, self.timesteps[index], after)[0]

    def again(self, x0: Tensor, rng: torch.Generator) -> Tensor:
        """Put noise on clean samples and take the last step from there."""
        last = len(self.timesteps) - 1
        noisy = self.schedule.add_noise(x0, draw(x0, rng), self.timesteps[last])
        return self.step(noisy, self.output(noisy, last, True), last)

    def _guided(self, x: Tensor, t: Tensor) -> Tensor:
        if not self.gradients.detach_negative or self.guidance == 1.0 or self.uncond is None:
            return guided(self.predict, x, t, self.cond, self.uncond, self.guidance)
        with torch.no_grad():
            negative = guided(self.predict, x, t, self.uncond, None, 1.0)
        return negative + self.guidance * (guided(self.predict, x, t, self.cond, None, 1.0) - negative)
