"""Sparse-linear attention in a file: projections, shares, settings and whatever else a fine-tune changed.

diffusers writes the weights of processors and drops them when it loads (a test holds it to that), so they travel in an
artifact of their own:

    processors.LAYER.weight, processors.LAYER.bias      projections, float32
    processors.LAYER.mix                                shares of the heads, float32, unless mix is 0 in the settings
    lora.KEY                                            factors of a LoRA in peft's names, where one was trained
    weights.NAME                                        the model's own weights, where all were trained

and `config` of the header holds the settings, the layers, and peft's configuration of the LoRA.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from lrdiff.artifact import Artifact, Header
from lrdiff.errors import ArtifactError, ConfigError
from lrdiff.inject import attach, eject, state
from lrdiff.sla.models import processors, put_in, take_out
from lrdiff.sla.processor import SlaProcessor
from lrdiff.sla.settings import SlaSettings

ADAPTER = "sla"
"""In the header of an artifact."""
PROCESSORS, LORA, WEIGHTS = "processors.", "lora.", "weights."


def tensors(
    model: nn.Module, lora: str | None = None, weights: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Collect what was learned from a model with sparse-linear attention, as copies in float32 on the CPU.

    Args:
        model: The denoiser.
        lora: Name of a LoRA inside it that belongs to the fine-tune.
        weights: The model's own weights that were trained, by name.
    """
    found = {PROCESSORS + key: value for key, value in _processors(model)}
    if lora is not None:
        found |= {LORA + key: value for key, value in state(model, lora).items()}
    found |= {WEIGHTS + key: value for key, value in (weights or {}).items()}
    return {key: value.detach().float().cpu().clone() for key, value in found.items()}


def config(settings: SlaSettings, layers: list[str], lora: Any = None) -> dict[str, Any]:
    """Return the config of an artifact's header; `lora` is the peft configuration of a LoRA that belongs to it."""
    return {"settings": asdict(settings), "layers": layers, "lora": None if lora is None else lora.to_dict()}


def read_settings(header: Header) -> SlaSettings:
    """Return the settings an artifact was trained with.

    Raises:
        ArtifactError: It holds none that this version knows.
    """
    try:
        # Files from before there were shares have none.
        return SlaSettings(**{"mix": 0.0, **header.config["settings"]})
    except (KeyError, TypeError, ConfigError) as error:
        raise ArtifactError(f"the settings of sparse-linear attention in the file cannot be used ({error})") from error


@contextmanager
def attached(model: nn.Module, artifact: Artifact, name: str) -> Iterator[SlaSettings]:
    """Put what an artifact holds into a model, and at the end give the model back as it was.

    Args:
        model: The denoiser, changed in place. The caller has compared base fingerprints.
        artifact: Of adapter kind "sla".
        name: For the LoRA inside the model, where there is one.

    Yields:
        The settings.

    Raises:
        ArtifactError: Layers or shapes differ from the model's, or the header is damaged.
        TargetError: The model has nothing to replace.
    """
    settings = read_settings(artifact.header)
    groups = {prefix: _part(artifact.tensors, prefix) for prefix in (PROCESSORS, LORA, WEIGHTS)}
    own = {key.replace(".base_layer", ""): value for key, value in model.named_parameters()}
    layers = put_in(model, settings)
    before: dict[str, Tensor] = {}
    has_lora = False
    try:
        _check_layers(layers, artifact)
        _copy(dict(_processors(model)), groups[PROCESSORS], "projections and shares")
        if groups[WEIGHTS]:
            wanted = {key: own[key] for key in groups[WEIGHTS] if key in own}
            before = {key: value.detach().clone() for key, value in wanted.items()}
            _copy(wanted, groups[WEIGHTS], "weights")
        if groups[LORA]:
            attach(model, _as_lora(artifact, groups[LORA]), name)
            has_lora = True
        yield settings
    finally:
        if has_lora:
            eject(model, name)
        with torch.no_grad():
            for key, value in before.items():
                own[key].copy_(value)
        take_out(model)


def _part(found: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}


def _processors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, processor in processors(model):
        yield from ((f"{name}.{key}", value) for key, value in _learned(processor))


def _learned(processor: SlaProcessor) -> Iterator[tuple[str, Tensor]]:
    """Yield what a processor has learned, under short names: its projection's and its shares."""
    yield from processor.proj.named_parameters()
    if processor.mix is not None:
        yield "mix", processor.mix


def _check_layers(layers: list[str], artifact: Artifact) -> None:
    trained = artifact.header.config.get("layers")
    if trained != layers:
        raise ArtifactError(
            f"trained on the attention of {len(trained or [])} layers, this model has {len(layers)} that can be "
            "replaced, or others; load it on the base model it was trained on"
        )


@torch.no_grad()
def _copy(into: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str) -> None:
    """Copy all tensors or none. Raises `ArtifactError` unless both have the same names and shapes."""
    wrong = into.keys() ^ given.keys()
    wrong |= {key for key in into.keys() & given.keys() if into[key].shape != given[key].shape}
    if wrong or not given:
        raise ArtifactError(
            f"{len(wrong)} {what} of sparse-linear attention are missing, without a place or of another shape (for "
            f"example {min(wrong, default='all')}); load it on the base model it was trained on"
        )
    for key, value in given.items():
        into[key].copy_(value)


def _as_lora(artifact: Artifact, factors: dict[str, Tensor]) -> Artifact:
    """Return the LoRA in an artifact as one of its own."""
    if not artifact.header.config.get("lora"):
        raise ArtifactError("holds factors of a LoRA but not its configuration; copy or train it again")
    header = replace(artifact.header, adapter="lora", config=artifact.header.config["lora"])
    return Artifact(tensors=factors, header=header)
