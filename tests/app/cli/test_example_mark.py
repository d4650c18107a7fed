"""`lrdiff watermark example`: a first visitor's whole round, with the key that everybody knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.app.cli.conftest import Lrdiff


@pytest.fixture(autouse=True)
def _own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def test_a_picture_drawn_with_it_is_detected(lrdiff: Lrdiff, tmp_path: Path) -> None:
    code, out, err = lrdiff("watermark", "example")
    decoder = Path(out.strip())
    assert code == 0
    assert (decoder / "lrdiff.json").is_file()
    assert decoder.parent == Path("decoders")
    assert f"key {decoder.name} (the example: everybody knows this key)" in err
    drawing = ("generate", "--prompt", "a red ball on grass", "--steps", 8, "--out", "marked", "--decoder", decoder)
    assert lrdiff(*drawing)[0] == 0
    code, out, _ = lrdiff("verify", *sorted((tmp_path / "marked").glob("*.png")), "--json")
    [found] = json.loads(out)
    assert (code, found["verdict"], found["key"]) == (0, "detected", decoder.name)
    # Once more changes nothing.
    assert lrdiff("watermark", "example")[:2] == (0, f"{decoder}\n")


def test_words_that_it_does_not_take_are_refused(lrdiff: Lrdiff) -> None:
    code, out, err = lrdiff("watermark", "example", "now")
    assert (code, out) == (2, "")
    assert "unexpected word 'now'" in err
