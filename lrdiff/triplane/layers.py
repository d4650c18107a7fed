"""Layers with equalised learning rate and style modulation. Names of parameters are those of the published files."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from lrdiff.triplane import functional as maths

Noise = Literal["const", "none"]


class Linear(nn.Module):
    """y = x (W a / sqrt(in))^T + b a, with a the learning-rate multiplier, then optionally the leaky ReLU.

    Attributes:
        weight: [out, in]; drawn from a normal of deviation 1 / a.
        bias: [out].
        delta: What an adapter adds to y, as a module of x; None without one.
    """

    def __init__(self, inputs: int, outputs: int, gain: float = 1.0, bias: float = 0.0, act: bool = False) -> None:
        super().__init__()
        # In place: on the meta device, where generators are made before their weights are read, other arithmetic has
        # torch import its compiler first, which takes seconds.
        self.weight = nn.Parameter(torch.randn(outputs, inputs).div_(gain))
        self.bias = nn.Parameter(torch.full((outputs,), float(bias)))
        self.weight_gain, self.bias_gain, self.act = gain / math.sqrt(inputs), gain, act
        self.delta: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        y = torch.nn.functional.linear(x, self.weight * self.weight_gain, self.bias * self.bias_gain)
        if self.delta is not None:
            y = y + self.delta(x)
        return maths.leaky(y) if self.act else y


class Modulated(nn.Module):
    """What a styled convolution and a projection to colours share: weight, style, and the place of an adapter.

    Attributes:
        weight: [O, I, K, K], drawn from a normal.
        affine: The style: [B, w] -> [B, I], 1 at the start.
        delta: What an adapter adds to the raw weight, as a module without inputs; None without one.
    """

    def __init__(self, inputs: int, outputs: int, w: int, kernel: int) -> None:
        super().__init__()
        self.affine = Linear(w, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.delta: nn.Module | None = None

    def raw_weight(self) -> Tensor:
        """Return the weight before modulation, an adapter's change included."""
        return self.weight if self.delta is None else self.weight + self.delta()


class StyledConv(Modulated):
    """Modulated 3 x 3 convolution, noise, bias, leaky ReLU, optionally doubling the side.

    Attributes:
        noise_strength: Factor on the noise; absent without noise.
        noise_const: The fixed noise [side, side]; absent without noise.
        clamp: Bound on the output, or None.
    """

    def __init__(
        self, inputs: int, outputs: int, w: int, side: int, up: bool, noise: bool, clamp: float | None = None
    ) -> None:
        super().__init__(inputs, outputs, w, 3)
        self.register_buffer("resample_filter", maths.fir_filter())
        self.noisy, self.up, self.clamp = noise, up, clamp
        if noise:
            self.noise_strength = nn.Parameter(torch.zeros(()))
            self.register_buffer("noise_const", torch.randn(side, side))

    def forward(self, x: Tensor, w: Tensor, noise: Noise = "const") -> Tensor:
        """Map x [B, I, H, W] and w [B, w] to [B, O, H, W] or [B, O, 2H, 2W]."""
        taps = self.get_buffer("resample_filter")
        x = maths.modulated_conv(x, self.raw_weight(), self.affine(w), taps, up=self.up)
        if self.noisy and noise == "const":
            x = x + (self.get_buffer("noise_const") * self.noise_strength).to(x.dtype)
        x = maths.leaky(x + self.bias.to(x.dtype)[:, None, None])
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class ToColours(Modulated):
    """Modulated 1 x 1 convolution without demodulation; the style is scaled by 1 / sqrt(C)."""

    def __init__(self, inputs: int, outputs: int, w: int, clamp: float | None = None) -> None:
        super().__init__(inputs, outputs, w, 1)
        self.gain, self.clamp = 1 / math.sqrt(inputs), clamp

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Map x [B, I, H, W] and w [B, w] to [B, O, H, W]."""
        style = self.affine(w) * self.gain
        x = maths.modulated_conv(x, self.raw_weight(), style, maths.fir_filter().to(x.device), demodulate=False)
        x = x + self.bias.to(x.dtype)[:, None, None]
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)
