"""Writes a generator the way the published ones are pickled: same class structure, random weights of our own."""

from __future__ import annotations

import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from lrdiff.triplane.generator import TriplaneGenerator
from lrdiff.triplane.layers import Linear

SOURCE = "raise SystemExit('the source text of the pickle was run')"
PLAIN = {
    "training.triplane": ["OSGDecoder"],
    "training.volumetric_rendering.renderer": ["ImportanceRenderer"],
    "training.volumetric_rendering.ray_sampler": ["RaySampler"],
    "training.volumetric_rendering.ray_marcher": ["MipRayMarcher2"],
}
PERSISTENT = {
    "": "TriPlaneGenerator", "backbone": "Generator", "backbone.mapping": "MappingNetwork",
    "backbone.synthesis": "SynthesisNetwork", "superresolution": "SuperresolutionHybrid8XDC",
}  # fmt: skip


@contextmanager
def foreign_modules() -> Iterator[dict[str, Any]]:
    """Provide, only while writing, modules of the names that a published pickle refers to."""
    names = ["dnnlib", "dnnlib.util", "torch_utils", "torch_utils.persistence", "training"]
    names += ["training.volumetric_rendering", *PLAIN]
    made = {name: types.ModuleType(name) for name in names}
    easy = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})

    def _reconstruct_persistent_obj(meta: Any) -> None:
        raise AssertionError("only its name is written")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    made["dnnlib.util"].EasyDict = easy  # pyright: ignore[reportAttributeAccessIssue]
    made["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj  # pyright: ignore
    for module, classes in PLAIN.items():
        for name in classes:
            setattr(made[module], name, type(name, (nn.Module,), {"__module__": module}))
    sys.modules.update(made)
    try:
        yield made
    finally:
        for name in names:
            del sys.modules[name]


class Persistent:
    """Pickles as the reconstruction of a class from its source text."""

    def __init__(self, modules: dict[str, Any], name: str, state: Any) -> None:
        self.modules, self.name, self.state = modules, name, state

    def __reduce__(self) -> tuple[Any, tuple[Any]]:
        meta = self.modules["dnnlib.util"].EasyDict(
            type="class", version=6, module_src=SOURCE, class_name=self.name, state=self.state
        )
        return self.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


def build(generator: TriplaneGenerator, settings: dict[str, Any], modules: dict[str, Any]) -> Persistent:
    """Return a generator as a tree of objects that pickle like the published classes."""

    def tree(name: str, module: nn.Module) -> Any:
        children = OrderedDict(
            (key, tree(f"{name}.{key}" if name else key, child)) for key, child in module.named_children()
        )
        if name == "decoder":
            made = modules["training.triplane"].OSGDecoder()
            made.__dict__["_modules"] = children
            return made
        if name == "decoder.net":
            made = nn.Sequential()
            made.__dict__["_modules"] = children
            return made
        if isinstance(module, nn.Softplus):
            return nn.Softplus()
        buffers = OrderedDict((key, value) for key, value in module.named_buffers(recurse=False))
        state: dict[str, Any] = {
            "training": True, "_parameters": OrderedDict(module.named_parameters(recurse=False)),
            "_buffers": buffers, "_modules": children, "_non_persistent_buffers_set": set(),
        }  # fmt: skip
        if isinstance(module, Linear):
            state |= {"weight_gain": module.weight_gain, "bias_gain": module.bias_gain, "activation": "linear"}
        if name.endswith("conv1"):
            buffers["scratch"] = module.bias.detach().clone()  # pyright: ignore
            state["_non_persistent_buffers_set"] = {"scratch"}
            return Persistent(modules, "SynthesisLayer", ({}, state))
        if not name:
            state |= settings
            state["_modules"]["renderer"] = modules["training.volumetric_rendering.renderer"].ImportanceRenderer()
            state["_modules"]["ray_sampler"] = modules["training.volumetric_rendering.ray_sampler"].RaySampler()
        return Persistent(modules, PERSISTENT.get(name, "SynthesisLayer"), state)

    return tree("", generator)


def write(path: Path, generator: TriplaneGenerator, extra: dict[str, Any] | None = None, **rendering: Any) -> Path:
    """Pickle a generator as published. `rendering` are its rendering options, `extra` further entries of the file."""
    with foreign_modules() as modules:
        easy = modules["dnnlib.util"].EasyDict
        settings = {
            "neural_rendering_resolution": 6,
            "rendering_kwargs": easy(rendering, reg=np.float64(0.25)),
            "_init_kwargs": easy(channel_base=32768, mapping_kwargs=easy(num_layers=2)),
        }
        content = {"G": None, "D": None, "G_ema": build(generator, settings, modules)} | (extra or {})
        path.write_bytes(pickle.dumps(content, protocol=4))
    return path
