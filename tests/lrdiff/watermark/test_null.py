"""Unmarked pictures measure an extractor, and stand in where the binomial test is not supported."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from lrdiff.errors import ConfigError, DataError, ModelError
from lrdiff.images import to_image
from lrdiff.watermark import Null, soft, verify
from lrdiff.watermark.calibration import Calibration
from lrdiff.watermark.extractor import Extractor, load
from lrdiff.watermark.null import load_null, read_null, tail
from lrdiff.watermark.statistics import clopper_pearson, p_value
from tests.lrdiff.watermark.conftest import pictures
from tests.lrdiff.watermark.test_verifier import encoded


def fair(count: int, bits: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, bits))


def test_its_calibration_is_that_of_the_extractor(extractor: Extractor) -> None:
    images = pictures(600, 7)
    logits = extractor(images).double().numpy()
    found = Null(logits, "x").calibration()
    extractor_copy = Extractor(24, 32, 2)
    extractor_copy.load_state_dict(extractor.state_dict())
    extractor_copy.whitened = True
    expected = extractor_copy.calibrate({"given by the user": [images]})
    assert found.images == expected.images
    assert (found.bias, found.correlation) == pytest.approx((expected.bias, expected.correlation), abs=1e-9)
    assert found.ones == pytest.approx(expected.ones)
    assert found.mean == pytest.approx(expected.mean, abs=1e-6)


def test_unfair_bits_are_seen() -> None:
    logits = fair(2000)
    assert Null(logits, "x").calibration().unfair() is None
    biased, copied, stuck = logits.copy(), logits.copy(), logits.copy()
    biased += 0.5
    related = logits + 0.6 * logits[:, :1]
    copied[:, 5] = copied[:, 9]
    stuck[:, 2] = 1.0
    assert "0.500 away" in (Null(stuck, "x").calibration().unfair() or "")
    assert "correlation 1.000" in (Null(copied, "x").calibration().unfair() or "")
    assert "bits are unfair" in (Null(biased, "x").calibration().unfair() or "")
    assert "bits are related" in (Null(related, "x").calibration().unfair() or "")


def test_the_best_of_many_keys_needs_no_correction() -> None:
    logits, table = fair(400), np.random.default_rng(1).integers(0, 2, (9000, 24), dtype=np.uint8)
    best = Null(logits, "x").best_matches(table)
    slow = sorted(int(((row > 0) == table).sum(axis=1).max()) for row in logits)
    assert best.tolist() == slow
    p, interval = tail(best, 24)
    above = sum(count >= 24 for count in slow)
    assert p == (1 + above) / 401
    assert interval == clopper_pearson(above, 400)


def test_it_is_saved_and_read_again(tmp_path: Path) -> None:
    Null(fair(5), "x" * 64).save(tmp_path / "null.safetensors")
    found = load_null(tmp_path / "null.safetensors", "x" * 64)
    assert np.array_equal(found.logits, fair(5).astype(np.float32))
    with pytest.raises(ModelError, match="was read with extractor"):
        load_null(tmp_path / "null.safetensors", "y" * 64)
    (tmp_path / "bad").write_bytes((tmp_path / "null.safetensors").read_bytes()[:100])
    with pytest.raises(DataError, match="damaged"):
        load_null(tmp_path / "bad", "x" * 64)
    with pytest.raises(DataError, match="cannot be written"):
        Null(fair(5), "x").save(tmp_path / "none" / "null.safetensors")


def test_a_folder_is_read(extractor: Extractor, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pictures here"):
        read_null(extractor, tmp_path)
    images = [to_image(image) for image in pictures(3, 5)]
    (tmp_path / "deep").mkdir()
    images[0].save(tmp_path / "a.png")
    with pytest.raises(DataError, match="1 usable"):
        read_null(extractor, tmp_path)
    images[0].save(tmp_path / "copy.png")  # no new evidence
    images[1].save(tmp_path / "deep" / "b.png")
    images[2].resize((8, 8)).save(tmp_path / "small.png")  # cannot be judged
    (tmp_path / "notes.txt").write_text("no picture")
    assert len(read_null(extractor, tmp_path)) == 2
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken\.png"):
        read_null(extractor, tmp_path)


@pytest.fixture
def unfair(extractor: Extractor, tmp_path: Path) -> Extractor:
    """An extractor whose calibration does not support the binomial test."""
    extractor.save(tmp_path / "model.safetensors")
    found = load(tmp_path)
    assert found.calibration is not None
    found.calibration = dataclasses.replace(found.calibration, bias=0.2)
    return found


def test_the_empirical_null_decides_where_the_binomial_is_not_supported(unfair: Extractor) -> None:
    null = Null(unfair(pictures(600, 9)).double().numpy(), unfair.sha256())
    data = encoded(to_image(pictures(1, 50)[0]))
    key = verify(data, "0" * 24, extractor=unfair).read
    found = verify(data, key, 0.01, unfair, null=null)
    above = int(((null.logits > 0) == (np.array(list(key)) == "1")).all(axis=1).sum())
    assert above == 0
    assert (found.verdict, found.test, found.null_images) == ("detected", "empirical", 600)
    assert found.p_value == 1 / 601
    assert found.null_interval == clopper_pearson(0, 600)
    assert found.p_corrected == pytest.approx(clopper_pearson(0, 600).high)
    bits = np.array(list(key), dtype=np.uint8)
    assert found.soft_null_p == soft.EmpiricalNull.fit(null.logits, bits).p_value(found.soft_score)
    assert found.threshold is not None
    assert 12 < found.threshold <= 24
    strict = verify(data, key, 1e-6, unfair, null=null)
    assert (strict.verdict, strict.threshold) == ("inconclusive", None)
    assert "600 unmarked pictures cannot support" in strict.reason
    # The bound is multiplied by the number of readings.
    assert verify(data, key, 0.01, unfair, null=null, search=True).verdict == "inconclusive"
    assert verify(data, key, 0.31, unfair, null=null, search=True).verdict == "detected"
    other = "".join("10"[int(bit)] if i % 2 else bit for i, bit in enumerate(key))
    assert verify(data, other, 0.01, unfair, null=null).verdict == "not detected"
    assert verify(data, key, 0.01, unfair).verdict == "inconclusive"


def test_an_unsupported_picture_stays_inconclusive(unfair: Extractor) -> None:
    null = Null(unfair(pictures(600, 9)).double().numpy(), unfair.sha256())
    data = encoded(to_image(pictures(1, 50)[0]).resize((8, 8)))
    key = verify(data, "0" * 24, extractor=unfair).read
    assert verify(data, key, 0.01, unfair, null=null).verdict == "inconclusive"
    assert verify(data, key, 0.01, unfair, null=null, doubt="revoked").reason == "revoked"


def test_unmarked_pictures_can_calibrate_or_refute(extractor: Extractor, tmp_path: Path) -> None:
    extractor.save(tmp_path / "model.safetensors")
    bare = load(tmp_path)
    bare.calibration = None
    data = encoded(to_image(pictures(1, 50)[0]))
    key = verify(data, "0" * 24, extractor=bare).read
    null = Null(fair(2000), bare.sha256())
    found = verify(data, key, extractor=bare, null=null)
    assert (found.verdict, found.test, found.p_value) == ("detected", "binomial", p_value(24, 24))
    biased = Null(fair(2000) + 0.5, extractor.sha256())
    refuted = verify(data, key, extractor=extractor, null=biased)
    assert (refuted.verdict, refuted.test) == ("inconclusive", "empirical")
    few = Null((fair(2000) + 0.5)[:50], extractor.sha256())
    assert verify(data, key, extractor=extractor, null=few).test == "binomial"
    with pytest.raises(ConfigError, match="another extractor"):
        verify(data, key, extractor=extractor, null=null)


def test_the_rates_are_nominal(unfair: Extractor) -> None:
    """Unmarked pictures are called detected no more often than alpha, by a null made of others."""
    null = Null(fair(2000, seed=1), unfair.sha256())
    table = np.random.default_rng(2).integers(0, 2, (20, 24), dtype=np.uint8)
    best = null.best_matches(table)
    observed = Null(fair(4000, seed=3), "x").best_matches(table)
    fired = sum(tail(best, int(count))[1].high <= 0.05 for count in observed)
    assert clopper_pearson(fired, 4000).low <= 0.05
    assert fired > 0
    assert isinstance(null.calibration(), Calibration)
