"""Room on the disk."""

from __future__ import annotations

from pathlib import Path

from app.disk import by_child, free, usage


def test_files_are_counted_and_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "a").write_bytes(b"x" * 10)
    (tmp_path / "large" / "deep").mkdir(parents=True)
    (tmp_path / "large" / "deep" / "b").write_bytes(b"x" * 1000)
    (tmp_path / "large" / "c").write_bytes(b"x" * 1000)
    (tmp_path / "small" / "loop").symlink_to(tmp_path)
    link = (tmp_path / "small" / "loop").lstat().st_size
    assert [(item.name, item.size, item.files) for item in by_child(tmp_path)] == [
        ("large", 2000, 2),
        ("small", 10 + link, 2),
    ]
    assert usage(tmp_path / "large", "Large").name == "Large"


def test_what_is_absent_takes_no_room(tmp_path: Path) -> None:
    assert (usage(tmp_path / "no").size, usage(tmp_path / "no").files, by_child(tmp_path / "no")) == (0, 0, [])
    assert free(tmp_path / "not" / "yet" / "made") > 0
