"""Folders, pictures and a tiny model for the page; the trainers behind it are the real ones."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.device import holders
from app.jobs import Queue
from tests.tiny import build_tiny_model
from trainers.registry import run_config_class
from trainers.rundir import RunDir

SHORT_TRAINER = (sys.executable, str(Path(__file__).with_name("short_trainer.py")))


def wait_for(condition: Callable[[], object], timeout: float = 240.0) -> None:
    """Return as soon as the condition holds; fail after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"nothing happened within {timeout:.0f} s"
        time.sleep(0.05)


def ended(run: RunDir) -> Callable[[], bool]:
    """Return a condition: the run has an end state."""
    return lambda: run.read()["state"] not in ("queued", "running")


def submit(queue: Queue, how: str, steps: int = 300, label: str = "") -> RunDir:
    """Put a run for the short trainer into the queue, whose prompt says what it does."""
    config = run_config_class("tensor-lora").model_validate(
        {"method": {}, "data": {"prompt": how}, "optim": {"steps": steps}}
    )
    return queue.submit("tensor-lora", config.model_dump(mode="json"), {}, label)


@pytest.fixture
def short(tmp_path: Path) -> Iterator[Queue]:
    """Return a queue with the short trainer whose worker does not run yet."""
    queue = Queue(tmp_path / "runs", trainer=SHORT_TRAINER, interval=0.02)
    yield queue
    queue.close()
    for run, record in queue.runs():
        if record["state"] in ("queued", "running"):
            run.stop_path.touch()
    wait_for(lambda: not holders(queue.root))
    queue.tick()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny random Stable Diffusion folder."""
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Return three small pictures: PNG with alpha, grey JPEG, plain PNG."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = [folder / "one.png", folder / "two.jpg", folder / "three.png"]
    for path, shape in zip(paths, ((48, 40, 4), (48, 40), (48, 40, 3)), strict=True):
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(path)
    return paths


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    """Return a queue with the real trainer whose worker does not run yet."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = Queue(tmp_path / "runs", interval=0.1)
    yield made
    made.close()
    for run, record in made.runs():
        if record["state"] in ("queued", "running"):
            run.stop_path.touch()
    wait_for(lambda: not holders(made.root))
    made.tick()


@pytest.fixture
def settings(tiny_model: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that makes the smallest run configuration, as JSON values."""

    def make(steps: int = 2) -> dict[str, Any]:
        config = run_config_class("tensor-lora").model_validate(
            {
                "model": str(tiny_model),
                "data": {"batch_size": 1},
                "method": {},
                "optim": {"steps": steps, "warmup": 0},
                "precision": {"device": "cpu"},
                "watch": {"log_every": 1, "checkpoint_every": 0, "preview_steps": 2, "preview_count": 1},
            }
        )
        return config.model_dump(mode="json")

    return make
