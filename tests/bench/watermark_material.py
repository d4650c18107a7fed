"""What the watermark's benchmarks measure on: generated latents, rendered scenes, marked decoders; kept in .cache."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from lrdiff.adapters import read_adapter
from lrdiff.artifact import Artifact
from lrdiff.backbones import Backbone
from lrdiff.decoders import fingerprint_of, load_vae
from lrdiff.errors import DataError, RunError
from lrdiff.files import replacing, write_bytes
from lrdiff.generate_config import AdapterSpec
from lrdiff.images import EXTENSIONS, read_image, to_image
from lrdiff.rng import stream
from lrdiff.sampling import SAMPLERS
from lrdiff.watermark.publish import publish
from lrdiff.watermark.reading import Network
from lrdiff.watermark.verifier import new_key
from lrdiff.world.captions import held_out_captions
from lrdiff.world.render import render
from lrdiff.world.toys import sample_scenes
from trainers.run import execute
from trainers.rundir import RunDir, create
from trainers.watermark.config import WatermarkRun

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "bench"
SEED = 7
"""Of captions, noise and scenes; training uses others."""
PART, BATCH = 50, 10

log = logging.getLogger(__name__)


@torch.no_grad()
def generated(backbone: Backbone, count: int, steps: int, guidance: float) -> Tensor:
    """Return scaled latents [count, C, h, w] of pictures of held-out captions, made once and kept.

    Picture i depends on i alone, and the cache grows part by part, so an interrupted run goes on where it was.
    """
    folder = CACHE / f"latents-{backbone.fingerprint[:12]}-{steps}-{guidance:g}"
    folder.mkdir(parents=True, exist_ok=True)
    texts = [text for text, _ in held_out_captions(count, SEED)]
    parts = []
    for first in range(0, count, PART):
        path = folder / f"{first:05d}.safetensors"
        if not path.exists():
            log.info("generating pictures %d to %d of %d", first, min(count, first + PART), count)
            numbers = range(first, min(count, first + PART))
            made = [
                _sample(backbone, texts, numbers[at : at + BATCH], steps, guidance)
                for at in range(0, len(numbers), BATCH)
            ]
            with replacing(path) as temporary:
                save_file({"latents": torch.cat(made)}, temporary)
        parts.append(load_file(path)["latents"])
    latents = torch.cat(parts)[:count]
    if len(latents) < count:
        raise DataError(f"{folder}: holds parts of a smaller set; remove the folder")
    return latents


def _sample(backbone: Backbone, texts: Sequence[str], numbers: Sequence[int], steps: int, guidance: float) -> Tensor:
    noise = torch.stack(
        [torch.randn(backbone.latent_shape, generator=stream(SEED, "latents", number)) for number in numbers]
    ).to(backbone.device)
    cond = backbone.condition([texts[number] for number in numbers])
    uncond = backbone.condition([""] * len(numbers)) if guidance != 1.0 else None
    times = backbone.schedule.timesteps(steps)
    sampler = SAMPLERS["dpm++2m"]
    return sampler(backbone.predict, noise, cond, uncond, backbone.schedule, times, guidance).float().cpu()


def mosaic(latents: Tensor, across: int) -> Tensor:
    """Lay across x across latents side by side as one: a larger decode of generated content."""
    count = len(latents) // across**2
    _, channels, height, width = latents.shape
    grid = latents[: count * across**2].view(count, across, across, channels, height, width)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(count, channels, across * height, across * width)


@torch.no_grad()
def decoded(backbone: Backbone, vae: Any, latents: Tensor, batch: int = 8) -> list[Image.Image]:
    """Return the 8-bit pictures an autoencoder of the backbone's family makes of scaled latents."""
    own = backbone.vae
    backbone.vae = vae
    try:
        return [to_image(image) for part in latents.split(batch) if len(part) for image in backbone.decode(part)]
    finally:
        backbone.vae = own


