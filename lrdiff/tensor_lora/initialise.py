"""Starting values of the cores. All draws come from torch's global CPU generator, as everywhere in peft.

The paper starts every slice of every transform core at I / R. That gives T = I, but all R^2 slices then get the same
gradient and stay equal for ever: rank R learns what rank 1 learns. "broken-symmetry" gives T = I as exactly and keeps
the slices apart: one path through the ring carries the identity, every other path passes a zero slice once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lrdiff.tensor_lora.functional import pack

PATH_STD = 0.3
"""Spread of the paths that are still closed, over sqrt(I_d); see README, "The symmetric trap"."""

RANDOM_STD = 0.05
"""Spread around the identity for `init_weights=False`, over sqrt(I_d)."""


def transform_cores(modes: Sequence[int], rank: int, init: str) -> Tensor:
    """Return the flat cores of a transform that is the identity.

    Args:
        modes: I_1 .. I_D.
        rank: R.
        init: "broken-symmetry", "paper", or "random" for T != I.

    Returns:
        [R^2 * sum I_d^2], float32, laid out as `functional.py` says.
    """
    cores = []
    for place, mode in enumerate(modes):
        core = torch.zeros(mode * mode, rank, rank)
        eye = torch.eye(mode).view(-1)
        if init == "paper":
            core[:] = eye[:, None, None] / rank
        else:
            core[:, 0, 0] = eye
            if place > 0:
                core[:, 1:] = torch.randn(mode * mode, rank - 1, rank) * (PATH_STD / math.sqrt(mode))
        if init == "random":
            core += torch.randn_like(core) * (RANDOM_STD / math.sqrt(mode))
        cores.append(core)
    return pack(cores)


def ring_cores(out_sizes: Sequence[int], in_sizes: Sequence[int], rank: int, init: str) -> Tensor:
    """Return the flat cores of a tensor-ring residual that is zero.

    The first out core is zero, so D = 0. "paper": all others have std 1 / (n_d sqrt(R)), its muP rule with constant 1.
    Otherwise the chained in cores get the spread of a plain LoRA's down matrix, 1 / sqrt(3 in), shared evenly by the
    cores, and every out core after the first halves lengths (std 1 / (2 sqrt(R))): small enough for steps of 1e-3 to
    matter to each core, large enough for the first out core to be felt.

    Args:
        out_sizes: Sizes of the out cores.
        in_sizes: Sizes of the in cores.
        rank: R.
        init: "broken-symmetry", "paper", or "random" for D != 0.

    Returns:
        [R^2 * (sum of sizes)], float32, out cores first, laid out as `functional.py` says.
    """
    count = len(in_sizes)
    even = (rank ** (count - 1) * 3 * math.prod(in_sizes)) ** (-1 / (2 * count))

    def draw(size: int, std: float) -> Tensor:
        return torch.randn(size, rank, rank) * (1 / (size * math.sqrt(rank)) if init == "paper" else std)

    out = [draw(size, 0.5 / math.sqrt(rank)) for size in out_sizes]
    if init != "random":
        out[0].zero_()
    return torch.cat([pack(out), pack([draw(size, even) for size in in_sizes])])


def lora_factors(out: int, into: int, rank: int, init: str) -> Tensor:
    """Return the flat factors of a plain LoRA residual that is zero: up [r, out] = 0, down [r, in] ~ 1 / sqrt(3 in).

    Args:
        out: Output features.
        into: Input features (times the kernel size of a convolution).
        rank: r.
        init: "random" makes up non-zero.
    """
    up = torch.randn(rank, out) / math.sqrt(rank) if init == "random" else torch.zeros(rank, out)
    down = torch.randn(rank, into) / math.sqrt(3 * into)
    return torch.cat([up.view(-1), down.view(-1)])
