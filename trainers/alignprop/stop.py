"""Against over-optimisation: the run ends when pictures become alike or the monitor falls, with the adapter before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

NAMES = ("diversity", "monitor")


class Watchdog:
    """Compares every evaluation with the first, and keeps the parameters of the last good one."""

    def __init__(self, parameters: Sequence[nn.Parameter], min_diversity: float, max_drop: float) -> None:
        """Take what is trained and when to stop.

        Args:
            parameters: Kept as they were at the last good evaluation.
            min_diversity: Share of the first evaluation's diversity below which to stop; 0 never.
            max_drop: Fall of the monitor below its first value after which to stop; 0 never.
        """
        self._parameters = list(parameters)
        self._min_diversity, self._max_drop = min_diversity, max_drop
        self._good = [p.detach().clone() for p in self._parameters]
        nothing = torch.tensor(float("nan"), dtype=torch.float64)
        self._first = {name: nothing.clone() for name in NAMES}
        self._last = {name: nothing.clone() for name in NAMES}

    def see(self, diversity: float, monitor: float) -> None:
        """Take in an evaluation; `monitor` is 0 where there is none."""
        self._last = {
            name: torch.tensor(value, dtype=torch.float64)
            for name, value in zip(NAMES, (diversity, monitor), strict=True)
        }
        if bool(self._first["diversity"].isnan()):
            self._first = {name: value.clone() for name, value in self._last.items()}
        if not self.reason():
            self._good = [p.detach().clone() for p in self._parameters]

    def reason(self) -> str:
        """Return why to stop, or ""."""
        first, last = ({n: float(v) for n, v in part.items()} for part in (self._first, self._last))
        floor = self._min_diversity * first["diversity"]
        if last["diversity"] < floor:
            return (
                f"pictures of one prompt differ by {last['diversity']:.4f}, less than method.min_diversity of the "
                f"{first['diversity']:.4f} at the start; the adapter of the evaluation before is kept"
            )
        if self._max_drop and last["monitor"] < first["monitor"] - self._max_drop:
            return (
                f"the monitor fell from {first['monitor']:.4f} to {last['monitor']:.4f}, more than method.max_drop; "
                "the adapter of the evaluation before is kept"
            )
        return ""

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Put the good parameters in place for a while, where the run ended for a reason."""
        if not self.reason():
            yield
            return
        trained = [p.detach().clone() for p in self._parameters]
        self._put(self._good)
        try:
            yield
        finally:
            self._put(trained)

    def state(self) -> dict[str, Tensor]:
        """Return what a resumed run needs."""
        found = {f"good.{number:05d}": value for number, value in enumerate(self._good)}
        for name in NAMES:
            found |= {f"first.{name}": self._first[name], f"last.{name}": self._last[name]}
        return found

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned."""
        for number, value in enumerate(self._good):
            value.copy_(state[f"good.{number:05d}"])
        self._first = {name: state[f"first.{name}"].clone() for name in NAMES}
        self._last = {name: state[f"last.{name}"].clone() for name in NAMES}

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)
