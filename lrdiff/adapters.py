"""Saved adapters in a backbone: read them, check that they belong and do something, take them out again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lrdiff.artifact import Artifact, sha256
from lrdiff.backbones import Backbone
from lrdiff.errors import ArtifactError
from lrdiff.generate_config import AdapterSpec
from lrdiff.inject import attach, eject, set_weights, tuner_layers
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
        spec: Strength and steps asked for.
        artifact: Its content.
        sha256: Of the file.
    """

    name: str
    file: Path
    spec: AdapterSpec
    artifact: Artifact
    sha256: str

    @property
    def weight(self) -> float:
        """Strength asked for."""
        return self.spec.weight


@dataclass(frozen=True, slots=True)
class Active:
    """The adapters inside a denoiser that have a strength.

    Attributes:
        weights: Strength by the adapter's name there.
        specs: What was asked for, by the same names.
    """

    weights: Mapping[str, float]
    specs: Mapping[str, AdapterSpec]

    def at(self, step: int, steps: int, scale: float = 1.0) -> dict[str, float]:
        """Return the strengths of those that act at a step, counted from 0; the others are to have no effect at all."""
        return {name: weight * scale for name, weight in self.weights.items() if self.specs[name].acts(step, steps)}


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
    return Adapter(name=name, file=file, spec=spec, artifact=artifact, sha256=sha256(file))


@contextmanager
def adapted(backbone: Backbone, adapters: Sequence[Adapter], scales: Sequence[float] = (1.0,)) -> Iterator[Active]:
    """Put adapters into a backbone, all active at their weights, whatever their steps; take them out again at the end.

    Args:
        backbone: Its denoiser is changed in place for the time of the `with` block.
        adapters: From `read_adapter`.
        scales: The factors on the weights that will be used. At the largest each adapter must change something.

    Yields:
        Those that have a strength.

    Raises:
        ArtifactError: An adapter is for another base model, does not fit, changes nothing, or has no strength and is
            asked for another than 1, or for a part of the steps.
        TargetError: No layer matches.
    """
    for adapter in adapters:
        header = adapter.artifact.header
        if header.component != backbone.component:
            use = {
                "vae": "merge a mark with lrdiff watermark fuse and give the result as decoder",
                "triplane": "show a head with lrdiff triplane render",
            }
            raise ArtifactError(
                f"{adapter.file}: a {header.method} adapter goes into the {header.component}, not into the "
                f"{backbone.component}; {use.get(header.component, 'give one that was trained on this model')}"
            )
        if header.base_fingerprint != backbone.fingerprint:
            raise ArtifactError(
                f"{adapter.file}: made for base model {header.base_model!r} (fingerprint "
                f"{header.base_fingerprint[:12]}), but the model in use is {backbone.name!r} "
                f"({backbone.fingerprint[:12]}); generate with {header.base_model!r}, or train on {backbone.name!r}"
            )
    weights: dict[str, float] = {}
    before = _probe(backbone) if adapters else None
    numbered = [(f"generate_{index}", adapter) for index, adapter in enumerate(adapters)]
    with ExitStack() as stack:
        for name, adapter in sorted(numbered, key=lambda pair: _goes_outside(pair[1])):
            strength = adapter.weight * max(map(abs, scales))
            if adapter.artifact.header.adapter == "sla":
                from lrdiff.sla.saved import attached  # imports every transformer that it knows

                _check_whole(adapter, scales)
                stack.enter_context(attached(backbone.denoiser, adapter.artifact, name))
            else:
                attach(backbone.denoiser, adapter.artifact, name)
                stack.callback(eject, backbone.denoiser, name)
                weights[name] = adapter.weight
                if strength != 0.0:
                    set_weights(backbone.denoiser, {name: strength})
            if strength != 0.0 and before is not None:
                _check_effect(before, _probe(backbone), adapter, strength)
        weights |= {name: 1.0 for name, adapter in numbered if name not in weights and _holds(backbone, name)}
        if weights:
            set_weights(backbone.denoiser, weights)
        yield Active(weights, {name: adapter.spec for name, adapter in numbered})


def _holds(backbone: Backbone, name: str) -> bool:
    """Tell whether any layer holds an adapter of this name."""
    return any(True for _ in tuner_layers(backbone.denoiser, name))


def _check_whole(adapter: Adapter, scales: Sequence[float]) -> None:
    """Raise `ArtifactError` where a strength or a range is asked for that sparse-linear attention does not have."""
    if (adapter.spec.begin, adapter.spec.end) != (0.0, 1.0):
        raise ArtifactError(
            f"{adapter.file}: sparse-linear attention is there at all steps or none; leave out @FROM-TO"
        )
    asked = {adapter.weight * scale for scale in scales}
    if asked != {1.0}:
        raise ArtifactError(
            f"{adapter.file}: sparse-linear attention is there or not, it has no strength; use weight 1 and scale 1 "
            f"(asked for {', '.join(f'{value:g}' for value in sorted(asked))})"
        )


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