def scenes(count: int) -> list[Image.Image]:
    """Return rendered scenes of one seed that trained nothing, rendered once and kept."""
    folder = CACHE / f"scenes-{SEED}"
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Image.Image] = []
    for first in range(0, count, PART):
        path = folder / f"{first:05d}.npy"
        if not path.exists():
            log.info("rendering scenes %d to %d of %d", first, first + PART, count)
            images = render(sample_scenes(SEED, range(first, first + PART))).images
            pixels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, pixels)
        found += [Image.fromarray(pixels) for pixels in np.load(path)]
    return found[:count]


def photos(folder: Path | None) -> list[Image.Image]:
    """Return the pictures of a folder and its subfolders; none without a folder."""
    if folder is None:
        return []
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
    if not files:
        raise DataError(f"{folder}: no photos here")
    return [read_image(path) for path in files]


@dataclass(frozen=True)
class Marked:
    """A decoder that carries a key.

    Attributes:
        key: Its bits.
        vae: The autoencoder with the mark merged in.
        facts: Parameters, sizes in bytes, seconds of training, seconds to 99 % of bits, last measured figures.
    """

    key: str
    vae: Any
    facts: dict[str, Any]


def marked(number: int, extractor: Network, extractor_file: Path, base: Path, settings: dict[str, Any]) -> Marked:
    """Train decoder `number` with the `watermark` method and merge it, or take it from the cache.

    All decoders learn from the same pictures with the same seed; only the keys differ, drawn from the system's source
    of randomness.

    Args:
        number: Names the decoder.
        extractor: The reader.
        extractor_file: Its file or folder.
        base: Folder of the base model.
        settings: Of the run, over the defaults.
    """
    named = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{extractor.sha256()[:12]}-{fingerprint_of(base / 'vae')[:12]}-{named}-{number}"
    folder = CACHE / "decoders" / name
    folder.mkdir(parents=True, exist_ok=True)
    secret, run, out = folder / f"bench-{number}.txt", RunDir(folder / "run"), folder / "decoder"
    if not secret.exists():
        write_bytes(secret, new_key(extractor.bits).encode())
    if not out.exists():
        log.info("training decoder %d", number)
        method = {"bits_file": secret, "extractor": extractor_file, **settings.get("method", {})}
        config = WatermarkRun.model_validate({**settings, "model": str(base), "method": method})
        begun = run.path.exists()
        made = run if begun else create(run.path, "watermark", config.model_dump(mode="json"))
        if execute(made, resume=begun) != "finished":
            raise RunError(f"{run.path}: stopped; the same command goes on from there")
        publish(read_adapter(AdapterSpec(run.path, 1.0)), out, str(base))
    return Marked(secret.read_text(), load_vae(out), facts(run, out))


def facts(run: RunDir, out: Path) -> dict[str, Any]:
    """Gather what training a decoder cost and what came out."""
    record, rows = run.read(), run.metrics()
    found = [row for row in rows if "accuracy_generated" in row]
    there = next((row["step"] for row in found if row["accuracy_generated"] >= 0.99), None)
    last = found[-1] if found else {}
    return {
        "parameters": sum(tensor.numel() for tensor in Artifact.load(run.artifact_path).tensors.values()),
        "adapter_bytes": run.artifact_path.stat().st_size,
        "decoder_bytes": sum(path.stat().st_size for path in out.glob("*.safetensors")),
        "steps": record.get("step"),
        "seconds": training_seconds(rows, record.get("step") or 0),
        "steps_to_99": there,
        "seconds_to_99": None if there is None else training_seconds(rows, there),
        "measured": {name: last[name] for name in last if name.startswith(("accuracy", "psnr"))},
    }


def training_seconds(rows: Sequence[dict[str, Any]], until: int) -> float:
    """Return the time of all steps up to one, without evaluations, checkpoints and the making of pictures."""
    total, before = 0.0, 0
    for row in rows:
        if "seconds_per_step" in row and before < until:
            total += row["seconds_per_step"] * (min(row["step"], until) - before)
            before = row["step"]
    return total
