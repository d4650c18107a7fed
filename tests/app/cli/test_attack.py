"""`lrdiff watermark attack` with a tiny extractor, a tiny model and pictures that carry a key."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from diffusers import AutoencoderKL

from lrdiff.images import to_image
from lrdiff.watermark.model_attacks import overwrite_pixels
from tests.app.cli.conftest import Lrdiff
from tests.lrdiff.watermark.conftest import build_extractor, pictures

KEY = "011011000101110100101100"
COMMAND = ("watermark", "attack")


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an extractor, a key and ten pictures that carry it."""
    folder = tmp_path_factory.mktemp("attack")
    extractor = build_extractor()
    extractor.save(folder / "extractor.safetensors")
    (folder / "key.txt").write_text(KEY + "\n")
    (folder / "pictures").mkdir()
    plain = [to_image(image) for image in pictures(10, 31, side=24)]
    for number, image in enumerate(overwrite_pixels(extractor, KEY)(plain, 100)):
        image.save(folder / "pictures" / f"{number:02d}.png")
    return folder


@pytest.fixture
def words(material: Path) -> list[str]:
    """Flags that name the extractor and the key."""
    return ["--extractor", str(material / "extractor.safetensors"), "--bits-file", str(material / "key.txt")]


def test_the_whole_suite_leaves_a_report(
    material: Path, words: list[str], tiny: Path, lrdiff: Lrdiff, tmp_path: Path
) -> None:
    vae = tmp_path / "marked"
    AutoencoderKL.from_pretrained(tiny / "vae").save_pretrained(vae)
    more = ["--model", tiny, "--decoder", vae, "--other-decoder", vae, "--tune-steps", 0, 2, "--photos"]
    code, out, err = lrdiff(*COMMAND, material / "pictures", *words, *more, material / "pictures", "--out", "report")
    assert code == 0, err
    assert out == "report\n"
    names = ["attacks.csv", "attacks.json", "attacks.md", "psnr.png", "strength.png"]
    assert sorted(path.name for path in Path("report").iterdir()) == names
    assert not list(Path().glob(".report*"))
    record = json.loads(Path("report/attacks.json").read_text())
    assert (record["images"], record["keys"], record["left_out"]) == (
        10,
        1,
        ["average of 30, 100, 300 pictures: there are 10"],
    )
    rows = {(row["attack"], row["strength"]): row for row in record["rows"]}
    assert {"crop", "jpeg", "average", "re-encode", "swap", "overwrite-decoder", "fine-tune"} <= {a for a, _ in rows}
    assert rows["none", 0]["bit_accuracy"] > 0.85
    assert rows["fine-tune", 0]["bit_accuracy"] == rows["overwrite-decoder", 1]["bit_accuracy"]
    lines = Path("report/attacks.csv").read_text().splitlines()
    assert len(list(csv.reader(lines))) == len(record["rows"]) + 1
    assert all(KEY not in path.read_text() for path in Path("report").iterdir() if path.suffix != ".png")


def test_named_attacks_alone_and_what_is_left_out_is_printed(material: Path, words: list[str], lrdiff: Lrdiff) -> None:
    code, _, err = lrdiff(
        *COMMAND, material / "pictures", *words, "--attacks", "jpeg", "mirror", "--limit", 3, "--out", "few"
    )
    assert code == 0, err
    record = json.loads(Path("few/attacks.json").read_text())
    assert {row["attack"] for row in record["rows"]} == {"mirror", "jpeg"}
    assert "left out" not in err
    file = material / "pictures" / "00.png"
    code, _, err = lrdiff(*COMMAND, file, *words, "--attacks", "none", "--out", "one")
    assert code == 0, err
    code, _, err = lrdiff(*COMMAND, material / "pictures", *words, "--limit", 1, "--out", "two")
    assert code == 0, err
    assert "left out: average: it takes at least 10 pictures, there are 1" in err
    assert "left out: re-encode: it needs --model" in err
    assert len(json.loads(Path("two/attacks.json").read_text())["left_out"]) == 5


def test_the_same_command_gives_the_same_report(material: Path, words: list[str], lrdiff: Lrdiff) -> None:
    found = []
    for out in ("a", "b"):
        lrdiff(
            *COMMAND,
            material / "pictures",
            *words,
            "--attacks",
            "noise",
            "overwrite-pixels",
            "--limit",
            2,
            "--out",
            out,
        )
        found.append({path.name: path.read_bytes() for path in Path(out).iterdir()})
    assert found[0] == found[1]


def test_a_report_is_never_written_over(material: Path, words: list[str], lrdiff: Lrdiff) -> None:
    Path("report").mkdir()
    Path("report/mine.txt").write_text("mine")
    code, out, err = lrdiff(*COMMAND, material / "pictures", *words, "--out", "report")
    assert (code, out) == (2, "")
    assert err == "report: is there already; choose another folder, or remove it first\n"
    assert [path.name for path in Path("report").iterdir()] == ["mine.txt"]


def test_pictures_without_the_key_are_pointed_out(
    material: Path, words: list[str], photos: Path, lrdiff: Lrdiff
) -> None:
    code, _, err = lrdiff(*COMMAND, photos, *words, "--attacks", "none", "--out", "report")
    assert code == 0, err
    assert "most pictures do not carry this key even before any attack" in err


def test_refused_with_one_message(material: Path, words: list[str], lrdiff: Lrdiff) -> None:
    Path("bad.txt").write_text("hello")
    Path("short.txt").write_text("0101")
    Path("empty").mkdir()
    pictures, extractor = material / "pictures", words[:2]
    cases = [
        (["--out", "x"], "takes pictures or folders of pictures"),
        ([pictures, *extractor], "give --key ID or --bits-file FILE"),
        ([pictures, *words, "--key", "abc"], "give --key ID or --bits-file FILE, one of them"),
        ([pictures, *extractor, "--bits-file", "bad.txt"], "bad.txt: holds no key"),
        ([pictures, *extractor, "--bits-file", "nowhere.txt"], "nowhere.txt: cannot be read as a key"),
        ([pictures, *extractor, "--bits-file", "short.txt"], "the key has 4 characters"),
        (["empty", *words], "empty: holds no pictures"),
        (["nowhere", *words], "nowhere: no such file or folder"),
        (["bad.txt", *words], "bad.txt: cannot be read as a picture"),
        ([pictures, *words, "--attacks", "magic"], "no attack is called 'magic'"),
        ([pictures, *words, "--attacks", "re-encode"], "re-encode cannot be made: it needs --model"),
        ([pictures, *words, "--decoder", "x"], "--decoder and --other-decoder need --model"),
        ([pictures, *words, "--tune-rate", "0"], "flags: tune_rate"),
        ([pictures, "--extractor", "bad.txt", *words[2:]], "bad.txt: damaged or no safetensors file"),
    ]
    for given, message in cases:
        code, out, err = (
            lrdiff(*COMMAND, *given, "--out", "report") if "--out" not in given else lrdiff(*COMMAND, *given)
        )
        assert (code, out) == (2, ""), given
        assert message in err
        assert not Path("report").exists()
