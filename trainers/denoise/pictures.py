"""Pictures as cached latents: mean and standard deviation of each posterior, and how each picture was cropped."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from lrdiff.backbones import Backbone
from lrdiff.errors import DataError, ModelError
from lrdiff.images import crop_to, to_tensor
from trainers.buckets import best_bucket, bucket_sizes, share_cropped
from trainers.data import Sample, readable

log = logging.getLogger(__name__)

AT_ONCE = 8
"""Pictures that are encoded together."""
TOLD = 500
"""After as many pictures the log says how far the encoding is."""
MUCH = 0.35
"""A crop that cuts off a larger share of a picture is told."""


@dataclass(frozen=True, slots=True)
class Latents:
    """Cached pictures, on the CPU.

    Attributes:
        moments: Mean and standard deviation of each picture's posterior, [2, C, h, w].
        crops: What `predict` is told of each picture's crop, see `Backbone.size_condition`.
    """

    moments: list[Tensor]
    crops: list[dict[str, Tensor]]

    def __len__(self) -> int:
        return len(self.moments)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shape of each picture's latents."""
        return [tuple(moments.shape) for moments in self.moments]


def encode(backbone: Backbone, samples: Sequence[Sample], *, flip: bool, buckets: bool) -> Latents:
    """Read and encode pictures, a few at a time, so that thousands need no more memory than their latents.

    Args:
        backbone: Its encoder is used.
        samples: What to read.
        flip: Also encode every picture mirrored; the mirrored ones follow after all others.
        buckets: Crop each to the size of the nearest shape instead of to the native square.

    Raises:
        DataError: Some files cannot be read; the message names every one of them.
        ModelError: The autoencoder makes NaN or infinity of them.
    """
    side = backbone.resolution
    sizes = bucket_sizes(side, backbone.latent_factor) if buckets else [(side, side)]
    moments: list[Tensor] = []
    crops: list[dict[str, Tensor]] = []
    problems: list[str] = []
    waiting: list[Tensor] = []
    for mirrored in (False, True) if flip else (False,):
        for image, sample in readable(samples, problems):
            size = best_bucket(*image.size, sizes)
            pixels = to_tensor(crop_to(image, *size))
            if waiting and (len(waiting) == AT_ONCE or waiting[0].shape != pixels.shape):
                moments += _encode(backbone, waiting)
                waiting = []
            waiting.append(pixels.flip(-1) if mirrored else pixels)
            crops.append(backbone.size_condition((image.height, image.width), _corner(image, size)))
            if not mirrored:
                _remark(sample, image, size)
            if len(crops) % TOLD == 0:
                log.info("%d pictures of %s are read and encoded", len(crops), sample.path.parent)
        if problems:
            raise DataError("\n".join(problems))
    return Latents(moments + _encode(backbone, waiting), crops)


@torch.no_grad()
def _encode(backbone: Backbone, pixels: Sequence[Tensor]) -> list[Tensor]:
    if not pixels:
        return []
    mean, std = backbone.encode_moments(torch.stack(list(pixels)).to(backbone.device, backbone.dtype))
    if not bool(torch.isfinite(mean + std).all()):
        raise ModelError(
            f"{backbone.name}: its autoencoder turns pictures into numbers that are not finite; "
            "use precision.dtype fp32 or bf16, or copy the model again"
        )
    return list(torch.stack([mean, std], dim=1).float().cpu())


def _corner(image: Image.Image, size: tuple[int, int]) -> tuple[int, int]:
    """Return top and left of the middle crop in the scaled picture."""
    scale = max(size[0] / image.width, size[1] / image.height)
    return round((image.height * scale - size[1]) / 2), round((image.width * scale - size[0]) / 2)


def _remark(sample: Sample, image: Image.Image, size: tuple[int, int]) -> None:
    """Tell what becomes of a picture that is small or of an unusual shape."""
    if image.width < size[0] or image.height < size[1]:
        least = f"{size[0]} px" if size[0] == size[1] else f"{size[0]} x {size[1]} px"
        log.warning("%s: %d x %d is smaller than %s and was enlarged", sample.path, *image.size, least)
    lost = share_cropped(*image.size, size)
    if lost > MUCH:
        log.warning(
            "%s: %d x %d is far from %d x %d: %.0f %% of it is cut off; crop it yourself to choose what stays",
            sample.path, *image.size, *size, 100 * lost,
        )  # fmt: skip
