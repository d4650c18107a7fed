"""How thorough a run is: a few sets of settings, and how long each takes on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app import text
from app.form import Form

PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"optim.steps": 100, "watch.preview_every": 25, "watch.evaluate_every": 25},
    "standard": {},
    "thorough": {"optim.steps": 1000, "watch.preview_every": 200, "watch.checkpoint_every": 200},
}
"""What a preset changes; the rest of the fields that any preset changes goes back to the model's default."""

PATHS = tuple(dict.fromkeys(path for preset in PRESETS.values() for path in preset))


def settings(key: str, form: Form) -> dict[str, Any]:
    """Return what a preset sets, by path."""
    return {path: PRESETS[key].get(path, form.field(path).default) for path in PATHS}


def matching(values: tuple[Any, ...], form: Form) -> str:
    """Return the preset that the settings are, so that the page never claims one that was changed; "" for none."""
    return next((key for key in PRESETS if tuple(settings(key, form).values()) == values), "")


def choices(form: Form, times: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return (label, key) of every preset and of settings of one's own.

    Args:
        form: Of the run's configuration.
        times: How long each takes, in words; absent where it was not measured.
    """
    named: list[tuple[str, str]] = []
    for key in PRESETS:
        words = {"name": text.PRESETS[key], "steps": settings(key, form)["optim.steps"]}
        sentence = text.PRESET_TIME if key in times else text.PRESET_STEPS
        named.append((sentence.format(**words, time=times.get(key, "")), key))
    return [*named, (text.PRESET_CUSTOM, "")]
