"""Where the files are that come with the project: models, subjects, pictures."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).resolve().parents[1] / "assets"
"""Beside the packages: lrdiff is used from its source folder (`pip install -e .`), since its models live there."""
MODELS = ASSETS / "models"
SUBJECTS = ASSETS / "subjects"
