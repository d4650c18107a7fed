"""What is maximised: a weighted sum of rewards, each in units of its own spread, each bounded where asked.

    loss = sum_i w_i l_i(r_i) / s_i,    l(r) = -r  |  relu(target - r)  |  |r - target|

s_i is the standard deviation of r_i over pictures of the untouched model, so that weights compare. A bounded loss has
no gradient past its target, which is the first means against over-optimisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lrdiff.errors import ConfigError, NonFiniteError, ShapeError

Reward = Callable[[Tensor, Sequence[str]], Tensor]
"""Images [B, 3, H, W] in [0, 1] and their B prompts -> one score per image [B], larger is better."""
Bound = Literal["none", "relu", "distance"]


@dataclass(slots=True)
class Term:
    """One reward of an objective.

    Attributes:
        name: For people and metrics.
        reward: The function.
        weight: Factor in the sum; with a negative one and no bound, less is better.
        target: Of a bounded loss, in the reward's own units.
        scale: What its loss is divided by.
    """

    name: str
    reward: Reward
    weight: float = 1.0
    target: float = 0.0
    scale: float = 1.0

    def scores(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the scores [B], checked.

        Raises:
            ShapeError: They are not one number per image.
            NonFiniteError: One is NaN or infinite.
            ConfigError: The images have a graph and the scores have none, so nothing could be learned from them.
        """
        found = self.reward(images, prompts)
        if found.shape != (len(images),):
            raise ShapeError(
                f"reward {self.name} returned shape {list(found.shape)} for {len(images)} images; "
                "it must return one score per image"
            )
        if not bool(torch.isfinite(found).all()):
            raise NonFiniteError(f"reward {self.name} returned {found.detach().tolist()}: NaN or infinity")
        if images.requires_grad and not found.requires_grad:
            raise ConfigError(
                f"reward {self.name} has no gradient: it computed without a graph (no_grad, detach, rounding or PIL); "
                "a reward must be differentiable in its images"
            )
        return found


class Objective:
    """The loss of rewards."""

    def __init__(self, terms: Sequence[Term], bound: Bound = "none") -> None:
        """Take the rewards.

        Args:
            terms: At least one, with different names.
            bound: Form of every reward's loss.
        """
        names = [term.name for term in terms]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"an objective takes at least one reward and each once, got {names}")
        self.terms, self.bound = list(terms), bound

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each image [B] and the raw scores [B] by reward."""
        scores = {term.name: term.scores(images, prompts) for term in self.terms}
        losses = [self._loss(term, scores[term.name]) * term.weight / term.scale for term in self.terms]
        return torch.stack(losses).sum(0), scores

    @torch.no_grad()
    def normalise(self, images: Tensor, prompts: Sequence[str]) -> None:
        """Set each reward's scale to its standard deviation over these pictures.

        Raises:
            ConfigError: A reward gives all of them the same score.
        """
        for term in self.terms:
            spread = float(term.scores(images, prompts).std())
            if not spread > 1e-8:
                raise ConfigError(
                    f"reward {term.name} gives all {len(images)} pictures of the untouched model the same score, so it "
                    "has no unit to be normalised by; use normalise 0"
                )
            term.scale = spread

    def _loss(self, term: Term, scores: Tensor) -> Tensor:
        if self.bound == "none":
            return -scores
        return torch.relu(term.target - scores) if self.bound == "relu" else (scores - term.target).abs()


def to_unit(images: Tensor, straight_through: bool = False) -> Tensor:
    """Turn decoded images, about [-1, 1], into [0, 1].

    The clamp takes the gradient from pixels that are out of range: nothing tells them to come back, and nothing drives
    them further.

    Args:
        images: [B, 3, H, W].
        straight_through: Let the gradient pass as if there were no clamp.
    """
    unit = images / 2 + 0.5
    clamped = unit.clamp(0.0, 1.0)
    return unit + (clamped - unit).detach() if straight_through else clamped
