"""PNG files with text chunks, complete or absent, that never overwrite another file."""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, PngImagePlugin

from lrdiff.errors import DataError
from lrdiff.files import write_bytes


def encode(picture: Image.Image, texts: Mapping[str, str]) -> bytes:
    """Return a PNG file with text chunks. The same picture and texts give the same bytes: there is no time stamp."""
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def writable(folder: Path) -> Path:
    """Create a folder if need be and make sure that files can be put into it.

    Raises:
        DataError: It cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise DataError(f"{folder}: cannot write there ({error.strerror or error}); choose another folder") from error


def write_new(folder: Path, label: str, data: bytes) -> Path:
    """Write a file under the next free number, "00007-label.png".

    The name is reserved first and the complete content moved onto it, so two processes may share a folder.

    Args:
        folder: Existing folder.
        label: Second part of the name.
        data: The file's content.

    Raises:
        DataError: The disk is full or the folder went away.
    """
    try:
        path = _reserve(folder, label)
        try:
            write_bytes(path, data)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise DataError(f"{folder}: an image cannot be written ({error.strerror or error})") from error
    return path


def _reserve(folder: Path, label: str) -> Path:
    """Create an empty file under the first number above all others in the folder."""
    taken = [int(found[1]) for path in folder.iterdir() if (found := re.match(r"(\d{5,})-", path.name))]
    number = max(taken, default=0) + 1
    while True:
        path = folder / f"{number:05d}-{label}.png"
        try:
            path.open("xb").close()
            return path
        except FileExistsError:
            number += 1
