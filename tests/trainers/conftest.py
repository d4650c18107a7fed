"""Folders to train in and on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.tiny import build_tiny_model
from trainers.rundir import RunDir, create


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Compute on one thread: tiny tensors gain nothing from more, and sums come out the same on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    """Return a fresh run directory in state queued."""
    return create(tmp_path / "run", "line", {"seed": 0, "optim": {"lr": 0.05}})


def save_pictures(folder: Path, count: int = 4, size: int = 40) -> Path:
    """Write a few small coloured PNGs and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = torch.Generator().manual_seed(0)
    for number in range(count):
        pixels = torch.randint(0, 256, (4, 4, 3), generator=rng, dtype=torch.uint8)
        image = Image.fromarray(pixels.numpy()).resize((size + 4 * number, size), Image.Resampling.BICUBIC)
        image.save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of four pictures, one with a caption of its own; read-only by agreement."""
    folder = save_pictures(tmp_path_factory.mktemp("pictures"))
    (folder / "2.txt").write_text("a red cube")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny random Stable Diffusion folder; read-only by agreement."""
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
