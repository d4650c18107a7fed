"""A tiny model, and a tiny extractor that is fair on what its decoder makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import build_tiny_mark, mark_settings
from trainers.engine import Engine
from trainers.run import build
from trainers.watermark.config import WatermarkRun
from trainers.watermark.method import Watermark

Configure = Callable[..., WatermarkRun]


@pytest.fixture(scope="session")
def mark(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return extractor, key and prompts; read-only by agreement."""
    return build_tiny_mark(tmp_path_factory.mktemp("marks") / "mark", model=tiny_model)


@pytest.fixture(scope="session")
def configure(tiny_model: Path, mark: Path) -> Configure:
    """Return a function that makes settings of a short run; its arguments are the method's settings."""

    def make(optim: dict[str, Any] | None = None, watch: dict[str, Any] | None = None, **method: Any) -> WatermarkRun:
        settings = {
            "model": str(tiny_model),
            "data": {"batch_size": 4},
            "method": {**mark_settings(mark), **method},
            "optim": {"steps": 4, "warmup": 1, **(optim or {})},
            "watch": {"preview_every": 0, "evaluate_every": 10, "log_every": 5, **(watch or {})},
        }
        return WatermarkRun.model_validate(settings)

    return make


@pytest.fixture(scope="session")
def prepare(configure: Configure) -> Callable[..., Watermark]:
    """Return a function that builds the method of such settings."""

    def make(**changes: Any) -> Watermark:
        config = configure(**changes)
        return build("watermark", config, Engine(config.precision))  # pyright: ignore[reportReturnType]

    return make
