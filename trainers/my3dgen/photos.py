"""A person's photos and the cameras they were taken with."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lrdiff.errors import DataError, ShapeError
from lrdiff.triplane.cameras import split_camera
from trainers.data import find_samples, load_pixels

log = logging.getLogger(__name__)

MOST = 500


def read_photos(folder: Path, side: int, setting: str = "data.images") -> tuple[Tensor, list[str]]:
    """Return photos [N, 3, side, side] in [-1, 1], cut to squares around their middle, and their file names.

    Raises:
        DataError: No photos, damaged ones, or more than 500.
    """
    samples = find_samples(folder, "a head", setting)
    if len(samples) > MOST:
        raise DataError(f"{setting}: {folder} holds {len(samples)} photos; take at most {MOST}, ten are enough")
    pixels = load_pixels(samples, side)
    oblong = [sample.path.name for sample in samples if len(set(picture_size(sample.path))) > 1]
    if oblong:
        log.warning("%s: not square, so only the middle is seen: %s; is the head in it?", setting, ", ".join(oblong))
    return pixels, [sample.path.name for sample in samples]


def picture_size(path: Path) -> tuple[int, int]:
    """Return width and height of a picture that was read before, as the file says, without decoding it."""
    with Image.open(path) as image:
        return image.size


def read_cameras(path: Path, names: list[str]) -> Tensor:
    """Return the cameras [N, 25] of photos.

    Args:
        path: JSON: {"file name": [25 numbers], ...}: row-major 4 x 4 camera-to-world matrix (x right, y down, z
            forward), then 3 x 3 intrinsics in picture sides. Further names are ignored only if they are no photo's.
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
        raise DataError(f"method.cameras: {path} has no camera of {', '.join(missing[:5])}; add it under that name")
    for name in names:
        numbers = record[name]
        fine = isinstance(numbers, list) and len(numbers) == 25
        if not fine or not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
            raise DataError(f"method.cameras: {path}: {name} must have 25 numbers: a 4 x 4 pose and 3 x 3 intrinsics")
    cameras = torch.tensor([record[name] for name in names], dtype=torch.float32)
    for name, camera in zip(names, cameras, strict=True):
        try:
            split_camera(camera[None])
        except ShapeError as error:
            raise DataError(f"method.cameras: {path}: {name}: {error}") from error
    return cameras
