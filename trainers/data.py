"""Image folders -> checked samples. Files are read and never changed.

A caption is the text file beside a picture, or its line in `metadata.jsonl`, or the one prompt of the run.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lrdiff.artifact import sha256
from lrdiff.errors import DataError
from lrdiff.images import EXTENSIONS, crop_to, read_image, to_tensor
from lrdiff.rng import stream

log = logging.getLogger(__name__)

BESIDE_IMAGES = frozenset({".txt", ".json", ".jsonl", ".toml", ".md", ".csv"})
"""Files that may lie beside images without a remark."""
METADATA = "metadata.jsonl"
"""Captions of a folder: one JSON object per line, with `file_name` and `text`."""
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
        folder: Read without its subfolders. Or a text file with one path of a picture per line, seen from its folder.
        prompt: Caption of pictures that have none of their own.
        setting: What the folder was given as, for messages.

    Raises:
        DataError: The folder is absent or without pictures; a caption is empty, not UTF-8 or given twice; a list or
            metadata.jsonl names a file that is not there.
    """
    pictures, others = _listing(folder, setting)
    if others:
        log.warning("left out of %s, not of a known picture type: %s%s", folder, ", ".join(others), _advice(others))
    tables = {place: read_metadata(place) for place in {path.parent for path in pictures}}
    return [Sample(path=path, caption=_caption(path, prompt, tables[path.parent])) for path in pictures]


def _listing(folder: Path, setting: str) -> tuple[list[Path], list[str]]:
    """Return the pictures of a folder, and the names of what is left out."""
    if folder == Path():
        raise DataError(f"{setting}: give a folder of pictures")
    if folder.suffix.lower() == ".txt" and folder.is_file():
        return read_list(folder), []
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{setting}: {folder} {what}; give a folder of pictures")
    visible = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    files = [entry for entry in visible if not entry.is_dir()]
    pictures = [entry for entry in files if entry.suffix.lower() in EXTENSIONS]
    known = EXTENSIONS | BESIDE_IMAGES
    others = [entry.name for entry in files if entry.suffix.lower() not in known]
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
    captions = {path.with_suffix(".txt") for path in pictures} | {path.parent / METADATA for path in pictures}
    found = sorted([*pictures, *(path for path in captions if path.is_file())])
    alone = len({path.parent for path in found}) == 1
    try:
        return {
            path.name if alone else str(path): {"size": path.stat().st_size, "sha256": sha256(path)} for path in found
        }
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}); replace or remove it") from error


def read_list(path: Path) -> list[Path]:
    """Return the pictures that a text file lists. Raises `DataError` naming the line that is wrong."""
    found = []
    for number, line in _lines(path):
        picture = path.parent / Path(line).expanduser()
        if not picture.is_file() or picture.suffix.lower() not in EXTENSIONS:
            what = "no such file" if not picture.is_file() else "not of a known picture type"
            raise DataError(f"{path}: line {number}: {line}: {what}; correct or remove the line")
        if picture in found:
            raise DataError(f"{path}: line {number}: {line} is listed twice; remove one of the lines")
        found.append(picture)
    if not found:
        raise DataError(f"{path}: lists no pictures; write one path per line")
    return found


def read_metadata(folder: Path) -> dict[str, str]:
    """Return the captions in a folder's metadata.jsonl by file name; none without that file.

    Raises:
        DataError: A line is damaged, is without a caption, or names a file that is not there or named twice.
    """
    path = folder / METADATA
    found: dict[str, str] = {}
    for number, line in _lines(path) if path.is_file() else ():
        where = f"{path}: line {number}"
        try:
            entry = json.loads(line)
            name, text = entry["file_name"], " ".join(entry["text"].split())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            form = '{"file_name": "1.png", "text": "a caption"}'
            raise DataError(f"{where}: cannot be used ({type(error).__name__}: {error}); write {form}") from error
        if not (folder / str(name)).is_file():
            raise DataError(f"{where}: there is no file {name}; correct the name or remove the line")
        if not text or name in found:
            raise DataError(f"{where}: {name} {'is named twice' if text else 'has an empty text'}; correct the line")
        found[name] = text
    return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of every line that is not blank."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def read_caption(picture: Path, prompt: str) -> str:
    """Return a picture's own caption, or `prompt` where there is none. Errors as in `find_samples`."""
    return _caption(picture, prompt, read_metadata(picture.parent))


def _caption(picture: Path, prompt: str, table: dict[str, str]) -> str:
    path, listed = picture.with_suffix(".txt"), table.get(picture.name)
    if not path.is_file():
        return prompt if listed is None else listed
    try:
        text = " ".join(path.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    if not text:
        raise DataError(f"{path}: is empty; write a caption, or remove the file to use data.prompt")
    if listed is not None and listed != text:
        raise DataError(f"{path}: says otherwise than {METADATA} does of {picture.name}; remove one of the captions")
    return text


def readable(samples: Sequence[Sample], problems: list[str]) -> Iterator[tuple[Image.Image, Sample]]:
    """Yield the pictures that can be read, one at a time, and write down what is wrong with the others."""
    for sample in samples:
        try:
            image = read_image(sample.path)
        except DataError as error:
            problems.append(str(error))
            continue
        yield image, sample


def load_pixels(samples: Sequence[Sample], resolution: int) -> Tensor:
    """Read, scale and crop pictures to squares: [N, 3, resolution, resolution] in [-1, 1].

    Raises:
        DataError: Some files cannot be read; the message names every one of them.
    """
    pixels: list[Tensor] = []
    problems: list[str] = []
    for image, sample in readable(samples, problems):
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
