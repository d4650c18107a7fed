"""The seam: what a method may ask of a base model, and the checks every family shares.

A method talks to a `Backbone` and never tests a model's name. A new family is one file beside this one and one line in
the table of `lrdiff.backbones`.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from lrdiff.errors import ModelError, ShapeError, TargetError
from lrdiff.schedule import Schedule

Group = Literal["attention", "attention+ff", "attention+ff+conv"]

WHOLE = 256 * 2**20  # weights up to this many bytes are hashed completely
EDGE = 32 * 2**10  # of larger ones, this many bytes at each end of every tensor


class Backbone(Protocol):
    """A base model: images <-> latents, prompts -> conditioning, noisy latents -> prediction.

    All modules are frozen, in eval mode, and share one dtype. Nothing disables gradients: a caller that wants none uses
    `torch.no_grad`.

    Attributes:
        name: For people: the shipped model's name or the folder's.
        path: The folder it came from.
        fingerprint: Hash of the denoiser, see `fingerprint`.
        resolution: Native image side in pixels.
        latent_shape: (C, h, w) at the native resolution.
        latent_factor: Pixels per latent, on a side. Image sides must be multiples of it.
        schedule: Noise schedule and prediction type.
        denoiser: The network that adapters go into.
        vae: The diffusers autoencoder of `encode` and `decode`; a watermark goes into its decoder.
        component: Its name in a diffusers pipeline, such as "unet".
        truncated: Prompt -> the end of it that the text encoder could not take, for every prompt so far that was cut.
    """

    name: str
    path: Path
    fingerprint: str
    resolution: int
    latent_shape: tuple[int, int, int]
    latent_factor: int
    schedule: Schedule
    denoiser: nn.Module
    vae: Any
    component: str
    truncated: dict[str, str]

    @property
    def device(self) -> torch.device:
        """Where the modules are."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of all modules."""
        ...

    def encode_moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the scaled latents of `images` [B, 3, H, W] in [-1, 1], float32."""
        ...

    def encode(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Return scaled latents of `images`, one draw of the encoder's distribution, float32."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Return images [B, 3, H, W], float32; unclamped, so slightly outside [-1, 1] at times."""
        ...

    def condition(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return what `predict` needs to know about the prompts, each tensor [B, ...]."""
        ...

    def size_condition(self, original: tuple[int, int], corner: tuple[int, int]) -> dict[str, Tensor]:
        """Return what `predict` may be told of a picture's size and crop, each tensor [1, ...]; empty for most."""
        ...

    def predict(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """Return the denoiser's raw output at (x [B, C, h, w], t [B] or a scalar), in the dtype of `x`."""
        ...

    def target_layers(self, group: Group) -> list[str]:
        """Return names of layers inside `denoiser`, in model order. The same before and after an adapter is put in."""
        ...

    def pipeline(self) -> Any:
        """Return a diffusers pipeline around the very same modules."""
        ...

    def release_encoders(self) -> None:
        """Drop what only makes latents and conditioning; `predict` and `decode` still work."""
        ...

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Backbone:
        """Move and cast all modules in place; return the backbone."""
        ...


def fingerprint(config: Mapping[str, Any], files: Sequence[Path]) -> str:
    """Return the SHA-256 that identifies a denoiser: its config and its weights.

    The config enters without the keys that diffusers adds ("_class_name" stays). The weights enter tensor by tensor in
    the order of their names, so neither sharding nor file metadata matters. Up to 256 MiB every byte is hashed. Of
    larger models every name, dtype and shape is hashed, and of every tensor its first and last 32 KiB: training moves
    all entries of a tensor, so a changed model differs there too, but a deliberate change of a few numbers inside a
    large tensor would not be seen.

    Args:
        config: The denoiser's config.json.
        files: Its safetensors files.
    """
    digest = hashlib.sha256()
    plain = {key: value for key, value in config.items() if not key.startswith("_") or key == "_class_name"}
    digest.update(json.dumps(plain, sort_keys=True, default=str).encode())
    tensors = sorted((name, path, *where) for path in files for name, where in _tensors(path).items())
    whole = sum(end - start for _, _, _, start, end in tensors) <= WHOLE
    for name, path, form, start, end in tensors:
        digest.update(f"{name} {form}".encode())
        with path.open("rb") as file:
            for begin, stop in _pieces(start, end, whole):
                file.seek(begin)
                digest.update(file.read(stop - begin))
    return digest.hexdigest()


def weight_files(folder: Path) -> tuple[list[Path], str | None]:
    """Find a component's safetensors files, sharded or not, in diffusers' or transformers' naming.

    Returns:
        The files and the variant they are of (None or "fp16").

    Raises:
        ModelError: There are none, or a shard is absent.
    """
    for stem in ("diffusion_pytorch_model", "model"):
        for variant in (None, "fp16"):
            index = folder / f"{stem}.safetensors.index{'.' + variant if variant else ''}.json"
            single = folder / f"{stem}{'.' + variant if variant else ''}.safetensors"
            if single.is_file():
                return [single], variant
            if index.is_file():
                files = [folder / name for name in sorted(set(read_json(index).get("weight_map", {}).values()))]
                absent = [file.name for file in files if not file.is_file()]
                if absent or not files:
                    raise ModelError(f"{folder}: incomplete, these shards are absent: {absent}; copy the folder again")
                return files, variant
    hint = "; only pickled weights are there, save it as safetensors" if list(folder.glob("*.bin")) else ""
    raise ModelError(f"{folder}: no weights (*.safetensors) found{hint}")


def read_json(path: Path) -> dict[str, Any]:
    """Read a model's JSON file. Raises `ModelError` when it is absent or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); copy the model folder again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: holds no JSON object; copy the model folder again")
    return value


def display_name(folder: Path) -> str:
    """Return a model's name for people: its folder's, or the hub id of a folder inside the Hugging Face cache."""
    folder = folder.resolve()
    if folder.parent.name == "snapshots":  # .../models--org--name/snapshots/REVISION
        return folder.parents[1].name.removeprefix("models--").replace("--", "/")
    return folder.name


def check_images(images: Tensor, factor: int) -> None:
    """Raise `ShapeError` unless `images` is [B, 3, H, W] with sides that are multiples of `factor`."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ShapeError(f"images must be [B, 3, H, W], got {list(images.shape)}")
    height, width = images.shape[-2:]
    if height % factor or width % factor:
        raise ShapeError(f"image size {width}x{height}: both sides must be multiples of {factor} for this model")


def check_group(group: str) -> None:
    """Raise `TargetError` unless `group` is a known group of layers."""
    if group not in get_args(Group):
        raise TargetError(f"layer group {group!r} is unknown; known groups: {list(get_args(Group))}")


def _tensors(path: Path) -> dict[str, tuple[str, int, int]]:
    """Read a safetensors header: name -> (dtype and shape, first byte in the file, one past the last)."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        base = 8 + length
        found = {}
        for name in header.keys() - {"__metadata__"}:
            start, end = header[name]["data_offsets"]
            found[name] = (f"{header[name]['dtype']} {header[name]['shape']}", base + int(start), base + int(end))
        return found
    except (OSError, ValueError, KeyError, TypeError, struct.error, OverflowError, MemoryError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error}); copy the model again") from error


def _pieces(start: int, end: int, whole: bool) -> list[tuple[int, int]]:
    """Return the byte ranges of a tensor that are hashed."""
    if whole or end - start <= 2 * EDGE:
        return [(start, end)]
    return [(start, start + EDGE), (end - EDGE, end)]
