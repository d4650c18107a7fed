"""Muon beside AdamW: weight matrices take orthogonalised steps, everything else AdamW's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
ROUNDS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration: steepest at zero, so that small singular values rise in few rounds."""


class Muon(torch.optim.AdamW):
    """AdamW, except for groups marked `orthogonal`, whose momentum is orthogonalised before it is applied.

    M <- mu M + (1 - mu) G;  W <- (1 - lr d) W - 0.2 lr sqrt(max(n, m)) UV^T with USV^T = (1 - mu) G + mu M, a
    convolution's kernel taken as the matrix [out, in x height x width] (Jordan et al. 2024). The factor
    0.2 sqrt(max(n, m)) gives a step the size that AdamW's steps have, so one learning rate serves both (Liu et al.,
    arXiv 2502.16982).

    UV^T is approximated in bf16, as in the papers, where the training itself computes in bf16, and else in the weights'
    own number format: not every CPU is fast with bf16.
    """

    def __init__(self, params: Any, *, half: bool = False, **more: Any) -> None:
        """Take parameter groups, each with `orthogonal`.

        Args:
            params: Groups.
            half: Whether to approximate in bf16.
            more: Settings of AdamW.
        """
        super().__init__(params, **more)
        self.half = half

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update all groups."""
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group["orthogonal"]]
            result = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["orthogonal"]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._orthogonal_step(parameter, group["lr"], group["weight_decay"])
        return result

    def _orthogonal_step(self, parameter: Tensor, lr: float, decay: float) -> None:
        state = self.state[parameter]
        if "momentum" not in state:
            # AdamW, the base class, expects a step counter in every state that it is given back.
            state["step"] = torch.zeros(())
            state["momentum"] = torch.zeros_like(parameter)
        state["step"] += 1
        momentum: Tensor = state["momentum"]
        gradient = parameter.grad
        assert gradient is not None
        momentum.lerp_(gradient, 1 - MOMENTUM)
        matrix = gradient.lerp(momentum, MOMENTUM).flatten(1)
        direction = orthogonalised(matrix.bfloat16() if self.half else matrix).to(matrix.dtype)
        parameter.mul_(1 - lr * decay)
        parameter.add_(direction.view(parameter.shape), alpha=-0.2 * lr * math.sqrt(max(direction.shape)))


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return about U V^T of a matrix U S V^T [n, m]: its singular values are brought to between 0.7 and 1.2."""
    a, b, c = COEFFICIENTS
    x = matrix / matrix.norm().clamp_min(1e-12)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x
