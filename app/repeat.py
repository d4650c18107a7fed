"""An earlier run once more: its settings with changes, and its pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from app import text_runs
from app.folder import text_file
from lrdiff.errors import ConfigError, RunError
from trainers.config import describe_errors
from trainers.registry import run_config_class
from trainers.rundir import RunDir


def changed(record: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the complete settings of a run with some of them changed, as JSON values.

    Args:
        record: The earlier run's record.
        changes: By dotted name: {"optim.steps": 500}.

    Raises:
        ConfigError: A setting is unknown, or does not fit; one line per problem.
    """
    method = record["method"]
    config = dict(record["config"])
    for name, value in changes.items():
        config = _with(config, name.split("."), value, text_runs.UNKNOWN_SETTING.format(name=name, method=method))
    try:
        return run_config_class(method).model_validate(config).model_dump(mode="json")
    except ValidationError as error:
        raise ConfigError(describe_errors(error, "settings")) from error


def pictures_of(name: str, config: Mapping[str, Any]) -> dict[str, Path]:
    """Return the files of the folder of images that a run's settings name, by file name; none for a run without images.

    Raises:
        RunError: The folder cannot be read.
    """
    folder = Path(config["data"]["images"])
    if folder == Path():
        return {}
    try:
        return {path.name: path for path in sorted(folder.iterdir()) if path.is_file() and path.name[0] != "."}
    except OSError as error:
        reason = text_runs.NO_PICTURES.format(path=folder, reason=error.strerror or error)
        raise RunError(text_runs.CANNOT_REPEAT.format(name=name, reason=reason)) from error


def texts_of(run: RunDir, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts that a run keeps beside its record and its settings still name, by setting: "method.prompts".

    A repeat takes a copy, so that the earlier run may be thrown away before the new one begins.
    """
    found: dict[str, str] = {}
    for part, values in config.items():
        for name, value in values.items() if isinstance(values, dict) else ():
            path = text_file(run.path, f"{part}.{name}")
            if isinstance(value, str) and path.is_file() and Path(value).resolve() == path.resolve():
                found[f"{part}.{name}"] = path.read_text(encoding="utf-8").removesuffix("\n")
    return found


def _with(config: dict[str, Any], path: list[str], value: Any, complaint: str) -> dict[str, Any]:
    """Return nested settings with one of them replaced."""
    head, rest = path[0], path[1:]
    inner = config.get(head)
    if rest and not isinstance(inner, dict):
        raise ConfigError(complaint)
    return config | {head: _with(inner or {}, rest, value, complaint) if rest else value}
