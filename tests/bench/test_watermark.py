"""The watermark's benchmarks at tiny size, and what their statistics rest on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lrdiff import backbones
from lrdiff.images import to_image
from lrdiff.rng import stream
from lrdiff.watermark.extractor import Extractor
from tests.bench import result, watermark_false_positives, watermark_limits, watermark_material, watermark_robustness
from tests.bench import watermark_speed as speed
from tests.bench.watermark_false_positives import Crops, cut, fixed_keys, own_keys, soft_test
from tests.lrdiff.watermark.conftest import pictures
from tests.tiny import build_tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, a tiny extractor of 48 bits and a few photos."""
    folder = tmp_path_factory.mktemp("bench")
    build_tiny_model(folder / "tiny")
    torch.manual_seed(0)
    extractor = Extractor(bits=48, width=24, depth=2)
    extractor.train()
    for seed in range(4):
        extractor.raw(pictures(64, seed))
    extractor.whiten(pictures(300, seed) for seed in range(100, 102))
    extractor.calibrate({"random": [pictures(500, seed) for seed in range(200, 202)]})
    extractor.save(folder / "extractor.safetensors")
    (folder / "photos").mkdir()
    for number, image in enumerate(pictures(3, 9, side=160)):
        to_image(image).save(folder / "photos" / f"{number}.png")
    return folder


