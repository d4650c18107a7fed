"""A tiny model, a folder of pictures and a finished run for the command-line tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from app.cli import main
from tests.tiny import build_tiny_model

Lrdiff = Callable[..., tuple[int, str, str]]


@pytest.fixture
def lrdiff(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lrdiff:
    """Run the command line in this process, in an empty folder; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    # The help is as wide as the terminal.
    monkeypatch.setenv("COLUMNS", "100")

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Stable Diffusion folder."""
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small pictures."""
    folder = tmp_path_factory.mktemp("data") / "My Mug"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (40, 36), (80 * number, 90, 200)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def short(tiny: Path) -> list[str]:
    """Flags of a run that takes a second."""
    flags = {"optim.steps": 4, "watch.log-every": 1, "watch.preview-every": 0, "watch.evaluate-every": 0}
    return ["--model", str(tiny), *(word for name, value in flags.items() for word in (f"--{name}", str(value)))]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, photos: Path, short: list[str]) -> Path:
    """The directory of a finished run."""
    path = tmp_path_factory.mktemp("runs") / "mug"
    assert main(["train", "lora", "--data.images", str(photos), "--out", str(path), *short]) == 0
    return path
