"""The attacks do what their names and strengths say."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from lrdiff.errors import ConfigError
from lrdiff.images import to_image
from lrdiff.rng import stream
from lrdiff.watermark.attacks import SUITE, Attack, choose, decoded, encoded
from tests.lrdiff.watermark.conftest import pictures

BY_NAME = {attack.name: attack for attack in SUITE}


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return to_image(pictures(1, 3, side=64)[0])


def rng() -> torch.Generator:
    return stream(0, "test")


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.int64)


@pytest.mark.parametrize("attack", SUITE, ids=lambda attack: attack.name)
def test_identity_strengths_change_nothing_and_all_others_something(attack: Attack, picture: Image.Image) -> None:
    if attack.identity is not None:
        same = attack(picture, attack.identity, rng())
        assert same.size == picture.size
        assert (array(same) == array(picture)).all()
    for strength in attack.strengths:
        changed = attack(picture, strength, rng())
        assert changed.mode == "RGB"
        differs = changed.size != picture.size or (array(changed) != array(picture)).any()
        assert differs == (strength != attack.identity)


@pytest.mark.parametrize("attack", SUITE, ids=lambda attack: attack.name)
def test_only_the_generator_decides_and_the_input_stays(attack: Attack, picture: Image.Image) -> None:
    before = picture.copy()
    strength = attack.strengths[-1]
    first, second = (attack(picture, strength, rng()) for _ in range(2))
    assert (array(first) == array(second)).all()
    assert (array(picture) == array(before)).all()
    if attack.aligned:
        assert first.size == picture.size


@pytest.mark.parametrize("name", ["crop", "crop-anywhere", "resize"])
@pytest.mark.parametrize("area", [0.1, 0.3, 0.5, 0.7])
def test_strength_of_crop_and_resize_is_area(name: str, area: float) -> None:
    wide = Image.new("RGB", (1000, 500))
    changed = BY_NAME[name](wide, area, rng())
    assert changed.width * changed.height / (1000 * 500) == pytest.approx(area, rel=0.005)
    assert changed.width / changed.height == pytest.approx(2, rel=0.005)


def test_a_tenth_of_the_area_of_128_pixels_is_40_pixels_a_side() -> None:
    assert BY_NAME["crop"](Image.new("RGB", (128, 128)), 0.1, rng()).size == (40, 40)


def test_crops_are_pieces_of_the_picture_and_the_plain_one_is_the_middle(picture: Image.Image) -> None:
    whole = array(picture)
    middle = array(BY_NAME["crop"](picture, 0.25, rng()))
    assert (middle == whole[16:48, 16:48]).all()
    piece = array(BY_NAME["crop-anywhere"](picture, 0.25, rng()))
    places = [(y, x) for y in range(33) for x in range(33) if (whole[y : y + 32, x : x + 32] == piece).all()]
    assert len(places) == 1


@pytest.mark.parametrize("quality", [20, 50, 80, 95])
def test_jpeg_quality_goes_into_the_file(quality: int, picture: Image.Image) -> None:
    data = encoded(picture, "JPEG", quality)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.format == "JPEG"
        table = opened.quantization[0]  # pyright: ignore[reportAttributeAccessIssue]
    # The scaling of the standard's tables, whose first entry is 16.
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    assert table[0] == max(1, int((16 * scale + 50) / 100))
    assert (array(decoded(data)) == array(BY_NAME["jpeg"](picture, quality, rng()))).all()


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_lower_quality_is_a_smaller_file_and_a_larger_error(name: str, picture: Image.Image) -> None:
    form = "JPEG" if name == "jpeg" else "WEBP"
    sizes = [len(encoded(picture, form, quality)) for quality in (20, 50, 90)]
    errors = [np.square(array(BY_NAME[name](picture, q, rng())) - array(picture)).mean() for q in (20, 50, 90)]
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)


def test_turns_and_mirrors_are_exact(picture: Image.Image) -> None:
    whole = array(picture)
    assert (array(BY_NAME["rotate"](picture, 90, rng())) == np.rot90(whole)).all()
    assert (array(BY_NAME["mirror"](picture, 1, rng())) == whole[:, ::-1]).all()
    assert (array(BY_NAME["upside-down"](picture, 1, rng())) == whole[::-1]).all()


def test_brightness_multiplies_and_noise_has_its_spread() -> None:
    grey = Image.new("RGB", (200, 200), (60, 80, 100))
    assert BY_NAME["brightness"](grey, 1.5, rng()).getpixel((0, 0)) == (90, 120, 150)
    noisy = array(BY_NAME["noise"](grey, 0.05, rng()))
    assert noisy.std(axis=(0, 1)) == pytest.approx([12.75] * 3, rel=0.03)
    assert noisy.mean(axis=(0, 1)) == pytest.approx([60, 80, 100], abs=0.3)


@pytest.mark.parametrize("area", [0.1, 0.5])
def test_erasing_covers_its_area_and_nothing_else(area: float, picture: Image.Image) -> None:
    white = Image.new("RGB", (100, 100), (255, 255, 255))
    assert (array(BY_NAME["erase"](white, area, rng()))[..., 0] == 128).mean() == pytest.approx(area, rel=0.03)
    changed = (array(BY_NAME["erase"](picture, area, rng())) != array(picture)).any(axis=2)
    rows, columns = np.where(changed)
    assert (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1) <= 1.05 * area * 64 * 64


def test_the_published_combination_is_its_three_parts(picture: Image.Image) -> None:
    parts = BY_NAME["brightness"](BY_NAME["crop"](picture, 0.5, rng()), 1.5, rng())
    together = BY_NAME["crop+brightness+jpeg"](picture, 1.0, rng())
    assert (array(together) == array(BY_NAME["jpeg"](parts, 80, rng()))).all()


def test_every_attack_says_what_it_needs_and_has_a_name_of_its_own() -> None:
    assert len(BY_NAME) == len(SUITE)
    assert all(attack.knowledge and attack.measure and attack.strengths for attack in SUITE)


def test_choosing_keeps_the_order_and_names_what_is_unknown() -> None:
    assert [attack.name for attack in choose(["jpeg", "crop"])] == ["crop", "jpeg"]
    assert choose(()) == SUITE
    with pytest.raises(ConfigError, match="no attack is called 'jpg'; there are none, crop"):
        choose(["jpg"])


@pytest.mark.parametrize(
    ("name", "strength"),
    [("crop", 0.0), ("crop", 1.2), ("resize", 0.0), ("jpeg", 0), ("jpeg", 50.5), ("erase", 1.0), ("median", 4)],
)
def test_impossible_strengths_are_refused(name: str, strength: float, picture: Image.Image) -> None:
    with pytest.raises(ConfigError):
        BY_NAME[name](picture, strength, rng())
