"""Early stop: the run ends when the loss on held-out images has stopped falling."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Patience:
    """Counts evaluations in a row that did not improve on the best one."""

    def __init__(self, limit: int) -> None:
        """Take the number of evaluations without improvement after which to stop."""
        self._limit = limit
        self._best = torch.tensor(float("inf"), dtype=torch.float64)
        self._stale = torch.tensor(0)

    def see(self, loss: float) -> None:
        """Take in an evaluation."""
        better = loss < float(self._best)
        self._stale = torch.tensor(0 if better else int(self._stale) + 1)
        self._best = torch.tensor(min(loss, float(self._best)), dtype=torch.float64)

    def reason(self) -> str:
        """Return why to stop, or ""."""
        if int(self._stale) < self._limit:
            return ""
        return f"the validation loss has not fallen below {float(self._best):.4f} in {self._limit} evaluations"

    def state(self) -> dict[str, Tensor]:
        """Return what a resumed run needs."""
        return {"patience.best": self._best, "patience.stale": self._stale}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned."""
        self._best, self._stale = state["patience.best"].clone(), state["patience.stale"].clone()
