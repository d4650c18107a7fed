"""The methods by name. A method's code is imported only when it is chosen."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from lrdiff.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a method lives.

    Attributes:
        summary: One line for lists and help texts.
        config: Dotted path `module:Class` of its settings, importable without torch.
        method: Dotted path `module:Class` of its Method.
        run: Dotted path `module:Class` of its run configuration, where it has other defaults or rules than the rest.
    """

    summary: str
    config: str
    method: str
    run: str = ""


METHODS: dict[str, Entry] = {
    "tensor-lora": Entry(
        "a subject or style from a few images, in a small tensor-ring transform and a residual",
        "trainers.denoise.config:TensorLoraSettings",
        "trainers.denoise.method:Denoise",
    ),
    "lora": Entry(
        "the same with plain LoRA, for comparison and for other tools",
        "trainers.denoise.adapters:LoraSettings",
        "trainers.denoise.method:Denoise",
    ),
    "dora": Entry(
        "LoRA that learns the length of every weight column apart, for comparison",
        "trainers.denoise.adapters:DoraSettings",
        "trainers.denoise.method:Denoise",
    ),
    "loha": Entry(
        "products of two low-rank updates, for comparison",
        "trainers.denoise.adapters:LohaSettings",
        "trainers.denoise.method:Denoise",
    ),
    "lokr": Entry(
        "Kronecker products of small matrices, for comparison",
        "trainers.denoise.adapters:LokrSettings",
        "trainers.denoise.method:Denoise",
    ),
    "oft": Entry(
        "rotations of the layers' inputs in blocks, for comparison",
        "trainers.denoise.adapters:OftSettings",
        "trainers.denoise.method:Denoise",
    ),
    "boft": Entry(
        "scaled rotations of the layers' inputs, for comparison",
        "trainers.denoise.adapters:BoftSettings",
        "trainers.denoise.method:Denoise",
    ),
    "alignprop": Entry(
        "towards a reward, by sending its gradient back through the sampler",
        "trainers.alignprop.config:AlignPropSettings",
        "trainers.alignprop.method:AlignProp",
        "trainers.alignprop.config:AlignPropRun",
    ),
    "sla": Entry(
        "sparse-linear attention in a diffusion transformer, fine-tuned so that quality stays",
        "trainers.sla.config:SlaSettings",
        "trainers.sla.method:Sla",
    ),
    "watermark": Entry(
        "a key's bits in every picture that a decoder makes, to be merged into it and verified later",
        "trainers.watermark.config:WatermarkSettings",
        "trainers.watermark.method:Watermark",
        "trainers.watermark.config:WatermarkRun",
    ),
    "my3dgen": Entry(
        "a personal 3D head from about ten photos: anchors, then a low-rank change of a generator",
        "trainers.my3dgen.config:My3DGenSettings",
        "trainers.my3dgen.method:My3DGen",
        "trainers.my3dgen.config:My3DGenRun",
    ),
}


def entry(name: str) -> Entry:
    """Return a method's entry. Raises `ConfigError` with the known names when there is none."""
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}; known methods: {', '.join(METHODS)}")
    return METHODS[name]


def config_class(name: str) -> Any:
    """Return the class of a method's settings."""
    return _resolve(entry(name).config)


def method_class(name: str) -> Any:
    """Return a method's class; imports torch."""
    return _resolve(entry(name).method)


def run_config_class(name: str) -> Any:
    """Return the run configuration with the method's settings filled in: `RunConfig[Settings of the method]`."""
    from trainers.config import RunConfig

    own = entry(name).run
    return _resolve(own) if own else RunConfig[config_class(name)]


def _resolve(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)
