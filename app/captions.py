"""Captions that a person edits: one row per picture, kept by the picture's name when others come and go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from app.pictures import Picture, named
from lrdiff.errors import DataError
from trainers.data import read_caption

Rows = Sequence[Sequence[str]]


def rows(pictures: Sequence[Picture], edited: Rows = ()) -> list[list[str]]:
    """Return [name, caption] for every usable picture: what was edited, else what lies beside it, else nothing."""
    kept = {row[0]: row[1] for row in edited}
    return [[p.path.name, kept.get(p.path.name, _caption(p))] for p in pictures if not p.problem]


def _caption(picture: Picture) -> str:
    if picture.caption is None:
        return ""
    try:
        return read_caption(picture.caption.with_suffix(picture.path.suffix), "")
    except DataError:
        # It vanished since it was checked; the check names that.
        return ""


def by_name(edited: Rows) -> dict[str, str]:
    """Return the captions by the name of their picture, blanks collapsed."""
    return {str(row[0]): " ".join(str(row[1] or "").split()) for row in edited}


@contextmanager
def with_captions(pictures: Sequence[Picture], captions: Mapping[str, str]) -> Iterator[dict[str, Path]]:
    """Yield the files of a run by the names they get: the pictures, and their captions as they were edited.

    Args:
        pictures: What was dropped; those with problems are left out.
        captions: By name of the picture. An empty one means none, so that the prompt is used.
    """
    files = named(pictures)
    with TemporaryDirectory(prefix="lrdiff-captions-") as folder:
        for name, path in list(files.items()):
            caption = captions.get(path.name)
            if Path(name).suffix == ".txt" or caption is None:
                continue
            beside = f"{Path(name).stem}.txt"
            files.pop(beside, None)
            if caption:
                files[beside] = Path(folder) / beside
                files[beside].write_text(caption, encoding="utf-8")
        yield files
