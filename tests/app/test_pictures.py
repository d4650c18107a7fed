"""Dropped files: problems named per file, captions paired, nothing changed."""

from __future__ import annotations

from pathlib import Path

from app import pictures
from app.jobs import Queue
from trainers.registry import run_config_class

CONFIG = run_config_class("tensor-lora")(method={}).model_dump(mode="json")


def test_each_file_has_its_own_problem(photos: list[Path], tmp_path: Path) -> None:
    broken, empty, other = tmp_path / "broken.jpg", tmp_path / "empty.png", tmp_path / "paper.pdf"
    broken.write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    empty.touch()
    other.write_bytes(b"%PDF")
    found = {picture.path.name: picture for picture in pictures.check([*photos, broken, empty, other])}
    assert [name for name, picture in found.items() if not picture.problem] == ["one.png", "two.jpg", "three.png"]
    assert found["empty.png"].problem == "is empty; replace or remove it"
    assert "cannot be read as a picture" in found["broken.jpg"].problem
    assert "not a picture; known types" in found["paper.pdf"].problem
    assert str(tmp_path) not in "".join(picture.problem for picture in found.values())
    assert found["one.png"].size == (40, 48)


def test_a_text_file_is_the_caption_of_its_picture(photos: list[Path], tmp_path: Path) -> None:
    caption, lonely, bad = tmp_path / "one.txt", tmp_path / "nobody.txt", tmp_path / "three.txt"
    caption.write_text("sks on grass")
    lonely.write_text("sks")
    bad.write_bytes(b"\xff\xfe\xfa")
    found = pictures.check([*photos, caption, lonely, bad])
    problems = {picture.path.name: picture.problem for picture in found if picture.problem}
    assert set(problems) == {"three.png", "nobody.txt"}
    assert "is not UTF-8 text" in problems["three.png"]
    assert pictures.named(found) == {"one.png": photos[0], "one.txt": caption, "two.jpg": photos[1]}


def test_equal_names_are_numbered(photos: list[Path], tmp_path: Path) -> None:
    again = tmp_path / "more" / "one.png"
    again.parent.mkdir()
    again.write_bytes(photos[2].read_bytes())
    assert list(pictures.named(pictures.check([photos[0], again]))) == ["one.png", "one-2.png"]


def test_the_sheet_escapes_names(photos: list[Path], tmp_path: Path) -> None:
    odd = tmp_path / "<img src=x onerror=alert(1)>.png"
    odd.write_bytes(photos[0].read_bytes())
    sheet = pictures.sheet(pictures.check([odd, *photos]))
    assert "<img src=x" not in sheet
    assert "4 pictures ready" in sheet


def test_a_run_holds_identical_copies(photos: list[Path], tmp_path: Path) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in photos}
    run = Queue(tmp_path / "runs").submit("tensor-lora", CONFIG, pictures.named(pictures.check(photos)))
    for path in photos:
        assert (run.path / "images" / path.name).read_bytes() == before[path][0]
        assert (path.read_bytes(), path.stat().st_mtime_ns) == before[path]
    assert run.read()["config"]["data"]["images"] == str(run.path / "images")


def test_example_subjects(photos: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "subjects" / "my-cup"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "a.png").write_bytes(photos[0].read_bytes())
    (folder / "subject.json").write_text('{"noun": "cup"}')
    found = pictures.subjects(tmp_path / "subjects")
    assert {name: (subject.noun, subject.held_out) for name, subject in found.items()} == {"my-cup": ("cup", None)}
    assert pictures.subjects(tmp_path / "absent") == {}
