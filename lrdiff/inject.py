"""Put adapters into a model, say what matched, take them out again.

A thin layer over peft's in-place injection. It adds what peft leaves to the caller: zero matched layers is an error,
an incomplete state dict is an error, every injection reports its layers, and removal restores the very modules that
were there before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from peft import PeftConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

import lrdiff.tensor_lora.register  # noqa: F401 - makes the tensor_lora type known to peft
from lrdiff.artifact import Artifact
from lrdiff.errors import ArtifactError, TargetError


@dataclass(frozen=True, slots=True)
class Report:
    """What an injection did.

    Attributes:
        name: The adapter's name inside the model.
        targets: Names of the adapted layers, in model order.
        parameters: Number of adapter parameters.
    """

    name: str
    targets: tuple[str, ...]
    parameters: int


def tuner_layers(model: nn.Module, name: str | None = None) -> Iterator[tuple[str, BaseTunerLayer]]:
    """Yield the adapted layers of a model; with `name`, only those that hold that adapter."""
    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and (name is None or name in held(module)):
            yield path, module


def held(layer: BaseTunerLayer) -> set[str]:
    """Return the names of the adapters a layer holds."""
    names: set[str] = set()
    for attribute in layer.adapter_layer_names:
        store = getattr(layer, attribute, {})
        names.update(store.keys())
    return names


def inject(model: nn.Module, config: PeftConfig, name: str) -> Report:
    """Insert a fresh adapter and make it the only trainable part of the model.

    Args:
        model: Changed in place.
        config: Any peft config whose tuner works layer by layer.
        name: Name of the adapter inside the model.

    Raises:
        TargetError: No layer matches, a layer cannot be adapted, or the name is taken.
    """
    if any(True for _ in tuner_layers(model, name)):
        raise TargetError(f"an adapter named {name!r} is already in the model; remove it first or choose another name")
    model.requires_grad_(False)
    _inject(model, config, name)
    return report(model, name)


def attach(model: nn.Module, artifact: Artifact, name: str, weight: float = 1.0) -> Report:
    """Insert a saved adapter, frozen, with a strength.

    Args:
        model: Changed in place. The caller has compared base fingerprints.
        artifact: Tensors and header of the adapter.
        name: Name of the adapter inside the model.
        weight: Strength; 0 is the base model, 1 the adapter as trained.

    Raises:
        ArtifactError: A tensor of the file has no place in the model, or the other way round.
        TargetError: No layer matches.
    """
    config = peft_config(artifact)
    expected = inject(model, config, name)
    if not artifact.tensors:
        raise ArtifactError(f"adapter {name!r} holds no tensors: loading it would change nothing")
    wanted = state(model, name)
    missing, unexpected = set(wanted) - set(artifact.tensors), set(artifact.tensors) - set(wanted)
    shapes = [k for k in set(wanted) & set(artifact.tensors) if wanted[k].shape != artifact.tensors[k].shape]
    if missing or unexpected or shapes:
        eject(model, name)
        raise ArtifactError(
            f"adapter {name!r} does not fit this model: {len(missing)} tensors missing, {len(unexpected)} without a "
            f"place, {len(shapes)} of another shape (for example {sorted(missing | unexpected | set(shapes))[0]}); "
            "load it on the base model it was trained on"
        )
    set_peft_model_state_dict(model, dict(artifact.tensors), adapter_name=name)
    model.requires_grad_(False)
    set_weights(model, {name: weight})
    return expected


def peft_config(artifact: Artifact) -> PeftConfig:
    """Rebuild the adapter's peft config from the artifact's header. Raises `ArtifactError` for an unknown kind."""
    kind = artifact.header.adapter.upper()
    known = {str(key.value): value for key, value in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if kind not in known:
        raise ArtifactError(f"adapter kind {artifact.header.adapter!r} is unknown; known kinds: {sorted(known)}")
    try:
        return known[kind](**artifact.header.config)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"the {artifact.header.adapter} config in the file cannot be used ({error})") from error


def state(model: nn.Module, name: str) -> dict[str, torch.Tensor]:
    """Return the tensors of one adapter, keyed without the adapter's name."""
    configs = getattr(model, "peft_config", {})
    if name not in configs:
        raise TargetError(f"no adapter named {name!r} in the model; present: {sorted(configs)}")
    found = get_peft_model_state_dict(model, adapter_name=name)
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING[configs[name].peft_type]
    return {key: value for key, value in found.items() if f".{prefix}" in f".{key}"}


def set_weights(model: nn.Module, weights: Mapping[str, float]) -> None:
    """Make exactly these adapters active, each with its strength.

    Raises:
        TargetError: An adapter is absent, or its kind has no strength and a strength other than 1 was asked.
    """
    for name, weight in weights.items():
        layers = list(tuner_layers(model, name))
        if not layers:
            raise TargetError(f"no layer of the model holds an adapter named {name!r}")
        for path, layer in layers:
            set_scale = getattr(layer, "set_scale", None)
            if set_scale is not None:
                set_scale(name, weight)
            elif weight != 1.0:
                raise TargetError(f"{type(layer).__name__} at {path} cannot be scaled; use weight 1 for {name!r}")
    for _, layer in tuner_layers(model):
        active = [name for name in weights if name in held(layer)]
        layer.enable_adapters(bool(active))
        if active:
            layer.set_adapter(active)
    # peft makes the adapters it activates trainable; here they are only used.
    model.requires_grad_(False)


def eject(model: nn.Module, name: str) -> None:
    """Remove an adapter; layers that hold no other adapter become the original modules again.

    Raises:
        TargetError: No layer holds the adapter.
    """
    layers = list(tuner_layers(model, name))
    if not layers:
        raise TargetError(f"no layer of the model holds an adapter named {name!r}")
    for path, layer in layers:
        layer.delete_adapter(name)
        if not held(layer):
            parent_path, _, attribute = path.rpartition(".")
            setattr(model.get_submodule(parent_path), attribute, layer.get_base_layer())
    configs = getattr(model, "peft_config", None)
    if configs is not None:
        configs.pop(name, None)


def report(model: nn.Module, name: str) -> Report:
    """Describe an adapter that is in the model. Raises `TargetError` when no layer holds it."""
    layers = dict(tuner_layers(model, name))
    if not layers:
        raise TargetError(f"adapter {name!r} matched no layer; check target_modules against the model's layer names")
    parameters = sum(tensor.numel() for tensor in state(model, name).values())
    return Report(name=name, targets=tuple(layers), parameters=parameters)


def _inject(model: nn.Module, config: PeftConfig, name: str) -> None:
    """Call peft; turn its ways of saying "nothing matched" into one error."""
    try:
        inject_adapter_in_model(config, model, adapter_name=name)
    except ValueError as error:
        getattr(model, "peft_config", {}).pop(name, None)
        raise TargetError(f"adapter {name!r} cannot be put into the model: {error}") from error
