"""Weights of networks that a user supplies: tensors by name, and never code."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from lrdiff.errors import ConfigError


def read_state(path: Path, what: str) -> dict[str, Tensor]:
    """Return a state dict: of a .safetensors file, or of a .pth file, of which nothing but tensors is unpickled.

    Args:
        path: The file.
        what: What it should hold and where it comes from, for messages.

    Raises:
        ConfigError: The file is absent or damaged, or holds something else than tensors by name.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; give {what}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # advice to run TorchScript
            state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # damaged bytes raise anything: KeyError, IndexError, UnpicklingError, ...
        # torch's message names ways around its safety, which are no advice here.
        first = next(iter(str(error).strip().splitlines()), "").split(". ")[0]
        raise ConfigError(
            f"{path}: cannot be read as weights alone ({type(error).__name__}: {first}); files with "
            f"code, such as TorchScript or pickled modules, are not run: give {what}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(f"{path}: holds no tensors by name; give {what}")
    return {str(name): value for name, value in state.items()}
