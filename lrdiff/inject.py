"""Put adapters into a model, say what matched, take them out again.

A thin layer over peft's in-place injection. It adds what peft leaves to the caller: zero matched layers is an error,
an incomplete state dict is an error, every injection reports its layers, and removal restores the very modules that
were there before. Adapter weights are float32, whatever the base model's number format.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import PeftConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

import lrdiff.tensor_lora.register  # noqa: F401 - makes the tensor_lora type known to peft
from lrdiff.artifact import Artifact
from lrdiff.errors import ArtifactError, LrdiffError, TargetError
from lrdiff.loading import alone


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
    """Insert a fresh adapter and make it the only trainable part of the model. Others stay as active as they were.

    Args:
        model: Changed in place; unchanged when this raises.
        config: Any peft config whose tuner works layer by layer.
        name: Name of the adapter inside the model.

    Raises:
        TargetError: No layer matches, a layer cannot be adapted, or the name is taken.
    """
    _insert(model, config, name)
    model.requires_grad_(False)
    for parameter in _parameters(model, name):
        parameter.requires_grad_(True)
    return report(model, name)


def attach(model: nn.Module, artifact: Artifact, name: str, weight: float = 1.0) -> Report:
    """Insert a saved adapter, frozen, with a strength. Other adapters stay as active and as trainable as they were.

    Args:
        model: Changed in place; unchanged when this raises. The caller has compared base fingerprints.
        artifact: Tensors and header of the adapter.
        name: Name of the adapter inside the model.
        weight: Strength; 0 is the base model, 1 the adapter as trained.

    Raises:
        ArtifactError: A tensor of the file has no place in the model, or the other way round.
        TargetError: No layer matches.
    """
    if not artifact.tensors:
        raise ArtifactError(f"adapter {name!r} holds no tensors: loading it would change nothing")
    _check_weight(name, weight)
    _insert(model, peft_config(artifact), name)
    try:
        _check_fit(state(model, name), artifact.tensors, name)
        set_peft_model_state_dict(model, dict(artifact.tensors), adapter_name=name)
        _scale(model, name, weight)
    except LrdiffError:
        eject(model, name)
        raise
    for parameter in _parameters(model, name):
        parameter.requires_grad_(False)
    return report(model, name)


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
    """Make exactly these adapters active, each with its strength. What is trainable stays so.

    Raises:
        TargetError: An adapter is absent, or its kind has no strength and a strength other than 1 was asked.
    """
    for name, weight in weights.items():
        if not any(True for _ in tuner_layers(model, name)):
            raise TargetError(f"no layer of the model holds an adapter named {name!r}")
        _check_weight(name, weight)
    for name, weight in weights.items():
        _scale(model, name, weight)
    with _same_trainability(model):
        for _, layer in tuner_layers(model):
            _activate(layer, [name for name in weights if name in held(layer)])


def eject(model: nn.Module, name: str) -> None:
    """Remove an adapter; layers that hold no other adapter become the original modules again.

    Raises:
        TargetError: No layer holds the adapter, or it is merged into the weights.
    """
    layers = list(tuner_layers(model, name))
    if not layers:
        raise TargetError(f"no layer of the model holds an adapter named {name!r}")
    if any(name in layer.merged_adapters for _, layer in layers):
        raise TargetError(f"adapter {name!r} is merged into the weights; unmerge it before removing it")
    with _same_trainability(model):
        for path, layer in layers:
            active = [other for other in active_adapters(layer) if other != name]
            layer.set_adapter(active, inference_mode=True)
            layer.delete_adapter(name)
            if held(layer):
                _activate(layer, active)
            else:
                parent_path, _, attribute = path.rpartition(".")
                # Not get_base_layer(): that would also drop another kind of adapter inside this one.
                setattr(model.get_submodule(parent_path), attribute, cast(Any, layer).base_layer)
    _forget(model, name)


def report(model: nn.Module, name: str) -> Report:
    """Describe an adapter that is in the model. Raises `TargetError` when no layer holds it."""
    layers = dict(tuner_layers(model, name))
    if not layers:
        raise TargetError(f"adapter {name!r} matched no layer; check target_modules against the model's layer names")
    parameters = sum(tensor.numel() for tensor in state(model, name).values())
    return Report(name=name, targets=tuple(layers), parameters=parameters)


def active_adapters(layer: BaseTunerLayer) -> list[str]:
    """Return the adapters that change the output of a layer now."""
    return [] if layer.disable_adapters else [name for name in layer.active_adapters if name in held(layer)]


@alone()
def _insert(model: nn.Module, config: PeftConfig, name: str) -> None:
    """Call peft; undo everything when it refuses; turn its ways of saying "nothing matched" into one error."""
    _check_name(model, name)
    active = {layer: active_adapters(layer) for _, layer in tuner_layers(model)}
    try:
        with _same_trainability(model), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are meant
            inject_adapter_in_model(config, model, adapter_name=name)
            for parameter in _parameters(model, name):
                parameter.data = parameter.data.float()
            for _, layer in tuner_layers(model):
                _activate(layer, active.get(layer, []) + ([name] if name in held(layer) else []))
    except Exception as error:
        if any(True for _ in tuner_layers(model, name)):
            eject(model, name)
        _forget(model, name)
        if isinstance(error, LrdiffError) or not isinstance(error, ValueError):
            raise
        raise TargetError(f"adapter {name!r} cannot be put into the model: {error}") from error


def _check_name(model: nn.Module, name: str) -> None:
    """Refuse names that are taken, or that peft would confuse with a part of the model."""
    if any(True for _ in tuner_layers(model, name)):
        raise TargetError(f"an adapter named {name!r} is already in the model; remove it first or choose another name")
    if "." in name or any(name in key.split(".") for key in model.state_dict()):
        raise TargetError(
            f"adapter name {name!r} is the name of a part of the model, or has a dot; choose another name"
        )


def _forget(model: nn.Module, name: str) -> None:
    """Drop an adapter's config; the last one takes peft's attribute with it."""
    configs = getattr(model, "peft_config", {})
    configs.pop(name, None)
    if not configs and hasattr(model, "peft_config"):
        del model.peft_config


def _activate(layer: BaseTunerLayer, names: list[str]) -> None:
    """Make exactly these adapters of a layer change its output. Leaves all of them frozen."""
    layer.enable_adapters(bool(names))
    if names:
        layer.set_adapter(names, inference_mode=True)


def _check_weight(name: str, weight: float) -> None:
    if not math.isfinite(weight):
        raise TargetError(f"the weight of adapter {name!r} is {weight}; give a finite number")


def _scale(model: nn.Module, name: str, weight: float) -> None:
    """Set the strength of an adapter on all its layers."""
    for path, layer in tuner_layers(model, name):
        # peft's rotations have the method but nothing that it could set; with DoRA, strength 0 is not the base model.
        scalable = hasattr(layer, "scaling") and not getattr(layer, "use_dora", {}).get(name)
        set_scale = getattr(layer, "set_scale", None) if scalable else None
        if set_scale is not None:
            set_scale(name, weight)
        elif weight != 1.0:
            raise TargetError(f"{type(layer).__name__} at {path} cannot be scaled; use weight 1 for {name!r}")


def _parameters(model: nn.Module, name: str) -> Iterator[nn.Parameter]:
    """Yield the parameters of one adapter."""
    for _, layer in tuner_layers(model, name):
        for attribute in layer.adapter_layer_names:
            store = getattr(layer, attribute)
            if name in store:
                value = store[name]
                yield from [value] if isinstance(value, nn.Parameter) else value.parameters()


@contextmanager
def _same_trainability(model: nn.Module) -> Iterator[None]:
    """Give every parameter that is still there its `requires_grad` back: peft trains whatever it makes active."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        yield
    finally:
        for parameter in model.parameters():
            if parameter in before:
                parameter.requires_grad_(before[parameter])


def _check_fit(wanted: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], name: str) -> None:
    """Raise `ArtifactError` unless both have the same tensors of the same shapes."""
    missing, unexpected = wanted.keys() - given.keys(), given.keys() - wanted.keys()
    shapes = {key for key in wanted.keys() & given.keys() if wanted[key].shape != given[key].shape}
    if missing or unexpected or shapes:
        raise ArtifactError(
            f"adapter {name!r} does not fit this model: {len(missing)} tensors missing, {len(unexpected)} without a "
            f"place, {len(shapes)} of another shape (for example {min(missing | unexpected | shapes)}); "
            "load it on the base model it was trained on"
        )
