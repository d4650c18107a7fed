"""How much room runs, images and models take on the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Usage:
    """The room that a file or a folder takes.

    Attributes:
        name: For people.
        path: The file or folder.
        size: Bytes of all files below it.
        files: How many they are.
    """

    name: str
    path: Path
    size: int
    files: int


def usage(path: Path, name: str = "") -> Usage:
    """Measure a file or a folder; one that is absent takes nothing. Links are not followed.

    Args:
        path: The file or folder.
        name: For people; the file name when left out.
    """
    sizes = list(_sizes(path))
    return Usage(name or path.name, path, sum(sizes), len(sizes))


def by_child(folder: Path) -> list[Usage]:
    """Measure everything that lies directly in a folder, hidden things as well, largest first."""
    if not folder.is_dir():
        return []
    return sorted((usage(path) for path in folder.iterdir()), key=lambda item: (-item.size, item.name))


def free(path: Path) -> int:
    """Return the bytes that are free where a folder is, or will be."""
    existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
    return shutil.disk_usage(existing).free


def _sizes(path: Path) -> Iterator[int]:
    try:
        if path.is_symlink() or not path.is_dir():
            yield path.lstat().st_size
            return
        with os.scandir(path) as entries:
            found = [Path(entry.path) for entry in entries]
    except FileNotFoundError:
        # Runs that are under way replace their files.
        return
    for entry in found:
        yield from _sizes(entry)
