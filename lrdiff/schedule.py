"""Noise schedules and what a denoiser predicts: the only place that knows prediction types.

Legend: `x0` clean sample, `eps` unit Gaussian noise, `x` noisy sample at time `t`, `out` the network's output.

Every schedule and every prediction type is two linear equations in (x0, eps):

    x   = a x0 + s eps        a, s: signal and noise scale at time t
    out = p x0 + q eps        p, q: what the network was trained to output

               p    q
    epsilon    0    1         Ho et al., arXiv 2006.11239
    sample     1    0
    v         -s    a         Salimans and Ho, arXiv 2202.00512
    flow      -1    1         the velocity of x = (1 - s) x0 + s eps

All conversions below solve these two equations, so no method asks which type a model has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lrdiff.errors import ConfigError, ModelError

Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]
Spacing = Literal["leading", "trailing", "linspace"]


@dataclass(frozen=True, eq=False)
class Schedule:
    """How much noise is in a sample at each time, and what the network outputs there.

    Times are what the network receives: for the discrete kinds an integer in [0, steps), larger is noisier; for flow a
    real number in [0, steps] with noise scale t / steps. Times may live on any device; they are read on the CPU, so
    keeping them there avoids a wait for the GPU.

    Attributes:
        prediction: What the network outputs.
        steps: Number of training times, 1000 for most models.
        alpha_bar: Squared signal scale at each time, [steps] float64, decreasing; None for flow.
        final_alpha_bar: Squared signal scale where DDIM sampling ends; 1 is noise-free.
        spacing: Default placement of the sampling times, see `timesteps`.
        steps_offset: Added to "leading" times.
        shift: For flow, moves the sampling and training times towards noise: s -> shift s / (1 + (shift - 1) s).
    """

    prediction: Prediction
    steps: int = 1000
    alpha_bar: Tensor | None = None
    final_alpha_bar: float = 1.0
    spacing: Spacing = "leading"
    steps_offset: int = 0
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.prediction not in get_args(Prediction):
            raise ModelError(f"prediction type {self.prediction!r} is unknown; known: {list(get_args(Prediction))}")
        if self.spacing not in get_args(Spacing):
            raise ModelError(f"timestep spacing {self.spacing!r} is unknown; known: {list(get_args(Spacing))}")
        if (self.alpha_bar is None) != (self.prediction == "flow"):
            raise ModelError("a flow schedule has no alpha_bar table, every other schedule needs one")
        if self.alpha_bar is not None and self.prediction == "epsilon" and float(self.alpha_bar[-1]) == 0.0:
            raise ModelError(
                "epsilon prediction with zero terminal SNR: the last time holds no signal, so x0 cannot be computed "
                "from eps; such a model needs v_prediction (see prediction_type and rescale_betas_zero_snr)"
            )

    @classmethod
    def from_betas(
        cls,
        betas: Tensor,
        prediction: Prediction = "epsilon",
        *,
        zero_snr: bool = False,
        final_is_clean: bool = True,
        spacing: Spacing = "leading",
        steps_offset: int = 0,
    ) -> Schedule:
        """Build a discrete schedule from its variances.

        Args:
            betas: Noise variance added at each step, [steps] float64 in (0, 1).
            prediction: What the network outputs.
            zero_snr: Rescale so that the last time holds no signal (Algorithm 1 of arXiv 2305.08891).
            final_is_clean: DDIM sampling ends at alpha_bar = 1; otherwise at alpha_bar[0].
            spacing: Default placement of sampling times.
            steps_offset: Added to "leading" times.
        """
        alpha_bar = torch.cumprod(1.0 - betas.double(), dim=0)
        if zero_snr:
            root = alpha_bar.sqrt()
            alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()
        return cls(
            prediction=prediction,
            steps=len(betas),
            alpha_bar=alpha_bar,
            final_alpha_bar=1.0 if final_is_clean else float(alpha_bar[0]),
            spacing=spacing,
            steps_offset=steps_offset,
        )

    @classmethod
    def flow(cls, *, steps: int = 1000, shift: float = 1.0) -> Schedule:
        """Build the flow-matching schedule x = (1 - s) x0 + s eps with s = t / steps."""
        return cls(prediction="flow", steps=steps, spacing="trailing", shift=shift)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Schedule:
        """Read a diffusers scheduler config that holds its class's defaults (`scheduler.config`, not the bare file).

        What describes the model is read: betas, prediction type, zero SNR, spacing, offset, end point, flow shift.
        What describes diffusers' own solver (order, Karras sigmas, clip_sample) is not: samplers here are chosen by
        name, and latents have no bound to clip to (diffusers' Stable Diffusion pipelines switch clip_sample off too).

        Raises:
            ModelError: A key is missing, or the config asks for something no sampler here does.
        """
        if config.get("thresholding"):
            raise ModelError("the scheduler asks for dynamic thresholding, which is for pixel-space models")
        if "shift" in config or config.get("prediction_type") == "flow_prediction":
            if config.get("use_dynamic_shifting"):
                raise ModelError("the scheduler asks for resolution-dependent shifting, which is not supported")
            shift = config.get("shift", config.get("flow_shift", 1.0))
            return cls.flow(steps=int(config["num_train_timesteps"]), shift=float(shift))
        return cls.from_betas(
            _betas(config),
            config.get("prediction_type", "epsilon"),
            zero_snr=bool(config.get("rescale_betas_zero_snr", False)),
            final_is_clean=bool(config.get("set_alpha_to_one", True)),
            spacing=config.get("timestep_spacing", "leading"),
            steps_offset=int(config.get("steps_offset", 0)),
        )

    def scales(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return (a, s), signal and noise scale at `t`, float64 on the CPU and in the shape of `t`.

        Raises:
            ValueError: A time is outside the schedule, or is not a whole number on a discrete schedule.
        """
        t = torch.as_tensor(t).detach().cpu()
        if bool((t < 0).any()) or bool((t > (self.steps if self.alpha_bar is None else self.steps - 1)).any()):
            raise ValueError(f"time {t.tolist()} is outside this schedule of {self.steps} steps")
        if self.alpha_bar is None:
            s = t.double() / self.steps
            return 1.0 - s, s
        if t.is_floating_point():
            raise ValueError(f"a discrete schedule takes whole-number times, got {t.dtype}")
        alpha_bar = self.alpha_bar[t]
        return alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt()

    def final_scales(self) -> tuple[Tensor, Tensor]:
        """Return (a, s) where DDIM sampling ends, float64 scalars."""
        alpha_bar = torch.tensor(self.final_alpha_bar, dtype=torch.float64)
        return alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt()

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
        """Return x = a x0 + s eps.

        Args:
            x0: Clean samples, [B, ...].
            noise: Unit Gaussian, the shape of `x0`.
            t: Times, [B] or one for all.
        """
        a, s = self.scales(t)
        return _combine(a, x0, s, noise)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
        """Return p x0 + q eps, what the network should output for `add_noise(x0, noise, t)`."""
        a, s = self.scales(t)
        p, q = self._mix(a, s)
        return _combine(p, x0, q, noise)

    def to_x0(self, x: Tensor, out: Tensor, t: Tensor | float) -> Tensor:
        """Return the clean sample that the network's output stands for: (q x - s out) / (a q - s p).

        Args:
            x: Noisy samples, [B, ...].
            out: Network output at (x, t), the shape of `x`.
            t: Times, [B] or one for all.

        Returns:
            In the wider dtype of `x`, `out` and float32.
        """
        a, s = self.scales(t)
        p, q = self._mix(a, s)
        det = a * q - s * p
        return _combine(q / det, x, -s / det, out)

    def to_eps(self, x: Tensor, out: Tensor, t: Tensor | float) -> Tensor:
        """Return the noise that the network's output stands for: (a out - p x) / (a q - s p). See `to_x0`."""
        a, s = self.scales(t)
        p, q = self._mix(a, s)
        det = a * q - s * p
        return _combine(-p / det, x, a / det, out)

    def snr(self, t: Tensor | float) -> Tensor:
        """Return the signal-to-noise ratio a^2 / s^2 at `t`, float64."""
        a, s = self.scales(t)
        return (a / s).square()

    def min_snr_weight(self, t: Tensor | float, gamma: float = 5.0) -> Tensor:
        """Return the weight of the squared error of `out` at `t` (Min-SNR, arXiv 2303.09556).

        The paper weighs the error of x0 by min(SNR, gamma). An error d of `out` is an error s / (a q - s p) d of x0,
        so the weight is min(SNR, gamma) (s / (a q - s p))^2: min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for v.

        Returns:
            Weights in the shape of `t`, float32 on the CPU.
        """
        a, s = self.scales(t)
        p, q = self._mix(a, s)
        return (self.snr(t).clamp(max=gamma) * (s / (a * q - s * p)).square()).float()

    def draw_times(self, count: int, rng: torch.Generator) -> Tensor:
        """Draw training times, uniform on the schedule; for flow, uniform and then shifted. Returns [count], CPU."""
        if self.alpha_bar is not None:
            return torch.randint(0, self.steps, (count,), generator=rng)
        s = 1.0 - torch.rand((count,), generator=rng, dtype=torch.float64)  # (0, 1]: s = 0 holds no noise to predict
        return (self._shifted(s) * self.steps).float()

    def timesteps(self, n: int, spacing: Spacing | None = None, steps_offset: int | None = None) -> Tensor:
        """Return `n` sampling times, decreasing, on the CPU: int64, or float64 for flow.

        "leading" counts up from 0 (plus the offset) in whole strides and so never reaches the noisiest time;
        "trailing" counts down from the noisiest time; "linspace" includes both ends (Table 2 of arXiv 2305.08891).
        For flow, "trailing" is s = 1 ... 1/n and "linspace" s = 1 ... 1/steps, both then shifted.

        Args:
            n: Number of network evaluations, at least 1.
            spacing: Placement; the schedule's own by default.
            steps_offset: For "leading"; the schedule's own by default.

        Raises:
            ConfigError: More steps than the schedule has, or a placement it cannot do.
        """
        spacing = self.spacing if spacing is None else spacing
        offset = self.steps_offset if steps_offset is None else steps_offset
        if not 1 <= n <= self.steps:
            raise ConfigError(f"steps = {n}: this model's schedule allows 1 to {self.steps} sampling steps")
        if self.alpha_bar is None:
            if spacing == "leading":
                raise ConfigError("a flow model samples with spacing trailing or linspace, not leading")
            s = torch.linspace(1.0, 1.0 / (n if spacing == "trailing" else self.steps), n, dtype=torch.float64)
            return self._shifted(s) * self.steps
        if spacing == "leading":
            times = torch.arange(n - 1, -1, -1, dtype=torch.float64) * (self.steps // n) + offset
        elif spacing == "trailing":
            times = self.steps - torch.arange(n, dtype=torch.float64) * (self.steps / n) - 1
        else:
            times = torch.linspace(self.steps - 1, 0, n, dtype=torch.float64)
        if float(times[0]) >= self.steps:
            raise ConfigError(f"steps = {n} with offset {offset} leaves the schedule's {self.steps} times; use fewer")
        return times.round().long()

    def _mix(self, a: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return (p, q) of the prediction type."""
        zero, one = torch.zeros_like(a), torch.ones_like(a)
        return {"epsilon": (zero, one), "sample": (one, zero), "v_prediction": (-s, a), "flow": (-one, one)}[
            self.prediction
        ]

    def _shifted(self, s: Tensor) -> Tensor:
        return self.shift * s / (1.0 + (self.shift - 1.0) * s)


def _betas(config: Mapping[str, Any]) -> Tensor:
    """Read or compute the betas of a diffusers scheduler config, [steps] float64."""
    if config.get("trained_betas") is not None:
        return torch.tensor(config["trained_betas"], dtype=torch.float64)
    missing = {"num_train_timesteps", "beta_start", "beta_end", "beta_schedule"} - set(config)
    if missing:
        raise ModelError(f"the scheduler config lacks {sorted(missing)}; is scheduler_config.json complete?")
    steps, kind = int(config["num_train_timesteps"]), config["beta_schedule"]
    start, end = float(config["beta_start"]), float(config["beta_end"])
    if kind == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float64)
    if kind == "scaled_linear":
        return torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=torch.float64).square()
    if kind == "squaredcos_cap_v2":  # arXiv 2102.09672, eq. 17
        u = torch.arange(steps + 1, dtype=torch.float64) / steps
        curve = torch.cos((u + 0.008) / 1.008 * math.pi / 2).square()
        return (1.0 - curve[1:] / curve[:-1]).clamp(max=0.999)
    raise ModelError(f"beta schedule {kind!r} is unknown; known: linear, scaled_linear, squaredcos_cap_v2")


def _combine(c: Tensor, u: Tensor, d: Tensor, v: Tensor) -> Tensor:
    """Return c u + d v with per-sample scalars c, d of shape [B] or [], in float32 or wider."""
    dtype = torch.promote_types(torch.promote_types(u.dtype, v.dtype), torch.float32)
    shape = (-1,) + (1,) * (u.ndim - 1)
    c = c.to(u.device, dtype).reshape(shape)
    d = d.to(u.device, dtype).reshape(shape)
    return c * u.to(dtype) + d * v.to(dtype)
