"""Reading a model folder part by part: every part has its class, its weights, and a name in the message when not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers.utils import logging as hf_logging

from lrdiff.backbones.base import weight_files
from lrdiff.errors import ModelError
from lrdiff.loading import alone

# what the libraries raise over the content of a folder
UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError)


def check_part(path: Path, index: Mapping[str, Any], name: str, kind: type | None) -> None:
    """Check that a component is listed in model_index.json, has the class we know, and has its folder."""
    entry = index.get(name)
    if not isinstance(entry, list) or len(entry) != 2 or entry[1] is None:
        raise ModelError(f"{path}: model_index.json lists no {name}; the model is incomplete")
    if name == "scheduler" and not hasattr(diffusers, str(entry[1])):
        raise ModelError(f"{path}: scheduler class {entry[1]!r} is unknown to diffusers {diffusers.__version__}")
    if kind is not None and str(entry[1]).removesuffix("Fast") != kind.__name__:
        raise ModelError(f"{path}: its {name} is a {entry[1]}, this family needs a {kind.__name__}")
    if not (path / name).is_dir():
        raise ModelError(f"{path}: the folder {name}/ is missing; copy the model again")


@alone()
def load_part(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """Load one network and refuse it when a weight is absent, since diffusers would fill in random numbers."""
    _, variant = weight_files(folder)
    try:
        with _no_progress_bar():
            model, report = kind.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                variant=variant,
                output_loading_info=True,
                dtype=dtype,
            )
    except UNREADABLE as error:
        raise ModelError(f"{folder}: cannot be loaded ({type(error).__name__}: {error})") from error
    absent = sorted(report["missing_keys"])
    if absent or report["mismatched_keys"]:
        raise ModelError(f"{folder}: incomplete weights, {len(absent)} tensors absent, for example {absent[:1]}")
    return model


def load_plain(kind: Any, folder: Path) -> Any:
    """Load a component without weights."""
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except UNREADABLE as error:
        raise ModelError(f"{folder}: cannot be loaded ({type(error).__name__}: {error})") from error


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep the libraries from drawing a bar for every load; a library has no business on the terminal."""
    shown = [module for module in (hf_logging, diffusers_logging) if module.is_progress_bar_enabled()]
    for module in shown:
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module in shown:
            module.enable_progress_bar()
