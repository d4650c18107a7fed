"""`lrdiff verify` and `lrdiff watermark keys`: what they print, and that no error ends in "detected"."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lrdiff.images import to_image
from lrdiff.watermark import verify
from lrdiff.watermark.extractor import Extractor
from tests.app.cli.conftest import Lrdiff
from tests.lrdiff.watermark.conftest import build_extractor, pictures


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An extractor of 24 bits, its TorchScript twin, and pictures; the key of each picture is what is read in it."""
    folder = tmp_path_factory.mktemp("verify")
    extractor = build_extractor()
    extractor.save(folder / "model.safetensors")
    for number in range(4):
        save(folder / f"{number}.png", number)
    (folder / "bits.json").write_text(json.dumps([read(folder / f"{number}.png", extractor) for number in range(4)]))
    with pytest.warns(DeprecationWarning, match="script"):
        torch.jit.script(Normalised(extractor)).save(str(folder / "twin.pt"))
    return folder


class Normalised(torch.nn.Module):
    """The extractor in the form in which others publish theirs: its input is normalised already."""

    def __init__(self, extractor: Extractor) -> None:
        super().__init__()
        self.blocks, self.head = extractor.blocks, extractor.head
        self.white, self.shift = extractor.get_buffer("white"), extractor.get_buffer("shift")

    def forward(self, normal: torch.Tensor) -> torch.Tensor:
        return (self.head(self.blocks(normal).mean((2, 3))) - self.shift) @ self.white.T


def save(path: Path, seed: int) -> None:
    """Write a picture of the kind that the extractor is calibrated on."""
    to_image(pictures(1, 1000 + seed)[0]).save(path)


def read(path: Path, extractor: Extractor) -> str:
    return verify(path.read_bytes(), "0" * 24, extractor=extractor).read


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder of the user."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for name in ("LRDIFF_REGISTRY", "LRDIFF_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "data" / "lrdiff"


@pytest.fixture
def bits(files: Path) -> list[str]:
    return json.loads((files / "bits.json").read_text())


@pytest.fixture
def key(lrdiff: Lrdiff, files: Path, place: Path, bits: list[str]) -> str:
    """The id of a registered key that picture 0 carries."""
    code, out, _ = lrdiff("watermark", "keys", "new", "--owner", "studio", "--bits", bits[0], "--extractor", files)
    assert code == 0
    return out.strip()


def test_a_key_is_made_shown_and_listed(lrdiff: Lrdiff, files: Path, place: Path) -> None:
    code, out, err = lrdiff("watermark", "keys", "new", "--owner", "studio", "--extractor", files)
    key = out.strip()
    assert code == 0
    assert "new key file" in err
    assert str(place / "keys.sqlite") in err
    assert sorted(path.name for path in place.iterdir()) == ["keys.key", "keys.sqlite"]
    code, out, _ = lrdiff("watermark", "keys", "list")
    assert (code, out.split()[:4]) == (0, [key, "studio", "24", "bits"])
    record = json.loads(lrdiff("watermark", "keys", "list", "--json")[1])[0]
    assert (record["id"], record["length"], record["given"], "bits" in record) == (key, 24, False, False)
    assert "bits" not in lrdiff("watermark", "keys", "show", key)[1]
    shown = json.loads(lrdiff("watermark", "keys", "show", key, "--with-bits", "--json")[1])
    assert len(shown["bits"]) == 24


def test_a_mark_is_detected_and_the_report_is_whole(lrdiff: Lrdiff, files: Path, key: str) -> None:
    code, out, err = lrdiff("verify", files / "0.png", "--key", key, "--extractor", files)
    assert code == 0
    assert out.startswith(f"{files / '0.png'}: detected\n  24 of 24 bits agree, 24 are needed; chance")
    for part in (f"{key} studio", "binomial", "soft test", "1 key, 1 reading", "PNG RGB 16 x 16", "1e-06"):
        assert part in out
    assert "given by a person" in err
    (record,) = json.loads(lrdiff("verify", files / "0.png", "--extractor", files, "--json")[1])
    assert (record["verdict"], record["key"], record["matches"], record["keys"]) == ("detected", key, 24, 1)
    assert record["sha256"] in out
    assert record["extractor"] in out
    assert "read" not in record


def test_other_pictures_are_not_detected(lrdiff: Lrdiff, files: Path, key: str) -> None:
    # With 24 bits and 49 readings, 1e-6 is out of reach.
    words = ["--extractor", files, "--json", "--search", "--alpha", "1e-4"]
    code, out, _ = lrdiff("verify", files / "1.png", files / "2.png", *words)
    records = json.loads(out)
    assert code == 0
    assert [record["verdict"] for record in records] == ["not detected"] * 2
    assert [record["searches"] for record in records] == [49, 49]
    _, out, _ = lrdiff("verify", files / "1.png", "--extractor", files)
    assert "not detected" in out
    assert "--search" in out
    assert "does not tell where the picture comes from" in out
    assert " AI" not in out


