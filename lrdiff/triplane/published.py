"""From the contents of a published pickle to a generator's folder."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch

from lrdiff.artifact import sha256
from lrdiff.errors import DataError
from lrdiff.triplane.config import TriplaneConfig, eg3d_config
from lrdiff.triplane.generator import TriplaneGenerator
from lrdiff.triplane.layers import Linear
from lrdiff.triplane.pickles import Pickled, read_pickle
from lrdiff.triplane.store import save

NOTICE = "official EG3D weights: research/evaluation only; supplied by the user"
VARIANTS = ("ffhq512", "afhq512", "cars128")
RENDER = {
    "depth_resolution": ("coarse", int),
    "depth_resolution_importance": ("fine", int),
    "ray_start": ("near", float),
    "ray_end": ("far", float),
    "box_warp": ("box", float),
    "white_back": ("white", bool),
}
"""Names in a file's `rendering_kwargs`, and ours."""


def import_pickle(path: Path, folder: Path, variants: dict[str, TriplaneConfig] | None = None) -> TriplaneConfig:
    """Turn a published pickle into a folder that `lrdiff.triplane.store.load` reads.

    Args:
        path: The .pkl file. Nothing in it is executed.
        folder: New folder for generator.safetensors and config.json.
        variants: Configurations to try, the published ones when left out.

    Returns:
        The configuration that was found.

    Raises:
        DataError: The file is no generator, or is of none of the known variants.
    """
    pickled = read_pickle(path)
    config = match(path, pickled, variants)
    with torch.device("meta"):
        generator = TriplaneGenerator(config)
    generator.load_state_dict({name: tensor.float() for name, tensor in pickled.tensors.items()}, assign=True)
    save(generator, folder, {"file": path.name, "sha256": sha256(path), "notice": NOTICE, "settings": pickled.settings})
    return config


def match(path: Path, pickled: Pickled, variants: dict[str, TriplaneConfig] | None = None) -> TriplaneConfig:
    """Return the configuration whose tensors are exactly those of a file, with the file's own settings put in.

    Args:
        path: Named in messages.
        pickled: Contents of the file.
        variants: Configurations to try, the published ones when left out.

    Raises:
        DataError: None of them fits; the message says where the nearest one differs.
    """
    found = {name: tuple(tensor.shape) for name, tensor in pickled.tensors.items()}
    misses = []
    for name, config in (variants or {name: eg3d_config(name) for name in VARIANTS}).items():
        with torch.device("meta"):
            generator = TriplaneGenerator(config)
        expected = {key: tuple(tensor.shape) for key, tensor in generator.state_dict().items()}
        if found == expected:
            return _with_settings(path, config, generator, pickled)
        wrong = [key for key in sorted(expected.keys() | found.keys()) if expected.get(key) != found.get(key)]
        misses.append((len(wrong), name, wrong[0]))
    count, name, first = min(misses)
    raise DataError(
        f"{path}: its {len(found)} tensors are those of no known generator; next is {name}, where {count} differ, "
        f"the first being {first}. Known are {', '.join(variants or VARIANTS)}"
    )


def _with_settings(
    path: Path, config: TriplaneConfig, generator: TriplaneGenerator, pickled: Pickled
) -> TriplaneConfig:
    settings = pickled.settings
    given = settings.get("rendering_kwargs")
    given = given if isinstance(given, dict) else {}
    render: dict[str, Any] = {}
    for theirs, (ours, kind) in RENDER.items():
        if _is_number(given.get(theirs)):  # "auto" and what is left out keep the published value
            render[ours] = kind(given[theirs])
    if _is_number(settings.get("neural_rendering_resolution")):
        render["side"] = int(settings["neural_rendering_resolution"])
    changes: dict[str, Any] = {"render": dataclasses.replace(config.render, **render)}
    if _is_number(given.get("c_gen_conditioning_zero")):
        changes["condition"] = not given["c_gen_conditioning_zero"]
    if _is_number(given.get("c_scale")):
        changes["condition_scale"] = float(given["c_scale"])
    if _is_number(given.get("decoder_lr_mul")):
        changes["decoder_gain"] = float(given["decoder_lr_mul"])
    changes["gains"] = _other_gains(path, generator, pickled)
    return dataclasses.replace(config, **changes)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _other_gains(path: Path, generator: TriplaneGenerator, pickled: Pickled) -> dict[str, tuple[float, float]]:
    """Return the gains in which a file differs from what follows from the sizes."""
    layers = {name: layer for name, layer in generator.named_modules() if isinstance(layer, Linear)}
    other = {}
    for name, (weight, bias) in pickled.gains.items():
        if name not in layers:
            raise DataError(f"{path}: states gains of {name}, which is no fully connected layer; copy it again")
        layer = layers[name]
        same = math.isclose(layer.weight_gain, weight, rel_tol=1e-6) and math.isclose(layer.bias_gain, bias)
        if not same:
            other[name] = (weight, bias)
    return other
