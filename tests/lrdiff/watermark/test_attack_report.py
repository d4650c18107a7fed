"""Counts, intervals, tables and plots of the attack report, on pictures that truly carry a key."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from PIL import Image

from lrdiff.errors import ConfigError, ShapeError
from lrdiff.images import to_image, to_tensor
from lrdiff.watermark import attack_plots, attack_report
from lrdiff.watermark.attack_report import Row, read_matches
from lrdiff.watermark.attacks import choose
from lrdiff.watermark.extractor import Extractor
from lrdiff.watermark.model_attacks import overwrite_pixels
from lrdiff.watermark.statistics import clopper_pearson
from tests.lrdiff.watermark.conftest import pictures

KEY = "011011000101110100101100"


@pytest.fixture(scope="module")
def marked(extractor: Extractor) -> list[Image.Image]:
    """Pictures whose pixels were moved until the extractor reads the key."""
    plain = [to_image(image) for image in pictures(6, 11, side=32)]
    return overwrite_pixels(extractor, KEY)(plain, 60)


def table(matches: tuple[tuple[int, ...], ...], bits: int = 48) -> Row:
    return Row("jpeg", "compression", "quality", 80.0, "the picture", bits, matches, 30.0)


def test_reading_agrees_with_the_extractor_whatever_the_sizes(extractor: Extractor, marked: list[Image.Image]) -> None:
    mixed = [marked[0], marked[1].crop((0, 0, 20, 24)), marked[2], marked[3].crop((0, 0, 20, 24))]
    expected = []
    for image in mixed:
        read = "".join("01"[int(value > 0)] for value in extractor(to_tensor(image)[None])[0])
        expected.append(sum(a == b for a, b in zip(read, KEY, strict=True)))
    assert read_matches(extractor, mixed, KEY) == tuple(expected)
    assert min(read_matches(extractor, marked, KEY)) >= 20


@pytest.mark.parametrize("key", ["01", KEY + "0", "2" * 24])
def test_a_key_that_does_not_fit_is_refused(key: str, extractor: Extractor, marked: list[Image.Image]) -> None:
    with pytest.raises(ConfigError, match="this extractor reads 24"):
        read_matches(extractor, marked, key)


def test_the_suite_runs_and_the_identity_loses_nothing(extractor: Extractor, marked: list[Image.Image]) -> None:
    seen: list[str] = []
    rows = attack_report.run(
        choose(["none", "noise", "crop"]), marked, KEY, extractor, progress=lambda row: seen.append(row.attack)
    )
    assert seen == ["none", *["crop"] * 5, *["noise"] * 4]
    assert rows[0].matches == (read_matches(extractor, marked, KEY),)
    assert rows[0].psnr is None  # nothing changed
    assert rows[1].psnr is None  # pixels moved
    assert [row.psnr for row in rows[6:]] == pytest.approx([40, 34, 26, 20], abs=1.0)
    again = attack_report.run(choose(["noise"]), marked, KEY, extractor)
    assert again == rows[6:]
    assert attack_report.run(choose(["noise"]), marked, KEY, extractor, seed=1) != again


def test_without_pictures_there_is_no_report(extractor: Extractor) -> None:
    with pytest.raises(ShapeError, match="no picture to attack"):
        attack_report.run(choose(["none"]), [], KEY, extractor)


def test_rates_of_a_row_are_exact() -> None:
    row = table(((48, 48, 40, 41), (36, 33, 24, 32)))
    assert row.accuracy == pytest.approx(302 / 384)
    assert row.per_key == [177 / 192, 125 / 192]
    # Thresholds of 48 bits: 41 at 1e-6, 36 at 1e-3, 33 at 1e-2.
    for alpha, hits in ((1e-6, 3), (1e-3, 5), (1e-2, 6)):
        rate, bounds = row.detected(alpha)
        assert (rate, bounds) == (hits / 8, clopper_pearson(hits, 8))


def test_intervals_of_bit_accuracy_count_pictures_not_bits() -> None:
    spread = table(((48,) * 50 + (24,) * 50,))
    bits = clopper_pearson(50 * 72, 4800)
    found = spread.accuracy_interval()
    assert found.high - found.low > 4 * (bits.high - bits.low)
    perfect = table(((48,) * 100,)).accuracy_interval()
    assert (perfect.low, perfect.high) == (clopper_pearson(4800, 4800).low, 1.0)
    assert table(((48,),)).accuracy_interval() == clopper_pearson(48, 48)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        shares = rng.beta(8, 2, size=60)  # every picture has an error rate of its own
        counts = tuple(int(count) for count in rng.binomial(48, shares))
        covered += 0.8 in table((counts,)).accuracy_interval()
    assert covered in range(275, 298)


def test_tables_of_several_keys_are_joined_row_by_row() -> None:
    one, two = table(((48, 47),)), table(((24,),))
    (both,) = attack_report.join([[one], [two]])
    assert both.matches == ((48, 47), (24,))
    assert both.record()["keys"] == 2
    assert both.record()["images"] == 3
    with pytest.raises(ShapeError, match="different attacks"):
        attack_report.join([[one], [Row("jpeg", "compression", "quality", 50.0, "-", 48, ((1,),), None)]])


def test_the_table_states_what_it_rests_on() -> None:
    rows = [table(((48, 40),)), table(((48, 41),))]
    text = attack_report.markdown(rows)
    assert "1e-06: 41 matches, reached by chance with 3.1e-07" in text
    assert "exact (Clopper-Pearson)" in text
    assert "| jpeg | 80 | quality | the picture | 2 | 1 | 30.0 | 0.917 |" in text
    lines = list(csv.DictReader(io.StringIO(attack_report.to_csv(rows))))
    assert [float(line["detected_1e-06"]) for line in lines] == [0.5, 1.0]
    assert float(lines[0]["low_1e-06"]) == pytest.approx(clopper_pearson(1, 2).low)


def test_plots_are_pictures_and_the_same_every_time(extractor: Extractor, marked: list[Image.Image]) -> None:
    rows = attack_report.run(choose(["none", "noise", "crop", "jpeg"]), marked, KEY, extractor)
    for draw in (attack_plots.by_strength, attack_plots.by_psnr):
        data = draw(rows)
        assert data == draw(rows)
        with Image.open(io.BytesIO(data)) as image:
            assert min(image.size) > 300
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > 10
    assert attack_plots.by_strength(rows[:1])  # nothing to draw a curve through
