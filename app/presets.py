"""How thorough a run is: a few sets of settings, and how long each takes on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app import text
from app.form import Form


@dataclass(frozen=True, slots=True)
class Presets:
    """The sets that a page offers.

    Attributes:
        changes: What each changes, by key and path; the rest of the fields that any of them changes goes back to the
            model's default.
    """

    changes: Mapping[str, Mapping[str, Any]]

    @property
    def paths(self) -> tuple[str, ...]:
        """The settings that any of them changes."""
        return tuple(dict.fromkeys(path for preset in self.changes.values() for path in preset))

    def settings(self, key: str, form: Form) -> dict[str, Any]:
        """Return what a preset sets, by path."""
        return {path: self.changes[key].get(path, form.field(path).default) for path in self.paths}

    def matching(self, values: tuple[Any, ...], form: Form) -> str:
        """Return the preset that the settings are, so that the page never claims one that was changed; "" for none."""
        return next((key for key in self.changes if tuple(self.settings(key, form).values()) == values), "")

    def choices(self, form: Form, times: Mapping[str, str]) -> list[tuple[str, str]]:
        """Return (label, key) of every preset and of settings of one's own.

        Args:
            form: Of the run's configuration.
            times: How long each takes, in words; absent where it was not measured.
        """
        named: list[tuple[str, str]] = []
        for key in self.changes:
            words = {"name": text.PRESETS[key], "steps": self.settings(key, form)["optim.steps"]}
            sentence = text.PRESET_TIME if key in times else text.PRESET_STEPS
            named.append((sentence.format(**words, time=times.get(key, "")), key))
        return [*named, (text.PRESET_CUSTOM, "")]


OF_PICTURES = Presets(
    {
        "quick": {"optim.steps": 100, "watch.preview_every": 25, "watch.evaluate_every": 25},
        "standard": {},
        "thorough": {"optim.steps": 1000, "watch.preview_every": 200, "watch.checkpoint_every": 200},
    }
)
"""For methods that learn from pictures."""

OF_REWARDS = Presets(
    {
        "quick": {"optim.steps": 15, "watch.preview_every": 5, "watch.evaluate_every": 5},
        "standard": {},
        "thorough": {"optim.steps": 200, "watch.preview_every": 50, "watch.checkpoint_every": 50},
    }
)
"""For a reward, whose every step draws its pictures anew."""