@pytest.fixture(autouse=True)
def elsewhere(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep caches and results of these tests out of the project."""
    monkeypatch.setattr(watermark_material, "CACHE", place / "cache")
    monkeypatch.setattr(result, "RESULTS", place)
    monkeypatch.setattr(watermark_robustness, "PICTURE", place / "watermark.png")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "user"))


@pytest.fixture
def words(place: Path) -> list[str]:
    return ["--model", str(place / "tiny"), "--extractor", str(place / "extractor.safetensors")]


SETTINGS = json.dumps(
    {
        "method": {"generated": 4, "held_out": 2, "sampling_steps": 2, "guidance": 1.0, "patience": 0},
        "optim": {"steps": 3, "warmup": 0},
        "watch": {"preview_every": 0, "evaluate_every": 2, "checkpoint_every": 0, "log_every": 1},
    }
)


def test_robustness_and_limits_measure_every_bar_for_every_key(place: Path, words: list[str]) -> None:
    more = [*words, "--steps", "2", "--guidance", "1", "--settings", SETTINGS]
    arguments = ["--keys", "2", "--images", "4", "--suite-images", "0", "--search-images", "4", *more]
    assert watermark_robustness.main(arguments) == 0
    assert (place / "watermark.png").is_file()
    record = result.read(place / "watermark_robustness.json")
    assert [row[0] for row in record["rows"]][:3] == ["none", "jpeg 80", "jpeg 50"]
    assert len(record["rows"]) == len(watermark_robustness.BARS) + 1
    assert all(len(row) == len(record["columns"]) for row in record["rows"])
    assert {"32", "64"} == set(record["details"]["bars"])  # four latents make one larger decode
    assert record["details"]["bars"]["32"][0]["keys"] == 2
    assert record["details"]["bars"]["32"][0]["images"] == 8
    found = {(row["attack"], row["strength"]): row for row in record["details"]["searched"]["32"]}
    assert list(found) == [("none", 0.0), ("resize", 0.7), ("resize", 0.3), ("rotate", 25.0)]
    assert found["none", 0.0]["bit_accuracy"] >= record["details"]["bars"]["32"][0]["bit_accuracy"]
    assert record["details"]["keys"][0]["facts"]["steps"] == 3
    assert record["details"]["keys"][0]["facts"]["seconds"] > 0
    keys = {path.read_text() for path in (place / "cache").rglob("bench-*.txt")}
    assert sorted(map(len, keys)) == [48, 48]
    assert not any(key in (place / "watermark_robustness.json").read_text() for key in keys)
    # A second time everything comes out of the cache, and is the same.
    before = sorted((path, path.stat().st_mtime_ns) for path in (place / "cache").rglob("*") if path.is_file())
    assert watermark_robustness.main(arguments) == 0
    assert before == sorted((path, path.stat().st_mtime_ns) for path in (place / "cache").rglob("*") if path.is_file())
    assert result.read(place / "watermark_robustness.json") == record

    less = ["--images", "4", "--few", "2", "--scenes", "2", "--tune-steps", "0", "1", *more]
    assert watermark_limits.main(less) == 0
    rows = result.read(place / "watermark_limits.json")["rows"]
    assert {"none", "re-encode", "swap", "overwrite-decoder", "overwrite-pixels", "fine-tune"} <= {r[0] for r in rows}


def test_false_positives_are_counted_by_kind(place: Path, words: list[str]) -> None:
    few = ["--crops", "60", "--keys", "20", "--scenes", "2", "--outputs", "4", "--steps", "2", "--guidance", "1"]
    photos = ["--photos", str(place / "photos")]
    # The tiny model's pictures have 32 px; crops of them are whole pictures.
    assert watermark_false_positives.main([*few, *photos, *words]) == 0
    record = result.read(place / "watermark_false_positives.json")
    assert [row[0] for row in record["rows"]][::2] == [
        "rendered scenes",
        "photos",
        "unmarked outputs",
        "all together",
    ]
    assert record["rows"][-1][2] >= 60
    assert all(len(row) == len(record["columns"]) for row in record["rows"])
    assert str(place / "photos") not in record["command"]
    assert record["details"]["all together"]["fixed_keys"][0]["keys"] == 20


def test_speed_is_measured_for_one_and_two_threads(place: Path, words: list[str]) -> None:
    before = torch.get_num_threads()
    assert speed.main(["--side", "32", "--images", "3", "--repeats", "2", *words[2:]]) == 0
    record = result.read(place / "watermark_speed.json")
    assert [row[0] for row in record["rows"][:4:2]] == ["CPU, 1 thread", "CPU, 2 threads"]
    assert all(row[2] > 0 for row in record["rows"])
    assert torch.get_num_threads() == before


def crops(bits: np.ndarray, each: int = 1) -> Crops:
    logits = np.where(bits, 1.0, -1.0)
    return Crops("made", logits, np.arange(len(logits)) // each)


def test_own_keys_hold_whatever_the_pictures_are() -> None:
    # The worst extractor: it reads the same bits from everything. A random key for each crop is fair all the same.
    found = own_keys(crops(np.ones((40_000, 48), dtype=bool), each=100))
    assert [one["threshold"] for one in found] == [33, 36]
    assert all(one["holds"] and one["randomised_holds"] for one in found)
    assert found[0]["level"] == pytest.approx(0.0066, rel=0.02)
    assert found[0]["interval"][1] < 0.01 < found[0]["randomised_interval"][1]


def test_the_soft_test_holds_for_logits_of_any_size() -> None:
    # Related bits, and few of them sure.
    sizes = np.abs(np.random.default_rng(1).standard_cauchy((300, 48)))
    found = soft_test(Crops("made", sizes, np.arange(300)))
    assert [one["trials"] for one in found] == [300, 300]
    assert all(one["interval"][0] <= one["alpha"] for one in found)


def test_fixed_keys_tell_fair_bits_from_related_ones() -> None:
    rng = np.random.default_rng(0)
    fair = fixed_keys(crops(rng.random((4000, 48)) < 0.5), 200)[0]
    assert fair["spread_over_keys"] == pytest.approx(fair["spread_of_independent_fair_bits"], rel=0.2)
    assert fair["mean_rate"] == pytest.approx(fair["level"], rel=0.1)
    same = fixed_keys(crops(np.repeat(rng.random((4000, 6)) < 0.5, 8, axis=1)), 200)[0]
    assert same["spread_over_keys"] > 3 * same["spread_of_independent_fair_bits"]
    assert same["worst_rate"] > 3 * same["level"]


def test_crops_are_windows_of_known_sides() -> None:
    large = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8))
    found = [cut(large, stream(0, "cut", number)) for number in range(60)]
    assert {image.size for image in found} == {(side, side) for side in watermark_false_positives.SIDES}
    small = [cut(large.crop((0, 0, 128, 128)), stream(0, "cut", number)) for number in range(60)]
    assert max(image.width for image in small) == 128


def test_a_mosaic_puts_latents_side_by_side() -> None:
    latents = torch.arange(9 * 2 * 3 * 3).view(9, 2, 3, 3).float()
    large = watermark_material.mosaic(latents, 2)
    assert large.shape == (2, 2, 6, 6)
    assert torch.equal(large[0, :, :3, :3], latents[0])
    assert torch.equal(large[0, :, :3, 3:], latents[1])
    assert torch.equal(large[1, :, 3:, :3], latents[6])


def test_generated_latents_do_not_depend_on_how_many_are_made(place: Path) -> None:
    backbone = backbones.load(str(place / "tiny"))
    three = watermark_material.generated(backbone, 3, 2, 1.0)
    kept = list((place / "cache").glob("latents-*"))
    assert len(kept) == 1
    for path in kept[0].iterdir():
        path.unlink()
    two = watermark_material.generated(backbone, 2, 2, 1.0)
    assert torch.allclose(two, three[:2], atol=1e-4)
    with pytest.raises(Exception, match="parts of a smaller set"):
        watermark_material.generated(backbone, 3, 2, 1.0)


def test_training_seconds_leave_out_what_is_not_training() -> None:
    rows = [
        {"step": 10, "seconds_per_step": 0.5},
        {"step": 10, "accuracy_generated": 0.8, "time": 99.0},
        {"step": 20, "seconds_per_step": 1.0},
    ]
    assert watermark_material.training_seconds(rows, 10) == 5.0
    assert watermark_material.training_seconds(rows, 15) == 10.0
    assert watermark_material.training_seconds(rows, 20) == 15.0
