"""From a trained mark to a decoder that may be given away: merged, written, read back and compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrdiff import backbones
from lrdiff.adapters import Adapter
from lrdiff.artifact import versions
from lrdiff.decoders import NO_EFFECT, DecoderHeader, fingerprint_of, load_vae, new_folder, write_header
from lrdiff.errors import ArtifactError, ModelError
from lrdiff.inject import attach
from lrdiff.rng import stream
from lrdiff.watermark.decoder import fuse

MARK = "mark"
TOLERANCE = 1e-3
"""Largest difference, with pixels in [-1, 1], between merged and unmerged: rounding of float32 over a deep decoder.
An 8-bit step is 8e-3."""


@dataclass(frozen=True, slots=True)
class Published:
    """What was written.

    Attributes:
        path: The folder.
        header: Its header.
        layers: Names of the layers that changed.
        rounding: Largest difference to what base and adapter decode to, with pixels in [-1, 1].
        change: Largest difference to what the base alone decodes to.
    """

    path: Path
    header: DecoderHeader
    layers: tuple[str, ...]
    rounding: float
    change: float


def check_mark(adapter: Adapter) -> None:
    """Raise `ArtifactError` unless the adapter is a watermark's."""
    header = adapter.artifact.header
    if header.component != "vae" or "key" not in header.extra:
        raise ArtifactError(
            f"{adapter.file}: a {header.method} adapter, not a watermark; give one of lrdiff train watermark"
        )


def publish(adapter: Adapter, out: Path, model: str | None = None) -> Published:
    """Merge a mark into its base model's decoder and write a whole autoencoder.

    Args:
        adapter: Of `lrdiff train watermark`.
        out: Folder to make.
        model: The base model; None takes the one it was trained on.

    Raises:
        ArtifactError: No watermark, for another base model, without effect, or the folder is there already.
        ModelError: The base model cannot be used, or what was written does not decode as base and adapter do.
    """
    check_mark(adapter)
    header = adapter.artifact.header
    folder = backbones.find(model or header.extra.get("model") or header.base_model) / "vae"
    found = fingerprint_of(folder)
    if found != header.base_fingerprint:
        raise ArtifactError(
            f"{adapter.file}: made for the autoencoder of {header.base_model!r} (fingerprint "
            f"{header.base_fingerprint[:12]}), but {folder} is another one ({found[:12]}); give the right one, --model"
        )
    vae = load_vae(folder)
    base = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    clean = _decode(vae)
    attach(vae, adapter.artifact, MARK)
    marked = _decode(vae)
    change = float((marked - clean).abs().max())
    if change <= NO_EFFECT:
        raise ArtifactError(
            f"{adapter.file}: leaves every picture as it was; was it trained, and saved after training?"
        )
    layers = fuse(vae, MARK).targets
    vae.register_to_config(_name_or_path="")  # else the folder of the base model on this machine is published too
    with new_folder(out) as temporary:
        vae.save_pretrained(temporary, safe_serialization=True)
        rounding = _check_written(temporary, base, layers, marked)
        made = DecoderHeader(
            key=header.extra["key"],
            extractor=header.extra["extractor"],
            adapter=adapter.sha256,
            base_model=header.base_model,
            base_fingerprint=found,
            fingerprint=fingerprint_of(temporary),
            versions=versions(),
        )
        write_header(temporary, made)
    return Published(out, made, layers, rounding, change)


def _check_written(folder: Path, base: dict[str, Tensor], layers: tuple[str, ...], marked: Tensor) -> float:
    """Read back what is on disk and compare; return the largest difference in pictures.

    Raises:
        ModelError: It decodes differently, or more than the marked layers changed, the encoder for one.
    """
    written = load_vae(folder)
    tensors = written.state_dict()
    expected = {f"{name}.weight" for name in layers}
    changed = {name for name in base.keys() | tensors.keys() if not _same(base.get(name), tensors.get(name))}
    if changed != expected:
        others = sorted(changed ^ expected)
        raise ModelError(f"{folder}: other layers than the marked ones differ from the base, for example {others[:1]}")
    rounding = float((_decode(written) - marked).abs().max())
    if not rounding <= TOLERANCE:
        raise ModelError(
            f"{folder}: what was written decodes differently from base and adapter, by {rounding:.1e}; nothing was kept"
        )
    return rounding


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and torch.equal(a, b)


@torch.no_grad()
def _decode(vae: nn.Module) -> Tensor:
    """Return what fixed latents are decoded to."""
    model: Any = vae
    latents = torch.randn((2, model.config.latent_channels, 8, 8), generator=stream(0, "probe"))
    return model.decode(latents).sample.float()
