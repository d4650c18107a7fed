"""A grid over two settings, and how much may be asked for at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from app import axes, limits
from app.axes import axis, cells
from app.form import FormError
from lrdiff.generate_config import GenerateConfig
from lrdiff.metadata import read_parameters


def test_every_pair_of_values_is_one_image() -> None:
    across, down = axis("guidance", "1, 3, 7.5"), axis("prompt", "a cube, red\na ball")
    table = cells(GenerateConfig(seed=4), across, down)
    assert [[(cell.prompt, cell.guidance) for cell in row] for row in table] == [
        [(("a cube, red",), 1.0), (("a cube, red",), 3.0), (("a cube, red",), 7.5)],
        [(("a ball",), 1.0), (("a ball",), 3.0), (("a ball",), 7.5)],
    ]
    assert {cell.seed for row in table for cell in row} == {4}


@pytest.mark.parametrize(
    ("config", "across", "down", "message"),
    [
        ({}, ("steps", "10, 0"), ("", ""), "Steps: Must be greater than 0"),
        ({}, ("steps", "10, ten"), ("", ""), "Steps: Must be"),
        ({}, ("steps", ""), ("", ""), "give values for Steps"),
        ({}, ("steps", "5, 5"), ("", ""), "lists a value twice"),
        ({}, ("out", "/etc"), ("", ""), "cannot be an axis"),
        ({}, ("adapter", "/etc/passwd"), ("", ""), "cannot be an axis"),
        ({}, ("seed", "1,2"), ("seed", "3,4"), "two different settings"),
        ({"count": 2}, ("seed", "1,2"), ("", ""), "one image per cell"),
        ({"prompt": ("a", "b")}, ("seed", "1,2"), ("", ""), "one image per cell"),
        ({}, ("eta", "0, 0.5"), ("", ""), "no effect with sampler"),
    ],
)
def test_a_bad_grid_is_named(
    config: dict[str, object], across: tuple[str, str], down: tuple[str, str], message: str
) -> None:
    with pytest.raises(FormError) as caught:
        cells(GenerateConfig.model_validate(config), axis(*across), axis(*down))
    assert message in str(caught.value)


def test_the_sheet_holds_all_images_and_their_settings(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.png" for number in range(4)]
    for number, file in enumerate(files):
        Image.new("RGB", (32, 32) if number else (48, 32), (60 * number, 0, 0)).save(file)
    across, down = axis("seed", "1,2"), axis("width", "32,48")
    made = [cell for row in cells(GenerateConfig(out=tmp_path), across, down) for cell in row]
    sheet = axes.lay_out(files, across, down, made)
    record = read_parameters(sheet)
    assert record["kind"] == "grid"
    assert [cell["width"] for cell in record["cells"]] == [32, 32, 48, 48]
    with Image.open(sheet) as image:
        assert image.width > 2 * 48


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"count": 65}, "count"),
        ({"width": 4096}, "width"),
        ({"steps": 5000}, "steps"),
        ({"batch_size": 99}, "batch_size"),
    ],
)
def test_too_much_at_once_is_refused_by_name(values: dict[str, int], name: str) -> None:
    limits.check(GenerateConfig())
    with pytest.raises(FormError) as caught:
        limits.check(GenerateConfig.model_validate(values))
    assert list(caught.value.problems) == [name]
