"""Shapes of training pictures: which size each is cropped to, and batches in which all have one size.

No picture is dropped: what does not fill a batch of its size is trained in a smaller one.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import torch

from lrdiff.rng import derive, stream

SHORTEST, LONGEST = 0.5, 1.5
"""Sides of a bucket, as shares of the native side."""
PARTS = 16
"""Sides of buckets are multiples of about the native side over this."""


def bucket_sizes(resolution: int, factor: int) -> list[tuple[int, int]]:
    """Return the sizes (width, height) that pictures may be cropped to, none with more pixels than the native square.

    Args:
        resolution: Native side in pixels.
        factor: Pixels per latent; sides are multiples of twice as many, since transformers read patches of 2 x 2.
    """
    unit = max(1, round(resolution / PARTS / (2 * factor))) * 2 * factor
    shortest = max(unit, math.ceil(SHORTEST * resolution / unit) * unit)
    sides = range(shortest, int(LONGEST * resolution) + 1, unit)
    fitting = [(w, max((h for h in sides if w * h <= resolution**2), default=0)) for w in sides]
    found = {size for size in fitting if size[1]}
    return sorted(found | {(h, w) for w, h in found} | {(resolution, resolution)})


def best_bucket(width: int, height: int, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the size whose shape is nearest to a picture's; of equal ones the largest."""
    shape = math.log(width / height)
    return min(sizes, key=lambda size: (round(abs(math.log(size[0] / size[1]) - shape), 9), -size[0] * size[1]))


def share_cropped(width: int, height: int, size: tuple[int, int]) -> float:
    """Return the share of a picture's area that is cut off when it is scaled to cover `size`."""
    scale = max(size[0] / width, size[1] / height)
    return 1.0 - size[0] * size[1] / (width * height * scale**2)


def bucketed_batch(index: int, batch_size: int, shapes: Sequence[Hashable], seed: int) -> list[int]:
    """Return the sample numbers of batch `index`: of one shape, every sample once per epoch, in random order.

    Args:
        index: Number of the batch over the whole run.
        batch_size: Samples per batch; the last batch of a shape may be smaller.
        shapes: Shape of each sample.
        seed: Seed from which each epoch's order is drawn.
    """
    groups = [[i for i, shape in enumerate(shapes) if shape == wanted] for wanted in dict.fromkeys(shapes)]
    count = sum(math.ceil(len(group) / batch_size) for group in groups)
    epoch, position = divmod(index, count)
    rng = stream(derive(seed, "buckets"), "epoch", epoch)
    batches = []
    for group in groups:
        order = [group[i] for i in torch.randperm(len(group), generator=rng).tolist()]
        batches += [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return batches[int(torch.randperm(count, generator=rng)[position])]
