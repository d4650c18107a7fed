"""Saved adapters in a backbone: read them, check that they belong and do something, take them out again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lrdiff.artifact import Artifact, sha256
from lrdiff.backbones import Backbone
from lrdiff.errors import ArtifactError
from lrdiff.generate_config import AdapterSpec
from lrdiff.inject import attach, eject, set_weights
from lrdiff.rng import stream

NO_EFFECT = 1e-6
"""An adapter that changes the denoiser's output by less than this share of its largest value changes nothing: that is
the rounding of float32 (1.2e-7) after a few layers. One AdamW step at learning rate 1e-5 moves a small UNet by 5e-5."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A saved adapter that was read and checked.

    Attributes:
        name: For people: the file's or the run directory's name.
        file: The safetensors file.
        weight: Strength asked for.
        artifact: Its content.
        sha256: Of the file.
    """

    name: str
    file: Path
    weight: float
    artifact: Artifact
    sha256: str


def read_adapter(spec: AdapterSpec) -> Adapter:
    """Read an adapter file, or the one of a run directory.

    Raises:
        ArtifactError: There is none, or it is damaged.
    """
    file, name = spec.path, spec.path.stem
    if spec.path.is_dir():
        file, name = spec.path / "adapter.safetensors", spec.path.resolve().name
        if not file.is_file():
            raise ArtifactError(f"{spec.path}: holds no adapter.safetensors; has the run finished?")
    artifact = Artifact.load(file)
    return Adapter(name=name, file=file, weight=spec.weight, artifact=artifact, sha256=sha256(file))


@contextmanager
def adapted(backbone: Backbone, adapters: Sequence[Adapter], largest_scale: float = 1.0) -> Iterator[list[str]]:
    """Put adapters into a backbone, all active at their weights; take them out again at the end.

    Args:
        backbone: Its denoiser is changed in place for the time of the `with` block.
        adapters: From `read_adapter`.
        largest_scale: The factor on the weights at which each adapter must change something.

    Yields:
        The names of the adapters inside the denoiser.

    Raises:
        ArtifactError: An adapter is for another base model, does not fit, or changes nothing.
        TargetError: No layer matches.
    """
    for adapter in adapters:
        header = adapter.artifact.header
        if header.component != backbone.component:
            raise ArtifactError(
                f"{adapter.file}: a {header.method} adapter goes into the {header.component}, not into the "
                f"{backbone.component}; merge a mark with lrdiff watermark fuse and give the result as decoder"
            )
        if header.base_fingerprint != backbone.fingerprint:
            raise ArtifactError(
                f"{adapter.file}: made for base model {header.base_model!r} (fingerprint "
                f"{header.base_fingerprint[:12]}), but the model in use is {backbone.name!r} "
                f"({backbone.fingerprint[:12]}); generate with {header.base_model!r}, or train on {backbone.name!r}"
            )
    names = [f"generate_{index}" for index in range(len(adapters))]
    attached: list[str] = []
    before = _probe(backbone) if adapters else None
    try:
        for name, adapter in sorted(zip(names, adapters, strict=True), key=lambda pair: _goes_outside(pair[1])):
            attach(backbone.denoiser, adapter.artifact, name)
            attached.append(name)
            strength = adapter.weight * largest_scale
            if strength != 0.0 and before is not None:
                set_weights(backbone.denoiser, {name: strength})
                _check_effect(before, _probe(backbone), adapter, strength)
        if names:
            set_weights(backbone.denoiser, {name: a.weight for name, a in zip(names, adapters, strict=True)})
        yield names
    finally:
        for name in reversed(attached):
            eject(backbone.denoiser, name)


def _goes_outside(adapter: Adapter) -> bool:
    """Tensor-lora goes on first, whatever the order asked for: it must not be put around another kind (DECISIONS 3)."""
    return adapter.artifact.header.adapter != "tensor_lora"


def _probe(backbone: Backbone) -> Tensor:
    """Return the denoiser's output on one fixed input, in the middle of the schedule."""
    x = torch.randn((1, *backbone.latent_shape), generator=stream(0, "probe")).to(backbone.device)
    t = backbone.schedule.timesteps(3)[1:2]
    with torch.no_grad():
        return backbone.predict(x, t.to(backbone.device), backbone.condition(["a photo"]))


def _check_effect(before: Tensor, after: Tensor, adapter: Adapter, strength: float) -> None:
    """Raise `ArtifactError` when the output is the same with the adapter as without."""
    if float((after - before).abs().max()) <= NO_EFFECT * float(before.abs().max()):
        raise ArtifactError(
            f"{adapter.file}: at weight {strength:g} it leaves the model's output as it was; was it trained, and saved "
            "after training?"
        )