def test_bits_without_a_registry(lrdiff: Lrdiff, files: Path, place: Path, bits: list[str]) -> None:
    code, out, _ = lrdiff("verify", files / "1.png", "--bits", bits[1], "--extractor", files)
    assert (code, "1.png: detected" in out, place.exists()) == (0, True, False)


def test_a_revoked_key_proves_nothing(lrdiff: Lrdiff, files: Path, key: str) -> None:
    code, out, _ = lrdiff("watermark", "keys", "revoke", key, "--reason", "model withdrawn")
    assert (code, "model withdrawn" in out) == (0, True)
    code, out, _ = lrdiff("verify", files / "0.png", "--key", key, "--extractor", files)
    assert (code, out.partition("\n")[0]) == (0, f"{files / '0.png'}: inconclusive")
    assert "revoked on" in out
    assert "model withdrawn" in out
    code, out, err = lrdiff("verify", files / "0.png", "--extractor", files)
    assert (code, out) == (2, "")
    assert "holds no key for this extractor that counts" in err


def test_an_unreadable_file_is_told_and_the_others_are_judged(lrdiff: Lrdiff, files: Path, key: str) -> None:
    broken = files / "broken.png"
    broken.write_bytes((files / "0.png").read_bytes()[:300])
    code, out, err = lrdiff("verify", broken, files / "0.png", files, "--extractor", files, "--json")
    records = json.loads(out)
    assert code == 2
    assert [record.get("verdict") for record in records] == [None, "detected", None]
    assert "broken.png: cannot be read as a picture" in records[0]["error"]
    assert "is no file" in records[2]["error"]
    assert records[0]["error"] in err


def test_absent_files_come_before_an_absent_registry(lrdiff: Lrdiff, files: Path, place: Path) -> None:
    code, out, err = lrdiff("verify", files / "absent.png", "--extractor", files)
    assert (code, out) == (2, "")
    assert "absent.png: is not there" in err
    assert "registry" not in err
    code, out, err = lrdiff("verify", files / "absent.png", "--extractor", files, "--bits", "0" * 24, "--json")
    assert code == 2
    assert "absent.png: is not there" in json.loads(out)[0]["error"]  # a script is told in its own form


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ([], "no registry of keys is there yet"),
        (["--key", "0123456789"], "no registry of keys is there yet"),
        (["--bits", "0101"], "key 1 has 4 characters; this extractor reads keys of 24"),
        (["--bits", "2" * 24], "characters 0 or 1"),
        (["--bits", "0" * 24, "--key", "x"], "give one of them"),
        (["--bits", "0" * 24, "--alpha", "0"], "alpha is 0"),
        (["--bits", "0" * 24, "--alpha", "nan"], "alpha: Must be a finite number"),
        (["--bits", "0" * 24, "--null-out", "x"], "give --null FOLDER too"),
        (["--bits", "0" * 24, "--null", "nowhere"], "no pictures here"),
        (["--registry", "mysql://host/name"], "cannot be kept in mysql"),
        (["--registry", "postgresql://127.0.0.1:1/x"], "server cannot be reached"),
    ],
)
def test_bad_input_is_told_in_a_line(lrdiff: Lrdiff, files: Path, place: Path, flags: list[str], reason: str) -> None:
    code, out, err = lrdiff("verify", files / "0.png", "--extractor", files, *flags)
    assert (code, out) == (2, "")
    assert reason in err
    assert "Traceback" not in err
    assert not place.exists()


def test_unknown_and_foreign_keys_are_told(lrdiff: Lrdiff, files: Path, key: str, tmp_path: Path) -> None:
    code, out, err = lrdiff("verify", files / "0.png", "--key", "0123456789", "--extractor", files)
    assert (code, out, "no key '0123456789' among the 1" in err) == (2, "", True)
    other = build_extractor()
    other.head.bias += 0.001
    (tmp_path / "other").mkdir()
    other.save(tmp_path / "other" / "model.safetensors")
    code, out, err = lrdiff("verify", files / "0.png", "--key", key, "--extractor", tmp_path / "other")
    assert (code, out, "name the key's own with --extractor" in err) == (2, "", True)
    code, out, err = lrdiff("verify", files / "0.png", "--extractor", tmp_path / "other")
    assert (code, out, "1 keys" in err, "holds no key" in err) == (2, "", True, True)


def test_a_lost_key_file_is_told(lrdiff: Lrdiff, files: Path, key: str, place: Path) -> None:
    (place / "keys.key").rename(place / "elsewhere.key")
    code, out, err = lrdiff("verify", files / "0.png", "--extractor", files)
    assert (code, out, "the key file is not there" in err) == (2, "", True)
    found = lrdiff("verify", files / "0.png", "--extractor", files, "--key-file", place / "elsewhere.key")
    assert (found[0], "0.png: detected" in found[1]) == (0, True)


