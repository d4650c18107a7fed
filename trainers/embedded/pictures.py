"""Random cut-outs of pictures at random scales: scenes, textures, and photos of a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lrdiff.errors import DataError
from lrdiff.images import EXTENSIONS, read_image

SIDE = 320
"""Photos are kept as their middle square, scaled to this side."""


class Photos:
    """The pictures of a folder and its subfolders, held in memory as bytes."""

    def __init__(self, folder: Path) -> None:
        """Read a folder.

        Raises:
            DataError: It holds no picture, or a damaged one.
        """
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
        if not paths:
            raise DataError(f"{folder}: holds no picture; give a folder of photos")
        self.bytes = torch.from_numpy(np.stack([_square(path) for path in paths])).permute(0, 3, 1, 2).contiguous()

    @property
    def count(self) -> int:
        """Number of photos."""
        return len(self.bytes)

    def images(self, indices: Tensor) -> Tensor:
        """Return images [B, 3, SIDE, SIDE] in [-1, 1]."""
        return self.bytes[indices].float() / 127.5 - 1.0


def cuts(
    source: Callable[[Tensor], Tensor], indices: Tensor, side: int, scales: tuple[float, float], rng: torch.Generator
) -> Tensor:
    """Cut squares at random places and scales, mirror half of them.

    Args:
        source: Gives images [B, 3, H, W] for indices.
        indices: Which ones.
        side: Of the result, in pixels.
        scales: Smallest and largest scale, even in the logarithm; a scale that would need more than the picture has is
            raised to what it has.
        rng: Source of all randomness.

    Returns:
        Images [B, 3, side, side] in [-1, 1].
    """
    low, high = np.log(scales[0]), np.log(scales[1])
    out = []
    for image in source(indices):
        draw = torch.rand(4, generator=rng).tolist()
        scale = float(np.exp(low + (high - low) * draw[0]))
        length = max(1, min(round(side / scale), *image.shape[-2:]))
        top, left = (int(draw[1 + axis] * (image.shape[1 + axis] - length + 1)) for axis in (0, 1))
        cut = image[None, :, top : top + length, left : left + length]
        cut = F.interpolate(cut, (side, side), mode="bilinear", align_corners=False, antialias=length > side)[0]
        out.append(cut.flip(-1) if draw[3] < 0.5 else cut)
    return torch.stack(out).clamp(-1.0, 1.0)


def _square(path: Path) -> np.ndarray:
    image = read_image(path)
    length = min(image.size)
    left, top = (image.width - length) // 2, (image.height - length) // 2
    box = (left, top, left + length, top + length)
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=box))
