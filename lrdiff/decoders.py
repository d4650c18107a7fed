"""Marked decoders: folders with a whole diffusers autoencoder, whose decoder puts a watermark into its pictures.

A folder is what `from_pretrained` loads, plus `lrdiff.json`, which says what it was made of. The key's bits are in none
of its files.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from lrdiff.backbones import Backbone
from lrdiff.backbones.base import fingerprint, read_json, weight_files
from lrdiff.backbones.loading import load_part
from lrdiff.errors import ArtifactError, ModelError
from lrdiff.files import write_json
from lrdiff.rng import stream

HEADER = "lrdiff.json"
FORMAT = 1
NO_EFFECT = 1e-5
"""A decoder whose pictures differ by less than this, with pixels in [-1, 1], is not another one: that is rounding."""


@dataclass(frozen=True, slots=True)
class DecoderHeader:
    """What a marked decoder was made of.

    Attributes:
        key: Id of the key in it.
        extractor: Content hash of the extractor that reads it.
        adapter: SHA-256 of the adapter file that was merged.
        base_model: Name of the base model, for people.
        base_fingerprint: Hash of the base model's autoencoder.
        fingerprint: Hash of this folder's autoencoder.
        versions: Package versions at the time of writing.
    """

    key: str
    extractor: str
    adapter: str
    base_model: str
    base_fingerprint: str
    fingerprint: str
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Decoder:
    """A marked decoder that was read and checked.

    Attributes:
        path: Its folder.
        header: What it was made of.
    """

    path: Path
    header: DecoderHeader


def fingerprint_of(folder: Path) -> str:
    """Return the hash of an autoencoder's folder: see `lrdiff.backbones.base.fingerprint`."""
    return fingerprint(read_json(folder / "config.json"), weight_files(folder)[0])


def load_vae(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Load a diffusers autoencoder, frozen and in eval mode.

    Raises:
        ModelError: Absent, incomplete, or of a class that diffusers does not have.
    """
    name = read_json(folder / "config.json").get("_class_name")
    kind: Any = getattr(diffusers, str(name), None)
    if kind is None:
        raise ModelError(f"{folder}: diffusers has no class {name!r}; give the folder of an autoencoder")
    vae = load_part(kind, folder, dtype)
    return vae.requires_grad_(False).eval()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `path` that takes its name at the end, or is removed on failure.

    Raises:
        ArtifactError: Something is there already, or the place cannot be written to.
    """
    if path.exists():
        raise ArtifactError(f"{path}: is there already; choose another folder, or remove it first")
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_header(folder: Path, header: DecoderHeader) -> None:
    """Write the header beside the weights, and give all files the rights that the user's umask leaves."""
    write_json(folder / HEADER, {"format": FORMAT, **asdict(header)})
    rights = (folder / HEADER).stat().st_mode
    for file in folder.iterdir():
        file.chmod(rights)  # the weights were written for their owner alone


def read_decoder(path: Path) -> Decoder:
    """Read a marked decoder's header and check that its files are the ones that were written.

    Raises:
        ArtifactError: No such folder, no header, or changed files.
        ModelError: A file is absent or damaged.
    """
    path = path.expanduser()
    if not (path / HEADER).is_file():
        what = "has no lrdiff.json" if path.is_dir() else "is no folder"
        raise ArtifactError(f"decoder: {path} {what}; give a folder that lrdiff watermark fuse wrote")
    record = read_json(path / HEADER)
    number = record.pop("format", None)
    if number != FORMAT:
        raise ArtifactError(f"decoder: {path} has format {number}, this version reads {FORMAT}; update lrdiff")
    if set(record) != {item.name for item in fields(DecoderHeader)}:
        raise ArtifactError(f"decoder: {path / HEADER} is damaged; fuse the adapter again")
    header = DecoderHeader(**record)
    if fingerprint_of(path) != header.fingerprint:
        raise ArtifactError(f"decoder: {path} was changed after it was written; fuse the adapter again")
    return Decoder(path, header)


@contextmanager
def decoding(backbone: Backbone, decoder: Decoder | None) -> Iterator[None]:
    """Let a backbone decode with a marked decoder; at the end it has its own again. None changes nothing.

    Raises:
        ArtifactError: It is for another base model, of another shape, or makes the same pictures as the base's.
        ModelError: It cannot be loaded.
    """
    if decoder is None:
        yield
        return
    own = backbone.vae
    _check_base(backbone, decoder)
    marked = load_vae(decoder.path, backbone.dtype).to(backbone.device)
    _check_shape(own, marked, decoder)
    before = _probe(backbone)
    backbone.vae = marked
    try:
        if float((_probe(backbone) - before).abs().max()) <= NO_EFFECT:
            raise ArtifactError(
                f"decoder: {decoder.path} makes the same pictures as the base model's, so it carries no mark; "
                "was it trained? fuse the adapter again"
            )
        yield
    finally:
        backbone.vae = own


def _check_base(backbone: Backbone, decoder: Decoder) -> None:
    header, found = decoder.header, fingerprint_of(backbone.path / "vae")
    if header.base_fingerprint != found:
        raise ArtifactError(
            f"decoder: {decoder.path} was made for the autoencoder of {header.base_model!r} (fingerprint "
            f"{header.base_fingerprint[:12]}), but the model in use is {backbone.name!r} ({found[:12]}); generate with "
            f"{header.base_model!r}, or mark the decoder of {backbone.name!r}"
        )


def _check_shape(own: nn.Module, marked: nn.Module, decoder: Decoder) -> None:
    shapes = [{name: tensor.shape for name, tensor in vae.state_dict().items()} for vae in (own, marked)]
    # A backbone may have released its encoder.
    differ = [name for name, shape in shapes[0].items() if shapes[1].get(name) != shape]
    if differ or type(own) is not type(marked):
        raise ArtifactError(
            f"decoder: {decoder.path} has another shape than the base model's ({len(differ)} tensors, for example "
            f"{differ[:1]}); fuse the adapter again"
        )


@torch.no_grad()
def _probe(backbone: Backbone) -> Tensor:
    """Return what fixed latents are decoded to."""
    return backbone.decode(torch.randn((1, *backbone.latent_shape), generator=stream(0, "probe")))
