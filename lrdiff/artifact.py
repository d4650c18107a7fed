"""What a run leaves behind: one safetensors file whose header says how to use it.

The header travels in the safetensors metadata under the key `lrdiff`, as JSON. Readers that do not know it ignore it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import struct
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from lrdiff.errors import ArtifactError
from lrdiff.files import replacing

FORMAT = 1
OBJECTS = ("config", "versions", "extra")
PACKAGES = ("lrdiff", "torch", "diffusers", "transformers", "peft")


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that decide what a file means."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


@dataclass(frozen=True, slots=True)
class Header:
    """How an artifact was made and what it fits.

    Attributes:
        method: Name of the trainer that made it, for example "tensor-lora".
        adapter: Kind of adapter, the `peft_type` of its config in lower case, for example "tensor_lora" or "lora".
        config: The adapter's own config, complete: alpha, ranks and targets are read from here, never guessed.
        base_model: Name or path of the base model, for people.
        base_fingerprint: Hash of the base model, for the check at load time.
        component: The part of the base model it goes into, as diffusers names it. Keys in the file begin with it, which
            is how diffusers' pipelines find a LoRA's place.
        versions: Package versions at the time of writing.
        extra: Whatever else the trainer wants to record: seed, steps, final metrics.

    `config` and `extra` are turned into plain JSON values at once (sets become sorted lists, enums their values), so a
    header that was read equals the one that was written.
    """

    method: str
    adapter: str
    config: dict[str, Any]
    base_model: str
    base_fingerprint: str
    component: str = "unet"
    versions: dict[str, str] = field(default_factory=versions)
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in OBJECTS:
            object.__setattr__(self, name, json.loads(json.dumps(getattr(self, name), default=_plain)))


@dataclass(frozen=True, slots=True)
class Artifact:
    """Tensors and their header."""

    tensors: dict[str, torch.Tensor]
    header: Header

    def save(self, path: Path) -> None:
        """Write the file atomically.

        Raises:
            ArtifactError: There is nothing to save, a tensor holds NaN or infinity, or the file cannot be written.
        """
        if not self.tensors:
            raise ArtifactError(f"{path}: refusing to write an adapter without tensors")
        for name, tensor in self.tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise ArtifactError(f"{path}: tensor {name} holds NaN or infinity; the adapter was not written")
        prefix = f"{self.header.component}."
        body = {prefix + name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        metadata = {"lrdiff": json.dumps({"format": FORMAT, **asdict(self.header)}, sort_keys=True)}
        if self.header.adapter == "lora":
            # Without it diffusers takes alpha for equal to the rank.
            config = {prefix + name: value for name, value in self.header.config.items()}
            metadata["lora_adapter_metadata"] = json.dumps(config, sort_keys=True)
        try:
            with replacing(path) as temporary:
                temporary.write_bytes(_encode(body, metadata))
        except (SafetensorError, OSError) as error:
            raise ArtifactError(
                f"{path}: cannot be written ({error}); free some space or choose another place"
            ) from error

    @classmethod
    def load(cls, path: Path) -> Artifact:
        """Read and check a file.

        Raises:
            ArtifactError: The file is absent, damaged, not made by lrdiff, or made by a newer format.
        """
        header = read_header(path)
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{path}: cannot be read as safetensors ({error}); copy the file again") from error
        prefix = f"{header.component}."
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise ArtifactError(f"{path}: tensor {name} holds NaN or infinity; the file must not be used")
            if not name.startswith(prefix):
                raise ArtifactError(f"{path}: tensor {name} is not of {header.component}; copy or train it again")
        return cls(tensors={name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, header=header)


def read_header(path: Path) -> Header:
    """Read only the header of an artifact, without its tensors. Raises `ArtifactError` as `Artifact.load` does."""
    if not path.is_file():
        raise ArtifactError(f"{path}: no such adapter file; give a .safetensors file or a run directory")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path}: not a readable safetensors file ({error}); copy or train it again") from error
    if "lrdiff" not in metadata:
        raise ArtifactError(f"{path}: has no lrdiff header, so its alpha, ranks and base model are unknown")
    try:
        record = json.loads(metadata["lrdiff"])
        number = record.pop("format")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ArtifactError(f"{path}: the lrdiff header is damaged ({error}); copy or train it again") from error
    if number != FORMAT:
        raise ArtifactError(f"{path}: written in format {number}, this version reads format {FORMAT}; update lrdiff")
    known = {item.name: dict if item.name in OBJECTS else str for item in fields(Header)}
    if set(record) != set(known) or not all(isinstance(record[name], kind) for name, kind in known.items()):
        raise ArtifactError(f"{path}: the lrdiff header has other fields than {sorted(known)}; copy or train it again")
    return Header(**record)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _encode(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """Return a safetensors file. Its metadata is sorted, since the library's own order changes from run to run."""
    data = save(tensors, metadata)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def _plain(value: Any) -> Any:
    """Turn the non-JSON values that peft configs hold (sets, enums, dtypes) into JSON."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    if hasattr(value, "value"):
        return value.value
    return str(value)
