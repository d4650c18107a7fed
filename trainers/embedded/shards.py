"""Rendered scenes on disk: a memory-mapped array of bytes and one JSON line per scene."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrdiff.errors import DataError


@dataclass(frozen=True)
class Shards:
    """A folder of `NNNN.npy` (uint8 [n, 3, H, W]) and `NNNN.jsonl` (one record per image), read lazily."""

    path: Path
    arrays: tuple[np.ndarray, ...]

    @classmethod
    def open(cls, path: Path) -> Shards:
        """Map the complete shards of a folder. Raises `DataError` when there is none."""
        names = sorted(path.glob("*.npy"))
        if not names:
            raise DataError(f"{path}: holds no rendered scenes; render them first")
        return cls(path, tuple(np.load(name, mmap_mode="r") for name in names))

    @property
    def count(self) -> int:
        """Number of images."""
        return sum(len(array) for array in self.arrays)

    @property
    def side(self) -> int:
        """Of every image, in pixels."""
        return self.arrays[0].shape[-1]

    def images(self, indices: Tensor) -> Tensor:
        """Return images [B, 3, H, W] in [-1, 1]."""
        size = len(self.arrays[0])
        picked = np.stack([self.arrays[i // size][i % size] for i in indices.tolist()])
        return torch.from_numpy(picked).float() / 127.5 - 1.0

    def records(self) -> list[dict[str, Any]]:
        """Return the record of every image, in order."""
        lines: list[dict[str, Any]] = []
        for name in sorted(self.path.glob("*.npy")):
            lines += [json.loads(line) for line in name.with_suffix(".jsonl").read_text().splitlines()]
        return lines
