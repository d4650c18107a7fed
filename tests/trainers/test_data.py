"""Folders of pictures: what is taken, what is refused, and that nothing of the user's changes."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from lrdiff.errors import DataError
from tests.trainers.conftest import save_pictures
from trainers.data import epoch_indices, find_samples, fingerprint, load_pixels, read_caption


def test_pictures_are_found_by_name_with_their_captions(tmp_path: Path) -> None:
    save_pictures(tmp_path, 3)
    (tmp_path / "1.txt").write_text("a red\n  cube\n")
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "more").mkdir()
    samples = find_samples(tmp_path, "a photo of sks")
    assert [(s.path.name, s.caption) for s in samples] == [
        ("0.png", "a photo of sks"),
        ("1.png", "a red cube"),
        ("2.png", "a photo of sks"),
    ]


@pytest.mark.parametrize("name", ["A.PNG", "a.JPeG", "a.jpg", "a.webp", "a.bmp", "a.tif", "a.tiff", "a.gif"])
def test_every_known_ending_counts(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert [s.path.name for s in find_samples(tmp_path, "x")] == [name]


def test_captions_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffein süßer Hund".encode())
    assert read_caption(tmp_path / "a.png", "x") == "ein süßer Hund"


@pytest.mark.parametrize("content", [b"", b"  \n\t ", b"\xef\xbb\xbf"])
def test_empty_captions_are_refused(tmp_path: Path, content: bytes) -> None:
    save_pictures(tmp_path, 1)
    (tmp_path / "0.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"0\.txt: is empty; write a caption, or remove"):
        find_samples(tmp_path, "x")


@pytest.mark.parametrize("content", ["süß".encode("latin-1"), "süß".encode("utf-16"), b"\xff\xfe\x00"])
def test_captions_that_are_not_utf8_are_refused(tmp_path: Path, content: bytes) -> None:
    save_pictures(tmp_path, 1)
    (tmp_path / "0.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"0\.txt: is not UTF-8"):
        find_samples(tmp_path, "x")


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file.png").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "thesis.pdf").write_bytes(b"%PDF")
    (tmp_path / "texts" / "notes.txt").write_text("x")
    (tmp_path / "nested" / "inside").mkdir(parents=True)
    save_pictures(tmp_path / "nested" / "inside", 1)
    (tmp_path / "phone").mkdir()
    for name in ("IMG_1.HEIC", "b.heif"):
        (tmp_path / "phone" / name).write_bytes(b"x")
    cases = {
        "absent": "absent does not exist",
        "file.png": r"file\.png is a file, not a folder",
        "empty": "nothing that is a picture",
        "texts": r"only thesis\.pdf.*known picture types: .*\.png",
        "nested": "nothing that is a picture.*subfolders are not read: inside",
        "phone": r"only IMG_1\.HEIC, b\.heif; convert HEIC to PNG or JPEG",
    }
    for name, message in cases.items():
        with pytest.raises(DataError, match=rf"data\.images: .*{message}"):
            find_samples(tmp_path / name, "x")


def test_what_is_left_out_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_pictures(tmp_path, 1)
    for name in ("clip.mp4", "shot.heic", "0.txt", "notes.jsonl", "Thumbs.db"):
        (tmp_path / name).write_text("x")
    (tmp_path / "more").mkdir()
    find_samples(tmp_path, "x")
    assert "Thumbs.db, clip.mp4, shot.heic, more; convert HEIC to PNG or JPEG" in caplog.text
    assert "metadata" not in caplog.text


def test_a_picture_that_is_a_dead_link_is_named(tmp_path: Path) -> None:
    save_pictures(tmp_path, 1)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"gone\.png"):
        load_pixels(find_samples(tmp_path, "x"), 32)


def test_pixels_are_squares_in_range(tmp_path: Path) -> None:
    save_pictures(tmp_path, 3, size=50)
    pixels = load_pixels(find_samples(tmp_path, "x"), 32)
    assert pixels.shape == (3, 3, 32, 32)
    assert pixels.dtype == torch.float32
    assert float(pixels.min()) >= -1.0
    assert float(pixels.max()) <= 1.0
    assert float(pixels.std()) > 0.1


def test_every_bad_file_is_named_at_once(tmp_path: Path) -> None:
    save_pictures(tmp_path, 2)
    (tmp_path / "0.png").write_bytes(b"")
    (tmp_path / "b.jpg").write_text("this is text")
    with pytest.raises(DataError) as caught:
        load_pixels(find_samples(tmp_path, "x"), 32)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "0.png: is empty" in lines[0]
    assert "b.jpg: cannot be read" in lines[1]


def test_small_pictures_are_enlarged_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("RGB", (1, 1), (255, 0, 0)).save(tmp_path / "dot.png")
    pixels = load_pixels(find_samples(tmp_path, "x"), 32)
    assert torch.equal(pixels[0, :, 5, 5], torch.tensor([1.0, -1.0, -1.0]))
    assert "dot.png: 1 x 1 is smaller than 32 px" in caplog.text


def test_reading_changes_no_file(tmp_path: Path) -> None:
    save_pictures(tmp_path, 3)
    (tmp_path / "0.txt").write_text("a caption")

    def contents() -> dict[str, tuple[str, int]]:
        files = sorted(tmp_path.rglob("*"))
        return {p.name: (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in files}

    before = contents()
    load_pixels(find_samples(tmp_path, "x"), 32)
    assert contents() == before


@pytest.mark.parametrize(("count", "batch_size"), [(1, 1), (1, 4), (5, 1), (5, 2), (5, 5), (5, 7), (6, 4), (4, 10)])
def test_every_epoch_has_every_sample_once(count: int, batch_size: int) -> None:
    epochs = 12
    stream = [i for index in range(epochs * count) for i in epoch_indices(index, batch_size, count, seed_of_epoch=3)]
    for epoch in range(epochs):
        assert Counter(stream[epoch * count : (epoch + 1) * count]) == Counter(range(count))


def test_batches_are_the_same_for_the_same_index_and_differ_by_seed() -> None:
    batches = [epoch_indices(index, 4, 9, 0) for index in range(20)]
    assert [epoch_indices(index, 4, 9, 0) for index in reversed(range(20))] == batches[::-1]
    assert [epoch_indices(index, 4, 9, 1) for index in range(20)] != batches
    first, second = batches[0] + batches[1] + batches[2][:1], [i for b in batches for i in b][9:18]
    assert first != second, "epochs are shuffled anew"


def test_pictures_that_are_large_enough_pass_without_remark(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    save_pictures(tmp_path, 2, size=64)
    load_pixels(find_samples(tmp_path, "x"), 64)
    assert "smaller" not in caplog.text


def test_the_fingerprint_is_of_pictures_and_captions(tmp_path: Path) -> None:
    save_pictures(tmp_path, 2)
    (tmp_path / "1.txt").write_text("a red cube")
    (tmp_path / "notes.txt").write_text("no caption")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    found = fingerprint(tmp_path)
    assert list(found) == ["0.png", "1.png", "1.txt"]
    assert found["1.txt"] == {"size": 10, "sha256": hashlib.sha256(b"a red cube").hexdigest()}
    (tmp_path / "notes.txt").write_text("changed")
    (tmp_path / "0.png").touch()
    assert fingerprint(tmp_path) == found
    (tmp_path / "1.txt").write_text("a red ring")
    assert fingerprint(tmp_path) != found
    (tmp_path / "2.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"2\.png: cannot be read"):
        fingerprint(tmp_path)
    with pytest.raises(DataError, match=r"data\.validation: .*absent does not exist"):
        fingerprint(tmp_path / "absent", "data.validation")
