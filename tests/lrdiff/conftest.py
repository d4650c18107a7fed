"""Fixtures for the library's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import build_tiny_model


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny random Stable Diffusion folder; read-only by agreement."""
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
