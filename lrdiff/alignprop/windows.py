"""Which sampling steps carry the gradient of a reward.

last-k           the last k steps (DRaFT-K, arXiv 2309.17400)
random-k         the last K steps, K drawn once per trajectory from 1 to k (AlignProp's intent, arXiv 2310.03739)
random-per-step  every step by itself, the i-th of n with probability i / (n + 1) (what AlignProp's code does)
lv               the last step, and the last step again from fresh noise (DRaFT-LV, same paper)
spaced           k evenly spaced steps, no chain through the network's input (DRTune, arXiv 2405.00760)
sparse           the same steps, run again after a rollout without gradient (FlowBP-Sparse, arXiv 2606.11075)
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

from lrdiff.errors import ConfigError

Mode = Literal["last-k", "random-k", "random-per-step", "lv", "spaced", "sparse"]
MODES: tuple[Mode, ...] = get_args(Mode)
FREE: tuple[Mode, ...] = ("random-per-step", "lv")
"""Those that take no k."""


def draw_window(mode: Mode, steps: int, k: int, rng: torch.Generator) -> frozenset[int]:
    """Draw the steps that carry gradient, once per trajectory.

    Args:
        mode: See the module.
        steps: Sampling steps, at least 1.
        k: Of `last-k`, `spaced`, `sparse`: their number; of `random-k` the largest. 1 to `steps`.
        rng: On the CPU; `random-k` and `random-per-step` draw from it.

    Returns:
        Indices from 0 (noisiest) to steps - 1. Never empty: a trajectory without gradient teaches nothing, so
        `random-per-step` keeps its last step where it drew none.

    Raises:
        ConfigError: The mode is unknown, or `k` is outside its range.
    """
    if mode not in MODES:
        raise ConfigError(f"gradient mode {mode!r} is unknown; known: {', '.join(MODES)}")
    if mode not in FREE and not 1 <= k <= steps:
        raise ConfigError(f"k = {k}: of {steps} sampling steps, 1 to {steps} can carry gradient")
    if mode == "lv":
        return frozenset({steps - 1})
    if mode == "random-k":
        k = int(torch.randint(1, k + 1, (), generator=rng))
    if mode in ("last-k", "random-k"):
        return frozenset(range(steps - k, steps))
    if mode == "random-per-step":
        drawn = torch.rand(steps, generator=rng) < torch.arange(1, steps + 1) / (steps + 1)
        return frozenset(drawn.nonzero().flatten().tolist()) or frozenset({steps - 1})
    return frozenset(steps - 1 - (i * steps) // k for i in range(k))
