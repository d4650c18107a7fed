"""Dropped files -> checked pictures with captions, problems named per file, and a contact sheet for the page."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from app import text
from lrdiff.errors import DataError
from lrdiff.images import EXTENSIONS, read_image
from trainers.data import TO_CONVERT, read_caption

MAX_FILES = 1000
THUMBNAIL = 192
SHOWN = 60


@dataclass(frozen=True, slots=True)
class Picture:
    """One dropped file.

    Attributes:
        path: Where it lies; its last part is the name that people know.
        caption: Text file with its caption, if one was dropped too.
        problem: Why it cannot be used, or "".
        size: (width, height) as people see it, upright.
        thumbnail: Small JPEG.
    """

    path: Path
    caption: Path | None = None
    problem: str = ""
    size: tuple[int, int] = (0, 0)
    thumbnail: bytes = b""


@dataclass(frozen=True, slots=True)
class Subject:
    """An example subject.

    Attributes:
        name: Of its folder.
        noun: What sort of thing it is, for the prompt.
        files: Its training pictures and captions.
        held_out: Folder of pictures to validate on, or None.
    """

    name: str
    noun: str
    files: tuple[Path, ...]
    held_out: Path | None


def subjects(root: Path) -> dict[str, Subject]:
    """Return the installed example subjects by name: folders with a folder `train` inside."""
    return {path.parent.name: _subject(path.parent) for path in sorted(root.glob("*/train")) if path.is_dir()}


def _subject(folder: Path) -> Subject:
    files = tuple(sorted(path for path in (folder / "train").iterdir() if path.is_file() and path.name[0] != "."))
    about = folder / "subject.json"
    noun = json.loads(about.read_text())["noun"] if about.is_file() else folder.name
    held_out = folder / "held-out"
    return Subject(folder.name, noun, files, held_out if held_out.is_dir() else None)


def check(paths: Sequence[Path]) -> list[Picture]:
    """Read every dropped file and say what is wrong with those that cannot be used.

    A text file is the caption of the picture with the same name; it is not listed by itself unless it has a problem.
    """
    if len(paths) > MAX_FILES:
        message = text.TOO_MANY_FILES.format(count=len(paths), limit=MAX_FILES)
        return [Picture(paths[0], problem=message)]
    captions: dict[str, Path] = {}
    refused: list[Picture] = []
    pictures = [path for path in paths if path.suffix.lower() != ".txt"]
    stems = {path.stem for path in pictures}
    for path in paths:
        if path.suffix.lower() == ".txt":
            if path.stem not in stems:
                refused.append(Picture(path, problem=text.LONELY_CAPTION))
            elif path.stem in captions:
                refused.append(Picture(path, problem=text.SAME_CAPTION))
            else:
                captions[path.stem] = path
    return [_check(path, captions.get(path.stem), _stamp(path)) for path in pictures] + refused


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0


@lru_cache(maxsize=2 * MAX_FILES)
def _check(path: Path, caption: Path | None, stamp: int) -> Picture:
    """Read one file; the same file is not decoded again for every look at the form."""
    if not path.is_file():
        return Picture(path, problem=text.UPLOAD_GONE)
    if path.suffix.lower() in TO_CONVERT:
        return Picture(path, problem=text.FROM_PHONE)
    if path.suffix.lower() not in EXTENSIONS:
        return Picture(path, problem=text.WRONG_TYPE.format(types=", ".join(sorted(EXTENSIONS))))
    try:
        if caption is not None:
            read_caption(caption.with_suffix(path.suffix), "")
        image = read_image(path)
    except DataError as error:
        return Picture(path, caption, problem=_without_folder(str(error), path, caption))
    size = image.size
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=82)
    return Picture(path, caption, "", size, buffer.getvalue())


def _without_folder(message: str, path: Path, caption: Path | None) -> str:
    """Drop the server's folders from a message: people know the file by its name, which stands beside it."""
    for file in (path, caption):
        if file is not None:
            message = message.replace(f"{file}: ", "").replace(f"{file.parent}/", "")
    return message


def named(pictures: Sequence[Picture]) -> dict[str, Path]:
    """Give each usable picture and its caption a name of its own, numbered where two are called the same."""
    files: dict[str, Path] = {}
    stems: set[str] = set()
    for picture in pictures:
        if picture.problem:
            continue
        stem, number = picture.path.stem, 2
        while stem.lower() in stems:
            stem, number = f"{picture.path.stem}-{number}", number + 1
        stems.add(stem.lower())
        files[stem + picture.path.suffix] = picture.path
        if picture.caption is not None:
            files[f"{stem}.txt"] = picture.caption
    return files


def sheet(pictures: Sequence[Picture]) -> str:
    """Return the pictures as HTML: thumbnails with names, those with problems first."""
    if not pictures:
        return ""
    bad = [picture for picture in pictures if picture.problem]
    good = [picture for picture in pictures if not picture.problem]
    counts = [text.READY.format(count=text.plural(text.PICTURES, len(good)))] if good else []
    counts += [text.plural(text.REFUSED, len(bad))] if bad else []
    notes = [f"<p class='note warn'>{text.ONE_IMAGE}</p>"] if len(good) == 1 and not bad else []
    more = len(good) - SHOWN
    cards = [_bad_card(picture) for picture in bad] + [_card(picture) for picture in good[:SHOWN]]
    if more > 0:
        notes.append(f"<p class='note'>{text.MORE_PICTURES.format(count=more)}</p>")
    line = f"<p class='count' role='status'>{html.escape(', '.join(counts))}</p>"
    return f"{line}<div class='thumbs'>{''.join(cards)}</div>{''.join(notes)}"


def _card(picture: Picture) -> str:
    name = html.escape(picture.path.name)
    data = base64.b64encode(picture.thumbnail).decode()
    size = f"{picture.size[0]} × {picture.size[1]}" + (f", {text.WITH_CAPTION}" if picture.caption else "")
    return (
        f"<figure><img src='data:image/jpeg;base64,{data}' alt='{name}' title='{name}'>"
        f"<figcaption><b>{name}</b><span>{size}</span></figcaption></figure>"
    )


def _bad_card(picture: Picture) -> str:
    name = html.escape(picture.path.name)
    problem = html.escape(picture.problem)
    return f"<figure class='bad'><figcaption><b>{name}</b><span>{problem}</span></figcaption></figure>"
