"""How good the shipped models are: figures on pictures and captions that no training saw."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrdiff.backbones import Backbone
from lrdiff.files import replacing
from lrdiff.generate import render as generate
from lrdiff.images import to_image
from lrdiff.probe import Probe
from lrdiff.sheet import sheet
from lrdiff.world.captions import held_out_captions
from lrdiff.world.subjects import sample_subject, subject_scene
from lrdiff.world.toys import ATTRIBUTES, PATTERNS, SHAPES, attributes, render, sample_scenes
from trainers.embedded.toys_vae import psnr

UNSEEN_SEED = 2
"""Of scenes, subjects and captions; training used another one."""
BATCH = 32


@dataclass(frozen=True)
class Reading:
    """What a probe read, against the truth.

    Attributes:
        predicted: Attribute -> indices, [N].
        true: Attribute -> indices, [N].
    """

    predicted: dict[str, Tensor]
    true: dict[str, Tensor]

    def accuracy(self) -> dict[str, float]:
        """Return the share of right readings per attribute."""
        return {name: float((self.predicted[name] == true).float().mean()) for name, true in self.true.items()}

    def mean_accuracy(self) -> float:
        """Return the mean over attributes."""
        return statistics.fmean(self.accuracy().values())

    def named_pattern_accuracy(self) -> float:
        """Return the accuracy of the pattern where the caption names one: a plain thing is only implied."""
        named = self.true["pattern"] != PATTERNS.index("plain")
        return float((self.predicted["pattern"] == self.true["pattern"])[named].float().mean())

    def worst(self, name: str, count: int = 5) -> dict[str, float]:
        """Return the values of an attribute that are read worst, with their accuracies."""
        right = (self.predicted[name] == self.true[name]).float()
        rates = {
            value: float(right[self.true[name] == index].mean())
            for index, value in enumerate(ATTRIBUTES[name])
            if bool((self.true[name] == index).any())
        }
        return dict(sorted(rates.items(), key=lambda pair: pair[1])[:count])


@torch.no_grad()
def read_images(probe: Probe, images: Sequence[Tensor], labels: Sequence[dict[str, int]]) -> Reading:
    """Let a probe read batches of images [B, 3, H, W] in [-1, 1] with their labels, in order."""
    logits = [probe.attributes(batch) for batch in images]
    predicted = {name: torch.cat([part[name].argmax(1) for part in logits]) for name in ATTRIBUTES}
    return Reading(predicted, {name: torch.tensor([label[name] for label in labels]) for name in ATTRIBUTES})


def read_generated(
    backbone: Backbone, probe: Probe, count: int, *, steps: int = 20, guidance: float = 3.0, batch: int = 16
) -> Reading:
    """Generate the first `count` held-out captions, image i from seed i, and let a probe read them."""
    pairs = held_out_captions(count, UNSEEN_SEED)
    images = []
    for start in range(0, count, batch):
        texts = [text for text, _ in pairs[start : start + batch]]
        seeds = list(range(start, start + len(texts)))
        images.append(generate(backbone, texts, seeds, steps=steps, guidance=guidance).cpu())
    return read_images(probe, images, [labels for _, labels in pairs])


def read_scenes(probe: Probe, count: int, *, held_out: bool = False) -> Reading:
    """Let a probe read unseen scenes of one object, the upper bound of what generated pictures can reach.

    Args:
        probe: The reader.
        count: Number of scenes.
        held_out: Take the attribute combinations that no training scene shows.
    """
    scenes = sample_scenes(UNSEEN_SEED, range(count), objects="single", held_out=held_out)
    images = [render(scenes[start : start + BATCH]).images for start in range(0, count, BATCH)]
    return read_images(probe, images, [attributes(scene) for scene in scenes])


@torch.no_grad()
def autoencoder_psnr(backbone: Backbone, count: int) -> float:
    """Return the mean PSNR in dB of unseen scenes of any number of objects, decoded from the posterior's mean."""
    values = []
    for start in range(0, count, BATCH):
        images = render(sample_scenes(UNSEEN_SEED, range(start, min(count, start + BATCH)))).images
        decoded = backbone.decode(backbone.encode_moments(images)[0]).cpu().clamp(-1.0, 1.0)
        values += [psnr(image[None], other[None]) for image, other in zip(images, decoded, strict=True)]
    return statistics.fmean(values)


