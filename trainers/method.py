"""`Method`: the one class a trainer implements. The loop knows nothing else of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from lrdiff.artifact import Artifact

Batch = Mapping[str, Any]
Metrics = dict[str, Tensor]
C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class ParamGroup:
    """Parameters that share optimizer settings.

    Attributes:
        name: Named in error messages, for example "transform cores".
        params: The trainable parameters.
        lr_scale: Factor on the run's learning rate.
        decay: False leaves the group out of weight decay.
        orthogonal: Weight matrices that take the steps of :class:`trainers.muon.Muon` instead of AdamW's.
    """

    name: str
    params: Sequence[nn.Parameter]
    lr_scale: float = 1.0
    decay: bool = True
    orthogonal: bool = False

    def __post_init__(self) -> None:
        # An iterator, such as module.parameters(), would be empty at its second reading: trained by nobody.
        object.__setattr__(self, "params", tuple(self.params))


class Method(nn.Module, ABC, Generic[C]):
    """What is trained, and on what.

    The loss lives inside `forward`, so that wrapping the method for several processes keeps gradients in step. The
    loop owns accumulation, clipping, the finite check and stepping; a method owns none of them.
    """

    def __init__(self, config: C) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """Return the scalar loss of a batch, and detached metrics. All randomness comes from `rng` (on the CPU)."""

    @abstractmethod
    def batch(self, index: int, rng: torch.Generator) -> Batch:
        """Return micro-batch number `index`, counted over the whole run. The same index gives the same batch."""

    @abstractmethod
    def param_groups(self) -> Iterable[ParamGroup]:
        """Return the trainable parameters, each in exactly one group, always in the same order."""

    @abstractmethod
    def artifact(self) -> Artifact | None:
        """Return what the run leaves behind, or None when the method writes its own folder format."""

    def describe(self) -> list[str]:
        """Return the lines of the preflight that only the method knows: what is trained, on which layers, with what."""
        return []

    def stepped(self, step: int) -> None:
        """Called after optimizer step number `step` (from 1), for moving averages and the like."""

    def done(self) -> str:
        """Return why the goal is reached, so that the run ends as finished before its last step, or ""."""
        return ""

    def evaluate(self, rng: torch.Generator) -> dict[str, float]:
        """Return metrics measured at fixed data and seeds. `rng` is the same at every call."""
        return {}

    def preview(self, rng: torch.Generator) -> dict[str, Tensor]:
        """Return named images [B, 3, H, W] in [-1, 1]. `rng` is the same at every call."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Return what, besides the parameters of `param_groups`, an exact resume needs, for example averages."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned. Raises `KeyError` for anything missing."""