def test_pictures_of_one_model_are_pooled(lrdiff: Lrdiff, files: Path, key: str, bits: list[str]) -> None:
    near = files / "near.png"
    with Image.open(files / "0.png") as image:
        values = np.asarray(image).copy()
    values[0, 0, 0] ^= 1
    Image.fromarray(values).save(near)
    words = ["--key", key, "--extractor", files, "--alpha", "1e-5"]
    code, out, _ = lrdiff("verify", files / "0.png", near, "--pool", 2, *words)
    assert code == 0
    assert out.startswith("2 images together: detected\n  48 of 48 bits of 2 images agree")
    assert "each image 24 24 of 24" in out
    record = json.loads(lrdiff("verify", files / "1.png", files / "2.png", "--pool", 2, "--json", *words)[1])
    assert (record["verdict"], record["images"], record["key"]) == ("not detected", 2, key)
    code, out, err = lrdiff("verify", files / "0.png", near, files / "1.png", "--pool", 2, *words)
    assert (code, out, "2 images were declared and 3 are here" in err) == (2, "", True)
    code, out, err = lrdiff("verify", files / "0.png", files / "0.png", "--pool", 2, *words)
    assert (code, out, "one image is there twice" in err) == (2, "", True)


def test_torchscript_needs_consent_and_a_null(lrdiff: Lrdiff, files: Path, bits: list[str], tmp_path: Path) -> None:
    words = ["verify", files / "1.png", "--bits", bits[1], "--extractor", files / "twin.pt"]
    code, out, err = lrdiff(*words)
    assert (code, out) == (2, "")
    assert "code that would run with your rights" in err
    code, out, _ = lrdiff(*words, "--trust-extractor-code")
    assert (code, "1.png: inconclusive" in out, "not calibrated" in out) == (0, True, True)
    (tmp_path / "unmarked").mkdir()
    for seed in range(60):
        save(tmp_path / "unmarked" / f"{seed}.png", 100 + seed)
    words += ["--trust-extractor-code", "--null", tmp_path / "unmarked"]
    code, out, _ = lrdiff(*words, "--null-out", "null.safetensors")
    assert (code, "cannot support a false-positive rate of 1e-06" in out) == (0, True)
    words[-1] = tmp_path / "null.safetensors"
    code, out, err = lrdiff(*words, "--alpha", "0.1")
    assert (code, "1.png: detected" in out, "60 unmarked pictures" in err) == (0, True, True)
    assert "95 % bounds of the rate 0 to 0.06" in out
    code, _, err = lrdiff("verify", files / "1.png", "--bits", bits[1], "--extractor", files, "--null", words[-1])
    assert (code, "was read with extractor" in err) == (2, True)


def test_history_backup_and_restore(lrdiff: Lrdiff, key: str, place: Path, files: Path) -> None:
    code, out, err = lrdiff("watermark", "keys", "history")
    head = err.strip().splitlines()[-1]
    assert (code, len(out.splitlines()), len(head)) == (0, 2, 64)
    assert lrdiff("watermark", "keys", "history", "--head", head)[0] == 0
    assert lrdiff("watermark", "keys", "history", "--head", "0" * 64)[0] == 2
    code, out, err = lrdiff("watermark", "keys", "backup", "backup.json")
    assert (code, "1 keys" in out, "keys.key is not in it" in err) == (0, True, True)
    code, _, err = lrdiff("watermark", "keys", "restore", "backup.json")
    assert (code, "nothing is written over" in err) == (2, True)
    code, out, _ = lrdiff("watermark", "keys", "restore", "backup.json", "--registry", "copy.sqlite")
    assert (code, "1 keys restored" in out) == (0, True)
    code, out, _ = lrdiff("verify", files / "0.png", "--extractor", files, "--registry", "copy.sqlite")
    assert (code, "0.png: detected" in out) == (0, True)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "keys what?"),
        (["forget"], "keys what?"),
        (["new"], "whose key?"),
        (["show"], "takes one ID"),
        (["list", "x"], "takes no word"),
        (["revoke", "x"], "--reason"),
        (["restore", "none.json"], "cannot be read"),
        (["list"], "no registry of keys is there yet"),
    ],
)
def test_the_keys_commands_say_what_is_missing(lrdiff: Lrdiff, place: Path, words: list[str], reason: str) -> None:
    code, out, err = lrdiff("watermark", "keys", *words)
    assert (code, out) == (2, "")
    assert reason in err
    assert not place.exists()


def test_help_needs_neither_torch_nor_a_database() -> None:
    helps = [["verify"], ["watermark"], ["watermark", "keys"]]
    actions = ("new", "list", "show", "revoke", "history", "backup", "restore")
    helps += [["watermark", "keys", action] for action in actions]
    script = f"""
import sys
from app.cli import main
for words in {helps!r}:
    assert main([*words, "--help"]) == 0, words
loaded = [name for name in ("torch", "sqlalchemy", "numpy", "cryptography") if name in sys.modules]
assert not loaded, loaded
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "never from the exit code" in result.stdout
