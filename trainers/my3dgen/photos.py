"""A person's photos and the cameras they were taken with."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from lrdiff.errors import DataError, ShapeError
from lrdiff.triplane.cameras import split_camera
from trainers.data import find_samples, load_pixels

MOST = 500
LISTED = 5


class Photos(NamedTuple):
    """Photos of a person.

    Attributes:
        pixels: [N, 3, S, S] in [-1, 1].
        names: Their file names.
        notes: What somebody should know about them.
    """

    pixels: Tensor
    names: list[str]
    notes: list[str]


def read_photos(folder: Path, side: int, setting: str = "data.images") -> Photos:
    """Return photos at `side` pixels, cut to squares around their middle.

    Raises:
        DataError: No photos, damaged ones, or more than 500.
    """
    samples = find_samples(folder, "a head", setting)
    if len(samples) > MOST:
        raise DataError(f"{setting}: {folder} holds {len(samples)} photos; take at most {MOST}, ten are enough")
    pixels = load_pixels(samples, side)
    oblong = [sample.path.name for sample in samples if len(set(picture_size(sample.path))) > 1]
    notes = (
        [f"{setting}: not square, so only the middle is seen: {listed(oblong)}; is the head in it?"] if oblong else []
    )
    return Photos(pixels, [sample.path.name for sample in samples], notes)


def listed(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def picture_size(path: Path) -> tuple[int, int]:
    """Return width and height of a picture that was read before, as the file says, without decoding it."""
    with Image.open(path) as image:
        return image.size


def read_cameras(path: Path, names: list[str]) -> Tensor:
    """Return the cameras [N, 25] of photos.

    Args:
        path: JSON: {"file name": [25 numbers], ...}: row-major 4 x 4 camera-to-world matrix (x right, y down, z
            forward), then 3 x 3 intrinsics in picture sides. Names that are no photo's are ignored.
        names: The photos' file names, in order.

    Raises:
        DataError: The file is absent or no such JSON, a photo has no camera, or a camera is impossible.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"method.cameras: {path} cannot be read as JSON ({error}); give a file of cameras") from error
    if not isinstance(record, dict):
        raise DataError(f'method.cameras: {path} must hold {{"file name": [25 numbers], ...}}')
    missing = [name for name in names if name not in record]
    if missing:
        have = listed(list(record)) or "empty"
        raise DataError(
            f"method.cameras: {path} has no camera of {listed(missing)}; its names are {have}. Name each camera "
            "exactly as its photo's file, ending included"
        )
    for name in names:
        numbers = record[name]
        numeric = isinstance(numbers, list) and all(isinstance(n, int | float) and math.isfinite(n) for n in numbers)
        if not numeric or len(numbers) != 25:
            found = f"{len(numbers)} numbers" if numeric else "something else than a flat list of finite numbers"
            raise DataError(
                f"method.cameras: {path}: {name} must have 25 numbers, a 4 x 4 pose and 3 x 3 intrinsics row by "
                f"row, and has {found}"
            )
    cameras = torch.tensor([record[name] for name in names], dtype=torch.float32)
    for name, camera in zip(names, cameras, strict=True):
        try:
            split_camera(camera[None])
        except ShapeError as error:
            raise DataError(f"method.cameras: {path}: {name}: {str(error).removeprefix('camera 0: ')}") from error
    return cameras
