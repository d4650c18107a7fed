"""Training of the probes: attributes from exact labels, identity from several pictures of each individual."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge, Le, MinLen
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from lrdiff.probe import Probe
from lrdiff.world.scene import Scene
from lrdiff.world.toys import ATTRIBUTES, attributes
from trainers.config import Settings
from trainers.embedded.shards import Shards
from trainers.method import Batch, Method, Metrics, ParamGroup

HELD_OUT = 256
"""Scenes at the end of the set that are never trained on, for the curve of a run. Figures come from other seeds."""


class ProbeConfig(Settings):
    """How a probe is built and trained."""

    scenes: Path
    """Folder of rendered scenes; those with one object are used."""

    subjects: Path
    """Folder of rendered subjects, all pictures of a subject in a row."""

    widths: Annotated[tuple[PositiveInt, ...], MinLen(2)] = (24, 48, 96, 160)
    """Channels of each stage."""

    scenes_per_batch: PositiveInt = 32
    """Scenes per step, for the attributes."""

    subjects_per_batch: PositiveInt = 16
    """Subjects per step, two pictures of each, for the identity."""

    temperature: PositiveFloat = 0.1
    """Of the contrastive loss."""

    identity_weight: Annotated[float, Ge(0.0), Le(10.0)] = 0.5
    """Weight of the contrastive loss beside the sum of the attributes' cross-entropies."""


class TrainProbe(Method[ProbeConfig]):
    """Cross-entropy of every attribute plus a contrastive loss (NT-Xent, arXiv 2002.05709) over individuals."""

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__(config)
        self.probe = Probe(config.widths, {name: len(values) for name, values in ATTRIBUTES.items()})
        self.scenes = Shards.open(config.scenes)
        scenes = [Scene.from_dict(record) for record in self.scenes.records()]
        self.labels = {name: torch.tensor([attributes(scene)[name] for scene in scenes]) for name in ATTRIBUTES}
        # With several objects a picture does not say which one is meant.
        alone = torch.tensor([index for index, scene in enumerate(scenes) if len(scene.objects) == 1])
        self.trained_on, self.held_out = alone[:-HELD_OUT], alone[-HELD_OUT:]
        self.subjects = Shards.open(config.subjects)
        self.pictures: dict[int, list[int]] = {}
        for index, record in enumerate(self.subjects.records()):
            self.pictures.setdefault(int(record["subject"]), []).append(index)

    def batch(self, index: int, rng: torch.Generator) -> Batch:
        """Draw scenes with labels, and pairs of pictures of subjects."""
        drawn = torch.randint(0, len(self.trained_on), (self.config.scenes_per_batch,), generator=rng)
        chosen = self.trained_on[drawn]
        known = list(self.pictures.values())
        individuals = torch.randperm(len(known), generator=rng)[: self.config.subjects_per_batch].tolist()
        pairs = [torch.randperm(len(known[i]), generator=rng)[:2].tolist() for i in individuals]
        first, second = (
            torch.tensor([known[i][p[k]] for i, p in zip(individuals, pairs, strict=True)]) for k in (0, 1)
        )
        images = torch.cat([self.scenes.images(chosen), self.subjects.images(first), self.subjects.images(second)])
        return {
            "images": degrade(images, rng),
            "labels": {name: values[chosen] for name, values in self.labels.items()},
        }

    def forward(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """Return the sum of all losses, and the accuracy over attributes."""
        features = self.probe.features(batch["images"])
        count = self.config.scenes_per_batch
        loss, right = features.new_zeros(()), []
        for name, head in self.probe.heads.items():
            logits = head(features[:count])
            loss = loss + F.cross_entropy(logits, batch["labels"][name])
            right.append((logits.argmax(1) == batch["labels"][name]).float().mean())
        first, second = F.normalize(self.probe.embed(features[count:]), dim=-1).chunk(2)
        cosines = first @ second.T / self.config.temperature
        same = torch.arange(len(first), device=cosines.device)
        identity = 0.5 * (F.cross_entropy(cosines, same) + F.cross_entropy(cosines.T, same))
        return loss + self.config.identity_weight * identity, {
            "accuracy": torch.stack(right).mean(),
            "identity": identity,
        }

    def param_groups(self) -> Iterable[ParamGroup]:
        """Everything is trained; vectors are not decayed."""
        parameters = list(self.probe.parameters())
        return [
            ParamGroup("matrices", [p for p in parameters if p.ndim > 1]),
            ParamGroup("vectors", [p for p in parameters if p.ndim <= 1], decay=False),
        ]

    def artifact(self) -> None:
        """Nothing: `make` writes the folder."""

    def evaluate(self, rng: torch.Generator) -> dict[str, float]:
        """Measure the accuracy on the last scenes of the set."""
        chosen = self.held_out
        images = self.scenes.images(chosen).to(self.probe.embed.weight.device)
        logits = {name: values.cpu() for name, values in self.probe.attributes(images).items()}
        rates = {name: (logits[name].argmax(1) == self.labels[name][chosen]).float().mean() for name in logits}
        named = {f"accuracy_{name}": float(rate) for name, rate in rates.items()}
        return {"accuracy_mean": sum(named.values()) / len(named), **named}

    def state(self) -> dict[str, Tensor]:
        """Return the running statistics of the normalisations."""
        return dict(self.probe.named_buffers())

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back the running statistics."""
        for name, buffer in self.probe.named_buffers():
            buffer.copy_(state[name])


def degrade(images: Tensor, rng: torch.Generator) -> Tensor:
    """Return images as a small generator might have made them: mirrored, shifted, blurred, noisy, off in tone.

    Args:
        images: [B, 3, H, W] in [-1, 1].
        rng: Every image draws its own.
    """
    count = len(images)
    draws = torch.rand(count, 8, generator=rng)
    noise = torch.randn(images.shape, generator=rng)
    out = []
    for image, draw, grain in zip(images, draws.tolist(), noise, strict=True):
        changed = image.flip(-1) if draw[0] < 0.5 else image
        shift = [round((draw[i] - 0.5) * 20) for i in (1, 2)]
        changed = torch.roll(changed, shift, (1, 2)) if draw[3] < 0.5 else changed
        if draw[4] < 0.4:
            small = 0.35 + 0.5 * draw[5]
            side = changed.shape[-1]
            blurred = F.interpolate(changed[None], scale_factor=small, mode="bilinear", antialias=True)
            changed = F.interpolate(blurred, (side, side), mode="bicubic")[0]
        gain, lift = 0.85 + 0.3 * draw[6], 0.1 * (draw[7] - 0.5)
        out.append(changed * gain + lift + 0.06 * draw[1] * grain)
    return torch.stack(out).clamp(-1, 1)
