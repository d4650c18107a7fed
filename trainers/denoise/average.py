"""A moving average of the trained parameters, which is what is measured, shown and saved when it is on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Exponential moving average: a <- d a + (1 - d) p after every step.

    The decay d grows as (1 + step) / (10 + step) up to the one asked for, so that the start is soon forgotten.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        """Begin at the present values.

        Args:
            parameters: What is averaged.
            decay: In (0, 1); 0.999 averages over about a thousand steps.
        """
        self._parameters = list(parameters)
        self._decay = decay
        self._values = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after step number `step`, from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for value, parameter in zip(self._values, self._parameters, strict=True):
            value.lerp_(parameter, 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average in the place of the parameters for a while."""
        trained = [parameter.detach().clone() for parameter in self._parameters]
        self._put(self._values)
        try:
            yield
        finally:
            self._put(trained)

    def state(self) -> dict[str, Tensor]:
        """Return the average, by position."""
        return {f"average.{number:05d}": value for number, value in enumerate(self._values)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned."""
        for number, value in enumerate(self._values):
            value.copy_(state[f"average.{number:05d}"])

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)
