"""A grid over any two settings of a generation: one axis across, one down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import ValidationError

from app import text
from app.form import FormError
from lrdiff.generate_config import GenerateConfig

NOT_AN_AXIS = frozenset({"out", "grid", "count", "batch_size", "device", "dtype", "model", "adapter"})
SETTINGS = tuple(name for name in GenerateConfig.model_fields if name not in NOT_AN_AXIS)
LISTS = frozenset({"prompt", "scale"})
"""Settings that hold several values already; a cell of the grid has one of them."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One setting and the values it takes.

    Attributes:
        name: A setting.
        values: As they were written.
    """

    name: str
    values: tuple[str, ...]

    @property
    def labels(self) -> list[str]:
        """What stands beside a row or above a column."""
        return [value if self.name in ("prompt", "sampler") else f"{self.name} {value}" for value in self.values]


def axis(name: str, written: str) -> Axis | None:
    """Read an axis: values on lines of their own, or with commas between where they are no sentences.

    Raises:
        FormError: Unknown setting, no values, or one twice.
    """
    if not name:
        return None
    if name not in SETTINGS:
        raise FormError({"": text.NO_AXIS.format(name=name)})
    separated = written if name in ("prompt", "negative_prompt") else written.replace(",", "\n")
    values = tuple(word.strip() for word in separated.splitlines() if word.strip())
    if not values:
        raise FormError({"": text.AXIS_EMPTY.format(name=text.label(name))})
    if len(set(values)) < len(values):
        raise FormError({"": text.AXIS_TWICE.format(name=text.label(name))})
    return Axis(name, values)


def cells(config: GenerateConfig, across: Axis | None, down: Axis | None) -> list[list[GenerateConfig]]:
    """Return one configuration per cell, row by row.

    Raises:
        FormError: The axes are one setting twice, the rest asks for several images per cell, or a value is not valid.
    """
    given = [item for item in (across, down) if item is not None]
    if len({item.name for item in given}) < len(given):
        raise FormError({"": text.AXES_SAME})
    for name, several in (("prompt", len(config.prompt) > 1), ("scale", len(config.scale) > 1)):
        if several and name not in {item.name for item in given}:
            raise FormError({name: text.ONE_PER_CELL})
    if config.count > 1:
        raise FormError({"count": text.ONE_PER_CELL})
    return [
        [_with(config, {**_value(down, i), **_value(across, j)}) for j in range(len(across.values) if across else 1)]
        for i in range(len(down.values) if down else 1)
    ]


def _value(item: Axis | None, index: int) -> dict[str, Any]:
    if item is None:
        return {}
    value = item.values[index]
    return {item.name: [value] if item.name in LISTS else value}


def _with(config: GenerateConfig, changes: dict[str, Any]) -> GenerateConfig:
    try:
        return GenerateConfig.model_validate({**config.model_dump(), "grid": False, **changes})
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        name = str(item["loc"][0]) if item["loc"] else ""
        shown = ", ".join(f"{key} {value}" for key, value in changes.items())
        raise FormError({"": f"{text.label(name) if name else shown}: {text.problem(item)}"}) from error


def lay_out(files: Sequence[Path], across: Axis | None, down: Axis | None, configs: Sequence[GenerateConfig]) -> Path:
    """Write the images of all cells on one labelled sheet, with the settings of each inside, and return its file."""
    from lrdiff import metadata, png
    from lrdiff.sheet import sheet

    rows, columns = (down.labels if down else [""]), (across.labels if across else [""])
    opened = [Image.open(file).convert("RGB") for file in files]
    # A row of the sheet needs pictures of one size; with the size itself on an axis they differ.
    size = (max(image.width for image in opened), max(image.height for image in opened))
    pictures = [image if image.size == size else _padded(image, size) for image in opened]
    page = sheet([pictures[i : i + len(columns)] for i in range(0, len(pictures), len(columns))], rows, columns)
    cells = [config.model_dump(mode="json", exclude={"out"}) for config in configs]
    record = {"kind": "grid", "rows": rows, "columns": columns, "cells": cells}
    return png.write_new(configs[0].out, "grid", png.encode(page, {"lrdiff": metadata.to_json(record)}))


def _padded(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    padded = Image.new("RGB", size, "white")
    padded.paste(image, (0, 0))
    return padded
