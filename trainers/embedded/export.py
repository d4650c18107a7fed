"""From training runs to the folders that are shipped: diffusers' layout for `toys`, two files for a probe."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, DDIMScheduler, PixArtAlphaPipeline, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from lrdiff.errors import RunError
from lrdiff.files import write_json
from lrdiff.png import writable
from lrdiff.rng import stream
from trainers.embedded.extractor import ExtractorConfig, TrainExtractor
from trainers.embedded.head_probes import TrainHeadProbe
from trainers.embedded.latents import moments
from trainers.embedded.probe import TrainProbe
from trainers.embedded.shards import Shards
from trainers.embedded.toys_dit import ToysDit, ToysDitConfig
from trainers.embedded.toys_dit_parts import build_scheduler
from trainers.embedded.toys_unet import SCHEDULER, ToysUnet, ToysUnetConfig
from trainers.embedded.toys_vae import ToysVae, ToysVaeConfig, normalise_latents
from trainers.embedded.unmarked import Kind
from trainers.loop import checked_groups
from trainers.method import Method
from trainers.rundir import RunDir, open_run

log = logging.getLogger(__name__)

SHARD = "14MB"
"""Largest file of a model, so that no file in the repository is larger than 15 MB."""
SPREAD = 4.0
"""How much the differences between kinds of pictures count in the whitening of an extractor; see its `whiten`."""


def export_vae(run: Path, scenes: Shards, out: Path) -> None:
    """Write the autoencoder of a run in single precision, with normalised latents where its encoder was trained.

    Args:
        run: Run directory of `ToysVae`.
        scenes: Pictures whose latents get mean 0 and standard deviation 1 per channel.
        out: Folder to write; one that is there is replaced.

    Raises:
        RunError: The run has no checkpoint, or one of another configuration.
    """
    record = open_run(run)
    method = ToysVae(ToysVaeConfig.model_validate(record.read()["config"]["method"]))
    load_trained(method, record)
    vae = method.vae.eval()
    if method.config.start is None:
        normalise_latents(vae, *moments(vae, scenes, 1024))
    with replacing_folder(out) as folder:
        vae.save_pretrained(folder)


def export_toys(vae: Path, unet_run: Path, out: Path) -> int:
    """Write a folder that `StableDiffusionPipeline.from_pretrained` loads as it is.

    The denoiser and the text encoder are the moving averages. UNet and autoencoder are stored in half precision; the
    text encoder, small, stays in single precision.

    Args:
        vae: Folder of the autoencoder, latents normalised.
        unet_run: Run directory of `ToysUnet`; its newest checkpoint is taken.
        out: Folder to write; one that is there is replaced once the new one is complete.

    Returns:
        The step of the checkpoint.

    Raises:
        RunError: The run has no checkpoint, or one of another configuration.
    """
    run = open_run(unet_run)
    method = ToysUnet(ToysUnetConfig.model_validate(run.read()["config"]["method"]))
    step = load_trained(method, run)
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            parameter.copy_(method.averages[name])
    autoencoder = cast(AutoencoderKL, AutoencoderKL.from_pretrained(vae))
    # Else diffusers writes the path of this machine's cache into the shipped config.
    autoencoder.register_to_config(_name_or_path="")
    with replacing_folder(out) as folder:
        StableDiffusionPipeline(
            vae=autoencoder.half(),
            text_encoder=method.text_encoder,
            tokenizer=method.tokenizer,
            unet=method.unet.half(),
            scheduler=cast(Any, DDIMScheduler(**SCHEDULER)),
            safety_checker=cast(Any, None),
            feature_extractor=cast(Any, None),
            requires_safety_checker=False,
        ).save_pretrained(folder, max_shard_size=SHARD)
    return step


def export_toys_dit(vae: Path, run_path: Path, out: Path) -> int:
    """Write a folder that `PixArtAlphaPipeline.from_pretrained` loads as it is, in half precision but for the text.

    Args:
        vae: Folder of the autoencoder.
        run_path: Run directory of `ToysDit`; the averages of its newest checkpoint are taken.
        out: Folder to write; one that is there is replaced once the new one is complete.

    Returns:
        The step of the checkpoint.

    Raises:
        RunError: The run has no checkpoint, or one of another configuration.
    """
    run = open_run(run_path)
    method = ToysDit(ToysDitConfig.model_validate(run.read()["config"]["method"]))
    step = load_trained(method, run)
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            parameter.copy_(method.averages[name])
    autoencoder = cast(AutoencoderKL, AutoencoderKL.from_pretrained(vae))
    autoencoder.register_to_config(_name_or_path="")
    with replacing_folder(out) as folder:
        PixArtAlphaPipeline(
            tokenizer=method.tokenizer,
            text_encoder=method.text_encoder,
            vae=autoencoder.half(),
            transformer=method.transformer.half(),
            scheduler=build_scheduler(),
        ).save_pretrained(folder, max_shard_size=SHARD)
    return step


def export_probe(method: TrainProbe | TrainHeadProbe, run: Path, out: Path) -> int:
    """Write `config.json` and `model.safetensors` (half precision) for `lrdiff.probe.load_probe`.

    Args:
        method: As the run was begun.
        run: Run directory; its newest checkpoint is taken.
        out: Folder to write; one that is there is replaced.

    Returns:
        The step of the checkpoint.

    Raises:
        RunError: The run has no checkpoint, or one of another configuration.
    """
    with torch.no_grad():
        step = load_trained(method, open_run(run))
    with replacing_folder(out) as folder:
        state = method.probe.state_dict()
        halves = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
        save_file({name: value.contiguous() for name, value in halves.items()}, folder / "model.safetensors")
        write_json(folder / "config.json", method.probe.describe())
    return step


def export_extractor(run_path: Path, kinds: Mapping[str, Kind], count: int, out: Path) -> int:
    """Write `model.safetensors` for `lrdiff.watermark.extractor.load`: whitened, and calibrated on other pictures.

    Args:
        run_path: Run directory of `TrainExtractor`; its newest checkpoint is taken.
        kinds: Unmarked pictures.
        count: How many of each kind to whiten with, and how many others to calibrate on.
        out: Folder to write; one that is there is replaced.

    Returns:
        The step of the checkpoint.

    Raises:
        RunError: The run has no checkpoint, or one of another configuration.
        ShapeError: `count` is not above the number of bits.
    """
    run = open_run(run_path)
    config = ExtractorConfig.model_validate(run.read()["config"]["method"])
    # The decoder's pictures, minutes of work, are needed to learn only.
    method = TrainExtractor(config.model_copy(update={"decoder": None}))
    step = load_trained(method, run)
    extractor = method.extractor
    if (read := extractor.directions()) < extractor.bits:
        log.warning(
            "%s: reads only %d independent combinations of its %d bits, so some bits of most keys cannot be written; "
            "train it anew",
            run.path,
            read,
            extractor.bits,
        )
    halves = [{name: kind.batches(half, count, stream(half, name)) for name, kind in kinds.items()} for half in (0, 1)]
    extractor.whiten(halves[0], spread=SPREAD)
    extractor.calibrate(halves[1])
    with replacing_folder(out) as folder:
        extractor.save(folder / "model.safetensors")
    return step


@torch.no_grad()
def load_trained(method: Method[Any], run: RunDir) -> int:
    """Put the newest checkpoint of a run into a method, without an optimizer, and return its step.

    Raises:
        RunError: There is no checkpoint, or it belongs to another configuration.
    """
    steps = run.checkpoint_steps()
    if not steps:
        raise RunError(f"{run.path}: has no checkpoint to export; train it first")
    file = run.checkpoint(steps[-1]) / "weights.safetensors"
    stored = load_file(file)
    for number, group in enumerate(checked_groups(method)):
        for index, parameter in enumerate(group.params):
            value = stored.get(f"param.{number:02d}.{index:05d}")
            if value is None or value.shape != parameter.shape:
                raise RunError(f"{file}: does not hold the parameters of its run.json; remove the run and make it anew")
            parameter.copy_(value)
    method.load_state({name.removeprefix("own."): value for name, value in stored.items() if name.startswith("own.")})
    return steps[-1]


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield an empty hidden folder beside `path`; on success it takes `path`'s place, on failure it is removed."""
    writable(path.parent)
    new, old = (path.with_name(f".{path.name}.{end}") for end in ("new", "old"))
    for folder in (new, old):
        shutil.rmtree(folder, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        for file in new.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
        if path.exists():
            path.replace(old)
        new.replace(path)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
