"""Base models: find one, tell its family, load it."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

from lrdiff.backbones import embedded
from lrdiff.backbones.base import Backbone, Group, read_json
from lrdiff.errors import BackendError, ModelError

__all__ = ["FAMILIES", "Backbone", "Group", "find", "load", "pick_device"]

# `_class_name` of model_index.json -> module and class that load it
FAMILIES = {
    "StableDiffusionPipeline": ("lrdiff.backbones.unet", "UNetBackbone"),
    "StableDiffusionXLPipeline": ("lrdiff.backbones.sdxl", "SDXLBackbone"),
    "StableDiffusion3Pipeline": ("lrdiff.backbones.sd3", "SD3Backbone"),
    "FluxPipeline": ("lrdiff.backbones.flux", "FluxBackbone"),
    "PixArtAlphaPipeline": ("lrdiff.backbones.pixart", "PixArtBackbone"),
    "PixArtSigmaPipeline": ("lrdiff.backbones.pixart", "PixArtBackbone"),
}


def load(model: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Backbone:
    """Load a base model, frozen and in eval mode. Never downloads anything.

    Args:
        model: Name of a shipped model ("toys"), a folder in diffusers' layout, or a hub id whose files are already in
            this machine's Hugging Face cache. A bare name means the shipped model; write "./toys" for a folder.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" for the first of cuda and cpu that is present.
        dtype: Dtype of every module.

    Raises:
        ModelError: Not a model, an incomplete one, or of a family that is not supported.
        BackendError: The device is absent.
    """
    place = pick_device(device)
    path = find(model)
    kind = read_json(path / "model_index.json").get("_class_name")
    if kind not in FAMILIES:
        raise ModelError(f"{path}: a {kind} is not supported; supported: {sorted(FAMILIES)}")
    module, name = FAMILIES[kind]
    family = getattr(importlib.import_module(module), name)
    return family.load(path, device=place, dtype=dtype)


def find(model: str | Path) -> Path:
    """Return the folder of a base model without loading it. Arguments and errors as in `load`."""
    text = str(model)
    shipped = embedded.find(text)
    if shipped is not None:
        return shipped
    path = Path(model).expanduser()
    if (path / "model_index.json").is_file():
        return path
    if path.is_dir():
        raise ModelError(f"{path}: not a model folder, it has no model_index.json; give a folder in diffusers' layout")
    if path.is_file():
        raise ModelError(
            f"{path}: a file, not a model folder; single-file checkpoints must first be saved in diffusers' layout "
            "(StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER))"
        )
    if text.count("/") == 1 and not text.startswith(("/", ".", "~")):
        return _cached(text)
    raise ModelError(f"model {text!r}: no such folder and no such shipped model; shipped: {embedded.names() or 'none'}")


def pick_device(name: torch.device | str) -> torch.device:
    """Return the device of this name; "auto" is cuda where present, else cpu.

    Raises:
        BackendError: The name is unknown, or this machine or this build of torch lacks the device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BackendError(f"device {name!r} is unknown; use auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BackendError(f"device {str(device)!r} is absent: torch {torch.__version__} sees no such GPU; use cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise BackendError("device 'mps' is absent on this machine; use cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise BackendError(f"device {name!r} is not supported; use auto, cpu, cuda, cuda:N or mps")
    return device


def _cached(repo: str) -> Path:
    """Return the folder of a hub model that is already in the local cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(repo, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise ModelError(
            f"model {repo!r}: no such folder, and not in the local cache; models are not downloaded here: fetch it "
            f"with `hf download {repo}` first, or give a folder. Shipped models: {embedded.names() or 'none'}"
        ) from error
    if not (path / "model_index.json").is_file():
        raise ModelError(f"model {repo!r}: its cached copy {path} has no model_index.json; download it completely")
    return path
