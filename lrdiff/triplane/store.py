"""A generator as a folder: generator.safetensors and config.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as encode
from torch import Tensor

from lrdiff.artifact import sha256, versions
from lrdiff.assets import MODELS
from lrdiff.errors import ModelError
from lrdiff.files import write_bytes, write_json
from lrdiff.loading import alone
from lrdiff.triplane.config import from_json, to_json
from lrdiff.triplane.generator import TriplaneGenerator

WEIGHTS = "generator.safetensors"
CONFIG = "config.json"
DIRECTIONS = "directions.safetensors"


def save(generator: TriplaneGenerator, folder: Path, origin: dict[str, Any]) -> None:
    """Write a generator.

    Args:
        generator: Without adapters.
        folder: A folder that does not exist yet, or is empty.
        origin: Where the weights come from, kept in config.json.

    Raises:
        ModelError: The folder is not empty or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"{folder}: is not empty; choose a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in generator.state_dict().items()}
        write_bytes(folder / WEIGHTS, encode(state))
        write_json(
            folder / CONFIG,
            {"kind": "triplane", "config": to_json(generator.config), "origin": origin, "versions": versions()},
        )
    except OSError as error:
        raise ModelError(f"{folder}: cannot be written ({error}); free some space or choose another place") from error


def find(model: str) -> Path:
    """Return the folder of a generator: a shipped one by its name, or a path.

    Raises:
        ModelError: There is no generator.
    """
    shipped = MODELS / model
    folder = shipped if "/" not in model and shipped.is_dir() else Path(model).expanduser()
    if not (folder / WEIGHTS).is_file():
        known = sorted(path.parent.name for path in MODELS.glob(f"*/{WEIGHTS}"))
        raise ModelError(
            f"{model}: no generator of heads ({folder / WEIGHTS} is absent); shipped: {', '.join(known) or 'none'}; "
            "lrdiff triplane import FILE.pkl makes a folder of your own"
        )
    return folder


@alone()
def load(folder: Path) -> TriplaneGenerator:
    """Read a generator, frozen and in evaluation mode.

    Raises:
        ModelError: A file is absent or damaged, or the tensors are not those of the configuration.
    """
    try:
        record = json.loads((folder / CONFIG).read_text())
        config = from_json(record["config"])
        state = load_file(folder / WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(
            f"{folder}: not a generator's folder ({error}); make one with lrdiff triplane import FILE.pkl"
        ) from error
    with torch.device("meta"):
        generator = TriplaneGenerator(config)
    try:
        generator.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ModelError(
            f"{folder}: its tensors are not those of its configuration ({error}); copy it again"
        ) from error
    return generator.eval().requires_grad_(False)


def save_directions(folder: Path, directions: dict[str, Tensor]) -> None:
    """Put directions of traits [w], by name, beside a generator's weights."""
    write_bytes(folder / DIRECTIONS, encode({name: value.contiguous() for name, value in directions.items()}))


def directions_of(folder: Path) -> dict[str, Tensor]:
    """Return all directions [w] that a generator's folder has, by name; none where there is no such file.

    Raises:
        ModelError: The file is damaged.
    """
    path = folder / DIRECTIONS
    try:
        return load_file(path) if path.is_file() else {}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: is damaged ({error}); copy it again") from error


def load_directions(folder: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Return directions [w] in latents that a generator's folder knows by name.

    Raises:
        ModelError: The folder has not these directions, or its file is damaged.
    """
    known = directions_of(folder)
    missing = [name for name in names if name not in known]
    if missing:
        have = ", ".join(sorted(known)) or "none"
        raise ModelError(f"{folder / DIRECTIONS}: has no direction {missing[0]!r}; known: {have}")
    return {name: known[name] for name in names}


def fingerprint(folder: Path) -> str:
    """Return the hash of a generator's weights. Raises `ModelError` when there are none."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise ModelError(f"{path}: no such file; make it with lrdiff triplane import FILE.pkl")
    return sha256(path)
