"""What a decoder is trained on: latents that the base model generated, and latents of encoded photos.

Generating is by far the slowest part on a CPU, so the latents are kept in the user's cache folder, under a name that
everything which decides them goes into.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from lrdiff.artifact import versions
from lrdiff.backbones import Backbone
from lrdiff.files import write_bytes
from lrdiff.rng import derive, stream
from lrdiff.sampling import SAMPLERS
from lrdiff.world.captions import caption
from lrdiff.world.toys import sample_scenes

log = logging.getLogger(__name__)

BATCH = 8


def world_prompts(count: int, seed: int, name: str) -> list[str]:
    """Return captions of random scenes of the toy world."""
    # A data set of its own: scene numbers of another one would give the pictures that toys was trained on.
    scenes = sample_scenes(derive(seed, name) % 2**31, range(count))
    return [caption(scene, stream(seed, name, number)) for number, scene in enumerate(scenes)]


def generated(
    backbone: Backbone,
    model: Mapping[str, Any],
    prompts: Sequence[str],
    *,
    name: str,
    seed: int,
    steps: int,
    guidance: float,
) -> Tensor:
    """Return the latents of generated pictures, from the cache or freshly made.

    Args:
        backbone: The model; its encoders must still be there.
        model: Digests of all its files.
        prompts: One for each picture.
        name: Of the random stream; picture i starts from noise of (seed, name, i).
        seed: Of the run.
        steps: Sampling steps.
        guidance: Strength of the prompt; 1 is off.

    Returns:
        Scaled latents [N, C, h, w], float32, on the CPU.
    """
    kind = {"prompts": list(prompts), "name": name, "seed": seed, "steps": steps, "guidance": guidance}
    place = {"device": backbone.device.type, "dtype": str(backbone.dtype), "batch": BATCH}
    text = json.dumps({"model": model, "versions": versions(), **kind, **place}, sort_keys=True)
    path = cache_folder() / "latents" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"
    shape = (len(prompts), *backbone.latent_shape)
    known = _read(path, shape)
    if known is not None:
        return known
    log.info("generating %d pictures (%s); kept in %s for the next run", len(prompts), name, path.parent)
    parts = [
        _sample(backbone, prompts[start : start + BATCH], start, name, seed, steps, guidance)
        for start in range(0, len(prompts), BATCH)
    ]
    latents = torch.cat(parts)
    _write(path, latents)
    return latents


@torch.no_grad()
def _sample(
    backbone: Backbone, prompts: Sequence[str], first: int, name: str, seed: int, steps: int, guidance: float
) -> Tensor:
    rngs = [stream(seed, name, first + number) for number in range(len(prompts))]
    noise = torch.stack([torch.randn(backbone.latent_shape, generator=rng) for rng in rngs]).to(backbone.device)
    cond = backbone.condition(prompts)
    uncond = backbone.condition([""] * len(prompts)) if guidance != 1.0 else None
    times = backbone.schedule.timesteps(steps)
    return SAMPLERS["ddim"](backbone.predict, noise, cond, uncond, backbone.schedule, times, guidance).float().cpu()


def cache_folder() -> Path:
    """Return the folder for what can be made again: `$XDG_CACHE_HOME/lrdiff`, by default `~/.cache/lrdiff`."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification asks to ignore a relative path.
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "lrdiff"


def _read(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """Return cached latents, or None where there are none that can be used."""
    if not path.is_file():
        return None
    try:
        latents = load_file(path)["latents"]
        if latents.shape != shape or not bool(latents.isfinite().all()):
            raise ValueError(f"has shape {list(latents.shape)} or is not finite")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        log.warning("%s: cannot be used (%s); the pictures are generated again", path, error)
        return None
    return latents


def _write(path: Path, latents: Tensor) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, save({"latents": latents.contiguous()}))
    except OSError as error:
        # The run can go on; only the next one has to generate again.
        log.warning("%s: cannot be written (%s); the generated pictures are not kept", path, error)
