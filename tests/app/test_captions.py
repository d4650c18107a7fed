"""Captions that a person edits: kept by name, written beside copies, never into anybody's own files."""

from __future__ import annotations

from pathlib import Path

from app import captions, pictures
from app.captions import rows, with_captions


def test_edits_stay_with_their_picture_when_others_go(photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "photos" / "one.txt").write_text("sks on  grass\n")
    found = pictures.check([*photos, tmp_path / "photos" / "one.txt"])
    assert rows(found) == [["one.png", "sks on grass"], ["two.jpg", ""], ["three.png", ""]]
    edited = [["one.png", "sks on sand"], ["two.jpg", "sks at night"], ["three.png", ""]]
    assert rows(found[1:], edited) == [["two.jpg", "sks at night"], ["three.png", ""]]


def test_a_run_gets_the_edited_captions_and_files_stay_as_they_were(photos: list[Path], tmp_path: Path) -> None:
    beside = tmp_path / "photos" / "one.txt"
    beside.write_text("sks on grass")
    before = {path: path.read_bytes() for path in (tmp_path / "photos").iterdir()}
    found = pictures.check([*photos, beside])
    edited = captions.by_name([["one.png", ""], ["two.jpg", " sks  at night "], ["three.png", None]])  # pyright: ignore[reportArgumentType]
    with with_captions(found, edited) as files:
        assert set(files) == {"one.png", "two.jpg", "three.png", "two.txt"}
        assert files["two.txt"].read_text() == "sks at night"
    assert {path: path.read_bytes() for path in (tmp_path / "photos").iterdir()} == before


def test_pictures_of_one_name_keep_their_own_captions(photos: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "one.png"
    other.write_bytes(photos[2].read_bytes())
    with with_captions(pictures.check([photos[0], other]), {"one.png": "sks"}) as files:
        assert set(files) == {"one.png", "one-2.png", "one.txt", "one-2.txt"}


def test_a_picture_from_a_phone_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "IMG_1.HEIC"
    path.write_bytes(b"\0\0\0\x18ftypheic")
    [found] = pictures.check([path])
    assert "convert it to PNG or JPEG" in found.problem
