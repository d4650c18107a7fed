"""Against over-optimisation: the run ends when pictures become alike or the monitor turns, with the adapter before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

NAMES = ("diversity", "monitor")


class Watchdog:
    """Compares diversity with the first evaluation's and the monitor with its best; keeps the last good parameters."""

    def __init__(self, parameters: Sequence[nn.Parameter], min_diversity: float, max_drop: float) -> None:
        """Take what is trained and when to stop.

        Args:
            parameters: Kept as they were at the last good evaluation.
            min_diversity: Share of the first evaluation's diversity below which to stop; 0 never.
            max_drop: Fall of the monitor below its best value after which to stop; 0 never.
        """
        self._parameters = list(parameters)
        self._min_diversity, self._max_drop = min_diversity, max_drop
        self._good = [p.detach().clone() for p in self._parameters]
        nothing = torch.tensor(float("nan"), dtype=torch.float64)
        self._kept = {name: nothing.clone() for name in NAMES}
        """What to compare with: the first diversity, the best monitor."""
        self._last = {name: nothing.clone() for name in NAMES}

    def see(self, diversity: float, monitor: float) -> None:
        """Take in an evaluation; `monitor` is 0 where there is none."""
        self._last = {
            name: torch.tensor(value, dtype=torch.float64)
            for name, value in zip(NAMES, (diversity, monitor), strict=True)
        }
        if bool(self._kept["diversity"].isnan()):
            self._kept = {name: value.clone() for name, value in self._last.items()}
        self._kept["monitor"] = torch.maximum(self._kept["monitor"], self._last["monitor"])
        if not self.reason():
            self._good = [p.detach().clone() for p in self._parameters]

    def reason(self) -> str:
        """Return why to stop, or ""."""
        kept, last = ({n: float(v) for n, v in part.items()} for part in (self._kept, self._last))
        floor = self._min_diversity * kept["diversity"]
        if last["diversity"] < floor:
            return (
                f"pictures of one prompt differ by {last['diversity']:.4f}, less than method.min_diversity of the "
                f"{kept['diversity']:.4f} at the start; the adapter of the evaluation before is kept"
            )
        if self._max_drop and last["monitor"] < kept["monitor"] - self._max_drop:
            return (
                f"the monitor fell from {kept['monitor']:.4f}, its best, to {last['monitor']:.4f}, more than "
                "method.max_drop; the adapter of the evaluation before is kept"
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
            found |= {f"kept.{name}": self._kept[name], f"last.{name}": self._last[name]}
        return found

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned."""
        for number, value in enumerate(self._good):
            value.copy_(state[f"good.{number:05d}"])
        self._kept = {name: state[f"kept.{name}"].clone() for name in NAMES}
        self._last = {name: state[f"last.{name}"].clone() for name in NAMES}

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)
