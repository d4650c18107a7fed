"""Several images of one model: the sum of matches, and why the binomial test alone would be fooled by a style."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lrdiff.errors import ConfigError, DataError
from lrdiff.images import to_image
from lrdiff.watermark import PooledVerdict, verify_pooled
from lrdiff.watermark.calibration import Calibration
from lrdiff.watermark.extractor import Extractor, load
from lrdiff.watermark.statistics import p_value, threshold
from lrdiff.watermark.views import SEARCH
from tests.lrdiff.watermark.conftest import pictures
from tests.lrdiff.watermark.test_verifier import GOOD, encoded, photo


class Chosen(Extractor):
    """Reads given logits, one row after the other, whatever the picture: statistics without a mark."""

    def __init__(self, rows: np.ndarray) -> None:
        super().__init__(rows.shape[1], 1, 1)
        self.rows = itertools.cycle(torch.from_numpy(rows).float())
        self.calibration: Calibration | None = GOOD

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([next(self.rows) for _ in images])


def pool(rows: np.ndarray, key: str, alpha: float = 1e-6) -> PooledVerdict:
    files = [encoded(photo(20, 20, seed)) for seed in range(len(rows))]
    return verify_pooled(files, key, alpha, Chosen(rows), count=len(rows))


def noisy(key: str, errors: float, images: int, seed: int = 0) -> np.ndarray:
    signs = np.array([1.0 if bit == "1" else -1.0 for bit in key])
    flips = np.random.default_rng(seed).random((images, len(key))) < errors
    return np.where(flips, -signs, signs)


KEY = "110100111010010110001101" * 2


def test_weak_marks_add_up() -> None:
    rows = noisy(KEY, 0.3, 16)
    found = pool(rows, KEY, 1e-5)
    matches = [int((row > 0).sum()) for row in rows * noisy(KEY, 0.0, 1)]
    assert found.each == tuple(matches)
    assert max(matches) < 41
    assert (found.verdict, found.images, found.bits) == ("detected", 16, 768)
    assert found.matches == sum(matches)
    assert found.p_value == p_value(sum(matches), 768)
    assert found.threshold == threshold(768, 1e-5)
    assert found.p_value < found.votes_p_value == found.p_corrected <= 1e-5
    assert len(set(found.sha256)) == 16


def test_a_full_match_counts_no_more_than_the_key_has_bits() -> None:
    found = pool(noisy(KEY, 0.0, 4), KEY)
    assert found.votes_p_value == pytest.approx(2.0**-48)
    assert found.p_value == pytest.approx(2.0**-192)


def test_a_common_style_is_no_mark() -> None:
    """Images that all push the same bits fool the binomial test for one key in many, but not the sign-flip test."""
    rng = np.random.default_rng(5)
    rows = noisy(KEY, 0.05, 6)
    binomial, decided = 0, 0
    for _ in range(60):
        found = pool(rows, "".join(rng.choice(["0", "1"], 48)), alpha=0.05)
        binomial += found.p_value <= 0.05
        decided += found.verdict == "detected"
    assert binomial > 8
    assert decided <= 6


def test_unmarked_images_are_not_detected() -> None:
    rows = np.random.default_rng(3).normal(size=(8, 48))
    found = pool(rows, KEY)
    assert found.verdict == "not detected"
    assert "does not tell" in found.reason


def files_of(extractor: Extractor) -> tuple[list[bytes], Callable[..., PooledVerdict]]:
    files = [encoded(to_image(image)) for image in pictures(3, 31)]
    return files, lambda given, **options: verify_pooled(given, "01" * 12, 1e-3, extractor, **options)


def test_the_declared_number_is_kept(extractor: Extractor) -> None:
    files, judge = files_of(extractor)
    assert judge(files, count=3).images == 3
    for given, count, reason in (
        (files, 2, "2 images were declared and 3"),
        (files[:2], 3, "3 images were declared and 2"),
        ([*files[:2], files[0]], 3, "twice"),
        (files[:1], 1, "from 2 to"),
        (files, 10**6, "from 2 to"),
    ):
        with pytest.raises(ConfigError, match=reason):
            judge(given, count=count)
    with pytest.raises(DataError, match="cannot be read"):
        judge([*files[:2], b"no picture"], count=3)


def test_one_doubtful_image_makes_the_pool_doubtful(extractor: Extractor) -> None:
    files, judge = files_of(extractor)
    found = judge([*files[:2], encoded(photo(8, 8))], count=3)
    assert (found.verdict, found.reason[:8]) == ("inconclusive", "image 3:")
    assert judge(files, count=3, doubt="revoked").reason == "revoked"


def test_an_untrusted_extractor_pools_nothing(extractor: Extractor, tmp_path: Path) -> None:
    extractor.save(tmp_path / "model.safetensors")
    other = load(tmp_path)
    other.calibration = dataclasses.replace(GOOD, bias=0.3)
    found = verify_pooled(files_of(extractor)[0], "01" * 12, 1e-3, other, count=3)
    assert (found.verdict, "pooled only where" in found.reason) == ("inconclusive", True)


def test_a_search_turns_all_images_alike(extractor: Extractor) -> None:
    files = [encoded(to_image(torch.rot90(image, 1, (1, 2)))) for image in pictures(4, 31)]
    upright = [extractor(image[None])[0] for image in pictures(4, 31)]
    key = "".join("01"[int(sum(bool(row[i] > 0) for row in upright) >= 2)] for i in range(24))
    found = verify_pooled(files, key, 0.01, extractor, count=4, search=True)
    expected = sum(int(sum((row[i] > 0) == (key[i] == "1") for i in range(24))) for row in upright)
    assert found.searches == len(SEARCH)
    assert found.matches >= expected
    assert f"best of {len(SEARCH)}" in found.preprocessing
