"""Settings from files and flags: defaults, over them the file, over that the flags."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from lrdiff.errors import ConfigError
from trainers.config import describe_errors

M = TypeVar("M", bound=BaseModel)


def build(model: type[M], flags: Mapping[str, Any], file: Mapping[str, Any] | None = None, name: object = "") -> M:
    """Return the validated settings.

    Args:
        model: Class of the settings.
        flags: Nested settings given as flags.
        file: Nested settings of the file `name`. It must be valid without the flags.
        name: Named in messages about the file.

    Raises:
        ConfigError: One line per unknown key or bad value, with its dotted path.
    """
    if file:
        check(model, file, str(name))
    return check(model, lay_over(file or {}, flags), "flags")


def check(model: type[M], values: Mapping[str, Any], where: str) -> M:
    """Validate values. Raises `ConfigError` with one line per problem, each beginning with `where`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe_errors(error, where)) from error


def lay_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return both nested mappings as one; where both have a value, `above` wins. A list counts as one value."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = lay_over(old, value) if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return result


def read_file(path: Path) -> dict[str, Any]:
    """Read a TOML or JSON file, or the run.json of a run directory, as it is.

    Raises:
        ConfigError: No such file, not TOML or JSON, or not a table of settings.
    """
    path = path.expanduser()
    if path.is_dir():
        path = path / "run.json"
    readers = {".toml": tomllib.loads, ".json": json.loads}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"--config: {path} is neither a .toml nor a .json file")
    try:
        values = reader(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config: {path} cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise ConfigError(f"--config: {path} is not valid {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--config: {path} holds no table of settings")
    return values


def to_toml(config: BaseModel) -> str:
    """Return settings as TOML with their descriptions as comments. Settings that are none are left out as comments."""
    lines: list[str] = []
    tables: list[tuple[str, BaseModel]] = []
    _write_table(config, lines, tables, "")
    while tables:
        name, table = tables.pop(0)
        lines += ["", f"[{name}]"]
        nested: list[tuple[str, BaseModel]] = []
        _write_table(table, lines, nested, f"{name}.")
        tables = nested + tables
    return "\n".join(lines) + "\n"


def _write_table(config: BaseModel, lines: list[str], tables: list[tuple[str, BaseModel]], prefix: str) -> None:
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            tables.append((prefix + name, value))
            continue
        text = _toml(value)
        comment = " ".join((info.description or "").split())
        lines += [f"# {comment}", f"{name} = {text}" if text else f"# {name} ="]


def _toml(value: Any) -> str:
    """Return one value in TOML; empty for None, which TOML does not have."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(_toml(item) for item in value)}]"
    # JSON's strings are TOML's, but for the one control character that JSON leaves as it is.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
