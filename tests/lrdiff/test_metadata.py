"""Parameters inside PNG files: both texts, read back, other tools' files, sheets, file names."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from lrdiff import metadata, png
from lrdiff.errors import DataError
from lrdiff.sheet import sheet


def record(**changes: Any) -> dict[str, Any]:
    return {
        "config": {"seed": 7},
        "prompt": "a red cube",
        "negative_prompt": "",
        "truncated": {},
        "seed": 7,
        "steps": 20,
        "sampler": "dpm++2m",
        "guidance": 5.0,
        "width": 128,
        "height": 96,
        "model": {"name": "toys", "fingerprint": "0123456789abcdef"},
        "adapters": [],
        "versions": {"lrdiff": "0.1.0"},
        **changes,
    }


def file_of(values: dict[str, Any]) -> bytes:
    return png.encode(Image.new("RGB", (4, 4), (10, 20, 30)), metadata.texts(values))


def test_the_plain_text_is_the_one_image_tools_read() -> None:
    text = metadata.plain_text(record(negative_prompt="blurry"))
    assert text == (
        "a red cube\n"
        "Negative prompt: blurry\n"
        "Steps: 20, Sampler: DPM++ 2M, CFG scale: 5, Seed: 7, Size: 128x96, Model hash: 0123456789, Model: toys, "
        "Version: lrdiff 0.1.0"
    )


def test_both_texts_are_in_the_file_and_read_back() -> None:
    values = record(prompt="ein roter Würfel, 立方体\n(second line)", truncated={"x": "y"})
    data = file_of(values)
    assert metadata.read_parameters(data) == {"format": 1, "kind": "image", **values}
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        assert picture.info["parameters"] == metadata.plain_text(values)
        assert picture.getpixel((0, 0)) == (10, 20, 30)
    assert data == file_of(values)


@pytest.mark.parametrize("prompt", ["plain", "two\nlines", "weights: (a:1.2), b", 'a "quoted" thing', ""])
@pytest.mark.parametrize("negative", ["", "ugly, Steps: 3"])
def test_the_plain_text_alone_is_understood(prompt: str, negative: str) -> None:
    late = {"name": "style", "weight": 1.0, "steps": [0.5, 1.0]}
    adapters = [{"name": "cat, v2", "weight": 0.8, "steps": [0.0, 1.0]}, late]
    values = record(prompt=prompt, negative_prompt=negative, adapters=adapters)
    found = metadata.parse_plain_text(metadata.plain_text(values))
    for key in ("prompt", "negative_prompt", "seed", "steps", "sampler", "guidance", "width", "height"):
        assert found[key] == values[key]
    assert found["model"] == "toys"
    assert found["other"]["Adapters"] == "cat, v2:0.8, style:1@0.5-1"


def test_a_file_of_another_tool_is_read(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    text = (
        "masterpiece, <lora:x:0.7>\nNegative prompt: bad\n"
        'Steps: 28, Sampler: Euler a, CFG scale: 6.5, Seed: 99, Size: 512x768, Model: sd15, Lora hashes: "x: ab, y: cd"'
    )
    info.add_text("parameters", text)
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png", pnginfo=info)
    found = metadata.read_parameters(tmp_path / "a.png")
    assert found == {
        "prompt": "masterpiece, <lora:x:0.7>",
        "negative_prompt": "bad",
        "steps": 28,
        "sampler": "Euler a",
        "guidance": 6.5,
        "seed": 99,
        "model": "sd15",
        "width": 512,
        "height": 768,
        "other": {"Lora hashes": "x: ab, y: cd"},
    }


def _with_size(width: int, height: int) -> bytes:
    """A small PNG file that claims to be large."""
    data = png.encode(Image.new("RGB", (2, 2)), {})
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def test_files_without_parameters_are_one_clear_error(tmp_path: Path) -> None:
    plain = png.encode(Image.new("RGB", (2, 2)), {})
    for source, words in (
        (plain, "carries no parameters"),
        (b"no picture", "cannot be read as an image"),
        (tmp_path / "absent.png", "cannot be read as an image"),
        (png.encode(Image.new("RGB", (2, 2)), {"lrdiff": "{"}), "damaged"),
        (png.encode(Image.new("RGB", (2, 2)), {"lrdiff": json.dumps({"format": 99})}), "unknown format"),
        (png.encode(Image.new("RGB", (2, 2)), {"parameters": "a\nSteps: many"}), "cannot be understood"),
        (_with_size(11_000, 11_000), "too large"),
        (_with_size(60_000, 60_000), "cannot be read as an image"),
    ):
        with pytest.raises(DataError, match=words):
            metadata.read_parameters(source)


def test_new_files_take_the_next_free_number_and_never_overwrite(tmp_path: Path) -> None:
    assert png.write_new(tmp_path, "seed3", b"one").name == "00001-seed3.png"
    (tmp_path / "00041-mine.png").write_bytes(b"mine")
    (tmp_path / "notes-00099.txt").write_bytes(b"")
    assert png.write_new(tmp_path, "seed3", b"two").name == "00042-seed3.png"
    assert (tmp_path / "00041-mine.png").read_bytes() == b"mine"
    assert not list(tmp_path.glob("*.tmp"))


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(png, "write_bytes", full)
    with pytest.raises(DataError, match="No space left"):
        png.write_new(tmp_path, "seed1", b"data")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="choose another folder"):
        png.writable(tmp_path / "file" / "below")
    assert png.writable(tmp_path / "new" / "deep").is_dir()


def test_a_sheet_holds_every_picture_unchanged_beside_its_captions() -> None:
    colours = [[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (9, 9, 9)]]
    cells = [[Image.new("RGB", (32, 24), colour) for colour in row] for row in colours]
    page = sheet(cells, ["a first row with many words", "Donaudampfschifffahrtsgesellschaft"], ["seed 1", "seed 2"])
    counts = {colour: count for count, colour in page.getcolors(page.width * page.height) or []}
    for colour in (colour for row in colours for colour in row):
        assert counts[colour] == 32 * 24
    bare = sheet(cells, ["", ""], ["", ""])
    assert bare.size == (2 * (32 + 8) + 8, 2 * (24 + 8) + 8)
    assert page.width > bare.width
    assert page.height > bare.height