def seconds_per_image(backbone: Backbone, *, steps: int = 20, repeats: int = 5) -> list[float]:
    """Return the seconds of single images with guidance, after one that warms up. The caller sets the threads."""
    text = held_out_captions(1, UNSEEN_SEED)[0][0]
    times = []
    for seed in range(repeats + 1):
        begin = time.perf_counter()
        generate(backbone, [text], [seed], steps=steps)
        times.append(time.perf_counter() - begin)
    return times[1:]


def contact_sheet(backbone: Backbone, path: Path, *, columns: int = 8, rows: int = 4, steps: int = 20) -> list[str]:
    """Write a labelled sheet of held-out captions, every shape once before any comes again; return the captions."""
    chosen: list[str] = []
    by_shape: dict[int, list[str]] = {}
    for text, labels in held_out_captions(8 * max(rows * columns, len(SHAPES)), UNSEEN_SEED + 1):
        by_shape.setdefault(labels["shape"], []).append(text)
    while len(chosen) < rows * columns:
        chosen += [texts.pop(0) for _, texts in sorted(by_shape.items()) if texts]
    chosen = chosen[: rows * columns]
    images = [
        to_image(image)
        for start in range(0, len(chosen), columns)
        for image in generate(
            backbone,
            chosen[start : start + columns],
            list(range(start, min(len(chosen), start + columns))),
            steps=steps,
        )
    ]
    pages = [
        sheet([images[start : start + columns]], [""], [text.removeprefix("a photo of ") for text in texts])
        for start in range(0, len(chosen), columns)
        for texts in [chosen[start : start + columns]]
    ]
    from PIL import Image

    page = Image.new("RGB", (pages[0].width, sum(part.height for part in pages)), (255, 255, 255))
    top = 0
    for part in pages:
        page.paste(part, (0, top))
        top += part.height
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        page.save(temporary, format="PNG", optimize=True)
    return chosen


@torch.no_grad()
def equal_error_rate(probe: Probe, subjects: int, views: int = 4) -> float:
    """Return the rate at which a threshold on the cosine confuses unseen subjects as often as it splits them.

    Args:
        probe: The reader.
        subjects: Number of individuals, at least 2.
        views: Pictures of each, at least 2; all pairs of pictures are compared.
    """
    scenes = [
        subject_scene(sample_subject(UNSEEN_SEED, subject), UNSEEN_SEED, subject * views + view)
        for subject in range(subjects)
        for view in range(views)
    ]
    found = [probe.identity(render(scenes[start : start + BATCH]).images) for start in range(0, len(scenes), BATCH)]
    vectors = torch.cat(found)
    owner = torch.arange(subjects).repeat_interleave(views)
    rows, columns = torch.triu_indices(len(vectors), len(vectors), offset=1)
    cosines = (vectors @ vectors.T)[rows, columns]
    return rate_of_equal_errors(cosines, owner[rows] == owner[columns])


def rate_of_equal_errors(scores: Tensor, same: Tensor) -> float:
    """Return the error rate at the threshold where false accepts and false rejects are equally frequent.

    Args:
        scores: Higher for more alike, [N].
        same: Whether a pair is of the same subject, [N] bool, both kinds present.
    """
    order = scores.argsort(descending=True, stable=True)
    hit = same[order].double()
    rejects = 1.0 - hit.cumsum(0) / hit.sum()
    accepts = (1.0 - hit).cumsum(0) / (1.0 - hit).sum()
    at = int((rejects - accepts).abs().argmin())
    return float((rejects[at] + accepts[at]) / 2)


def rounded(figures: dict[str, Any]) -> dict[str, Any]:
    """Return figures with four digits after the point, for records."""
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()}
