"""Image folders -> checked samples. Files are read and never changed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrdiff.artifact import sha256
from lrdiff.errors import DataError
from lrdiff.images import EXTENSIONS, crop_to, read_image, to_tensor
from lrdiff.rng import stream

log = logging.getLogger(__name__)

BESIDE_IMAGES = frozenset({".txt", ".json", ".jsonl", ".toml", ".md", ".csv"})
"""Files that may lie beside images without a remark."""
TO_CONVERT = frozenset({".heic", ".heif"})
"""Pictures as phones store them, which Pillow does not read."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture and its caption."""

    path: Path
    caption: str


def find_samples(folder: Path, prompt: str, setting: str = "data.images") -> list[Sample]:
    """List the pictures of a folder with their captions, by name.

    Args:
        folder: Read without its subfolders.
        prompt: Caption of pictures that have no text file of the same name.
        setting: What the folder was given as, for messages.

    Raises:
        DataError: The folder is absent or without pictures; a caption is empty or not UTF-8.
    """
    pictures, others = _listing(folder, setting)
    if others:
        log.warning("left out of %s, not of a known picture type: %s%s", folder, ", ".join(others), _advice(others))
    return [Sample(path=path, caption=read_caption(path, prompt)) for path in pictures]


def _listing(folder: Path, setting: str) -> tuple[list[Path], list[str]]:
    """Return the pictures of a folder, and the names of what is left out."""
    if folder == Path():
        raise DataError(f"{setting}: give a folder of pictures")
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{setting}: {folder} {what}; give a folder of pictures")
    visible = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    files = [entry for entry in visible if not entry.is_dir()]
    pictures = [entry for entry in files if entry.suffix.lower() in EXTENSIONS]
    others = [entry.name for entry in files if entry not in pictures and entry.suffix.lower() not in BESIDE_IMAGES]
    subfolders = [entry.name for entry in visible if entry.is_dir()]
    if not pictures:
        seen = f"only {', '.join(others[:5])}" if others else "nothing that is a picture"
        nested = f"; subfolders are not read: {', '.join(subfolders[:5])}" if subfolders else ""
        types = ", ".join(sorted(EXTENSIONS))
        raise DataError(f"{setting}: {folder} holds {seen}{nested}{_advice(others)}; known picture types: {types}")
    return pictures, others + subfolders


def _advice(names: Sequence[str]) -> str:
    """Say what to do with pictures that must be converted, if there are any."""
    return "; convert HEIC to PNG or JPEG" if any(Path(name).suffix.lower() in TO_CONVERT for name in names) else ""


def fingerprint(folder: Path, setting: str = "data.images") -> dict[str, dict[str, Any]]:
    """Return what tells whether the pictures of a folder changed: size and SHA-256 of each and of its caption, by name.

    Raises:
        DataError: As `find_samples`, or a file cannot be read.
    """
    pictures, _ = _listing(folder, setting)
    captions = {path.with_suffix(".txt") for path in pictures}
    found = sorted([*pictures, *(path for path in captions if path.is_file())])
    try:
        return {path.name: {"size": path.stat().st_size, "sha256": sha256(path)} for path in found}
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}); replace or remove it") from error


def read_caption(picture: Path, prompt: str) -> str:
    """Return the text of the `.txt` file beside a picture, or `prompt` where there is none."""
    path = picture.with_suffix(".txt")
    if not path.is_file():
        return prompt
    try:
        text = " ".join(path.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    if not text:
        raise DataError(f"{path}: is empty; write a caption, or remove the file to use data.prompt")
    return text


def load_pixels(samples: Sequence[Sample], resolution: int) -> Tensor:
    """Read, scale and crop pictures to squares: [N, 3, resolution, resolution] in [-1, 1].

    Raises:
        DataError: Some files cannot be read; the message names every one of them.
    """
    pixels, problems = [], []
    for sample in samples:
        try:
            image = read_image(sample.path)
        except DataError as error:
            problems.append(str(error))
            continue
        if min(image.size) < resolution:
            log.warning("%s: %d x %d is smaller than %d px and was enlarged", sample.path, *image.size, resolution)
        pixels.append(to_tensor(crop_to(image, resolution, resolution)))
    if problems:
        raise DataError("\n".join(problems))
    return torch.stack(pixels)


def epoch_indices(index: int, batch_size: int, count: int, seed_of_epoch: int) -> list[int]:
    """Return the sample numbers of batch `index` when every epoch is a fresh permutation and batches may span epochs.

    Args:
        index: Number of the batch over the whole run.
        batch_size: Samples per batch.
        count: Samples in all.
        seed_of_epoch: Seed from which each epoch's permutation is drawn.
    """
    chosen = []
    for position in range(index * batch_size, (index + 1) * batch_size):
        epoch, offset = divmod(position, count)
        order = torch.randperm(count, generator=stream(seed_of_epoch, "epoch", epoch))
        chosen.append(int(order[offset]))
    return chosen
