"""Reading in batches gives what reading one by one gives, in order, and takes files one at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lrdiff.errors import DataError
from lrdiff.watermark import reading, verify, verify_many
from lrdiff.watermark.extractor import Extractor
from lrdiff.watermark.reading import Reading, read_files
from lrdiff.watermark.views import SEARCH
from tests.lrdiff.watermark.test_verifier import encoded, photo


def test_batches_change_nothing(extractor: Extractor) -> None:
    sizes = [(20, 20)] * 6 + [(24, 20), (20, 20), (20, 24), (8, 8)]
    files = [encoded(photo(*size, seed)) for seed, size in enumerate(sizes)]
    files.insert(2, b"no picture")
    found = list(read_files(extractor, files, search=True))
    assert len(found) == len(files)
    assert isinstance(found[2], DataError)
    for file, item in zip(files, found, strict=True):
        if isinstance(item, Reading):
            (alone,) = read_files(extractor, [file], search=True)
            assert isinstance(alone, Reading)
            assert item.logits.shape == (len(SEARCH), 24)
            np.testing.assert_allclose(item.logits, alone.logits, atol=2e-3)
            assert (item.sha256, item.doubt, item.preprocessing) == (alone.sha256, alone.doubt, alone.preprocessing)


def test_verdicts_are_those_of_single_pictures(extractor: Extractor, tmp_path: Path) -> None:
    paths = [tmp_path / f"{seed}.png" for seed in range(5)]
    for seed, path in enumerate(paths):
        path.write_bytes(encoded(photo(20, 20, seed)))
    many = list(verify_many(paths, "01" * 12, extractor=extractor))
    assert [item.sha256 for item in many if not isinstance(item, DataError)] == [
        verify(path.read_bytes(), "01" * 12, extractor=extractor).sha256 for path in paths
    ]


def test_files_are_taken_one_at_a_time(extractor: Extractor) -> None:
    taken: list[int] = []

    def files() -> Iterator[bytes]:
        for seed in range(100):
            taken.append(seed)
            yield encoded(photo(20, 20, seed))

    readings = read_files(extractor, files())
    next(readings)
    assert len(taken) <= reading.BATCH_IMAGES + 1
    readings.close()


def test_a_batch_holds_a_bounded_number_of_pixels(extractor: Extractor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BATCH_PIXELS", 900)
    seen: list[int] = []
    hook = extractor.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    try:
        list(read_files(extractor, [encoded(photo(20, 20, seed)) for seed in range(5)]))
    finally:
        hook.remove()
    assert seen == [2, 2, 1]


def test_other_things_than_pictures_are_named(
    extractor: Extractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "large.png").write_bytes(encoded(photo(40, 40)))
    monkeypatch.setattr(reading, "MAX_BYTES", 1000)
    for name, reason in (
        ("text.png", "cannot be read as a picture"),
        ("none.png", "is not there"),
        ("pipe.png", "is no file"),
        ("large.png", "is larger than"),
    ):
        (found,) = read_files(extractor, [tmp_path / name])
        assert isinstance(found, DataError)
        assert str(found).startswith(str(tmp_path / name))
        assert reason in str(found)
