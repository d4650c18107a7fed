"""A small DDPO (arXiv 2305.13301): the policy-gradient baseline that reward gradients are compared with.

Each sampling step of DDIM with eta = 1 is a Gaussian action. With the advantage A, the reward normalised over pictures
of the same prompt,

    loss = - mean_b A_b sum_i log p(x_{i+1} | x_i) / (steps D),    D the size of a latent

On-policy: one update for each batch of samples, so the ratio of DDPO's importance sampling is 1 and nothing is clipped.
DDPO keeps running statistics for each prompt; several pictures of a prompt in one batch give the same from the start.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrdiff.alignprop.objective import to_unit
from lrdiff.sampling import ddim_step, draw
from trainers.alignprop.method import AlignProp
from trainers.method import Batch, Metrics

GROUP = 4
"""Pictures of each prompt in a batch."""


class Ddpo(AlignProp):
    """`AlignProp` with another forward: rewards are asked, never differentiated."""

    def batch(self, index: int, rng: torch.Generator) -> Batch:
        """Return `GROUP` pictures to be of each prompt."""
        found = super().batch(index, rng)
        texts = [text for text in found["prompts"][::GROUP] for _ in range(GROUP)]
        return {**found, "prompts": texts, "cond": self._conditions(texts)}

    def forward(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """Sample, ask the rewards, and return the policy-gradient loss."""
        samples = self._sample(batch, rng)
        with torch.no_grad():
            images = to_unit(self.backbone.decode(samples[-1]).float())
            losses, scores = self.objective(images, batch["prompts"])
        groups = losses.unflatten(0, (-1, GROUP))
        advantage = -((groups - groups.mean(1, True)) / (groups.std(1, keepdim=True) + 1e-6)).flatten()
        terms = [self._log_probability(batch, samples[i], samples[i + 1], i) for i in range(len(self.times) - 1)]
        loss = -(advantage * torch.stack(terms).mean(0)).mean()
        return loss, {f"reward_{name}": value.mean() for name, value in scores.items()}

    @torch.no_grad()
    def _sample(self, batch: Batch, rng: torch.Generator) -> list[Tensor]:
        """Return x at every time, and the clean sample."""
        samples = [batch["noise"]]
        for i in range(len(self.times)):
            out = self._guided(samples[-1], self.times[i], batch)
            last = i == len(self.times) - 1
            samples.append(self._step(samples[-1], out, i, None if last else draw(samples[-1], rng)))
        return samples

    def _log_probability(self, batch: Batch, x: Tensor, after: Tensor, i: int) -> Tensor:
        """Return log p(after | x) / D of each sample, without its constant."""
        out = self._guided(x, self.times[i], batch)
        mean = self._step(x, out, i, torch.zeros_like(x))
        # What unit noise adds to the mean.
        std = float((self._step(x, out, i, torch.ones_like(x)) - mean).detach().mean())
        return -((after - mean) / std).square().flatten(1).mean(1) / 2

    def _step(self, x: Tensor, out: Tensor, i: int, noise: Tensor | None) -> Tensor:
        after = self.times[i + 1] if i + 1 < len(self.times) else None
        eta = 0.0 if noise is None else 1.0
        return ddim_step(self.backbone.schedule, x, out, self.times[i], after, eta=eta, noise=noise)[0]
