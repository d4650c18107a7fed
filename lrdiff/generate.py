"""Base model + adapters + prompts -> images with their parameters inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lrdiff import backbones, metadata, png
from lrdiff.adapters import Active, Adapter, adapted, read_adapter
from lrdiff.artifact import versions
from lrdiff.backbones import Backbone
from lrdiff.decoders import Decoder, decoding, read_decoder
from lrdiff.errors import ConfigError, NonFiniteError
from lrdiff.generate_config import GenerateConfig, Item, plan, single
from lrdiff.images import to_image
from lrdiff.inject import set_weights
from lrdiff.rng import stream
from lrdiff.sampling import SAMPLERS, Callback
from lrdiff.sheet import sheet

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a generation is; given to the progress callback after every sampling step and every written batch.

    Attributes:
        images: Images to be made in all.
        saved: Files written so far.
        step: Sampling steps done on the present batch.
        steps: Sampling steps per batch.
        items: The present batch.
        x0: Present estimate of the batch's clean latents, [B, C, h, w].
    """

    images: int
    saved: tuple[Path, ...]
    step: int
    steps: int
    items: tuple[Item, ...]
    x0: Tensor | None


def generate(
    config: GenerateConfig,
    progress: Callable[[Progress], None] | None = None,
    *,
    backbone: Backbone | None = None,
) -> list[Path]:
    """Make all images of a config and write them as PNG.

    Files are named "NUMBER-seedSEED.png" with the next free number of the folder, so nothing is ever overwritten; a
    grid is "NUMBER-grid.png". The same config gives the same bytes on the same machine. An image depends on its own
    seed, not on the others it is made with, apart from rounding when the batch size differs.

    Args:
        config: What to make.
        progress: Called after every sampling step and written batch. It may raise `lrdiff.errors.Cancelled`: the
            images written so far stay, nothing is half-written, and the backbone is as it was.
        backbone: A loaded model to use instead of loading `config.model`; it must be that model, on that device and in
            that dtype. Adapters are taken out of it again.

    Returns:
        The files in the order of `plan(config)`, the grid last.

    Raises:
        DataError: The folder cannot be written to.
        ModelError: The base model cannot be used.
        ArtifactError: An adapter or the decoder cannot be read, belongs to another base model, or changes nothing.
        ConfigError: Size, steps or sampler do not fit the model.
        NonFiniteError: An image came out as NaN or infinity.
    """
    adapters = [read_adapter(spec) for spec in config.adapters]
    decoder = read_decoder(config.decoder) if config.decoder is not None else None
    folder = png.writable(config.out)
    backbone = _checked(backbone, config) if backbone is not None else _load(config)
    width, height = image_size(backbone, config.width, config.height)
    items = plan(config)
    saved: list[Path] = []
    pictures: dict[Item, Image.Image] = {}
    with decoding(backbone, decoder), adapted(backbone, adapters, config.scale) as active:
        for batch in _batches(items, config.batch_size):
            callback = _relay(progress, len(items), saved, batch)
            if active.weights:
                callback = _switching(backbone, active, batch[0].scale, config.steps, callback)
            images = render(
                backbone,
                [item.prompt for item in batch],
                [item.seed for item in batch],
                negative_prompt=config.negative_prompt,
                steps=config.steps,
                guidance=config.guidance,
                sampler=config.sampler,
                eta=config.eta,
                width=width,
                height=height,
                callback=callback,
            )
            for item, image in zip(batch, images, strict=True):
                picture = to_image(image)
                texts = metadata.texts(_record(config, item, backbone, adapters, decoder, (width, height)))
                saved.append(png.write_new(folder, f"seed{item.seed}", png.encode(picture, texts)))
                if config.grid:
                    pictures[item] = picture
            if progress is not None:
                progress(Progress(len(items), tuple(saved), config.steps, config.steps, tuple(batch), None))
    if config.grid:
        saved.append(_write_grid(folder, config, pictures))
    return saved


def render(
    backbone: Backbone,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    negative_prompt: str = "",
    steps: int = 20,
    guidance: float = 3.0,
    sampler: str = "dpm++2m",
    eta: float = 0.0,
    width: int = 0,
    height: int = 0,
    callback: Callback | None = None,
) -> Tensor:
    """Make one batch of images with whatever adapters are in the backbone, without gradients and without files.

    Args:
        backbone: The model; its training mode is restored afterwards.
        prompts: B prompts.
        seeds: B seeds; image i starts from noise that depends on seeds[i] alone.
        negative_prompt: What to steer away from.
        steps: Sampling steps.
        guidance: Strength of the prompt; 1 is off.
        sampler: A key of `lrdiff.sampling.SAMPLERS`.
        eta: For ddim, share of DDPM's noise.
        width: In pixels, 0 for native.
        height: In pixels, 0 for native.
        callback: As in `lrdiff.sampling.ddim`.

    Returns:
        [B, 3, H, W] in [-1, 1], float32.

    Raises:
        ConfigError: Size, steps or sampler do not fit the model.
        NonFiniteError: An image holds NaN or infinity.
    """
    width, height = image_size(backbone, width, height)
    shape = (backbone.latent_shape[0], height // backbone.latent_factor, width // backbone.latent_factor)
    x = torch.stack([torch.randn(shape, generator=stream(seed, "latents")) for seed in seeds]).to(backbone.device)
    rng = [stream(seed, "sampler") for seed in seeds] if eta > 0 else None
    training = backbone.denoiser.training
    backbone.denoiser.eval()
    try:
        with torch.no_grad():
            cond = backbone.condition(prompts)
            uncond = backbone.condition([negative_prompt] * len(prompts)) if guidance != 1.0 else None
            timesteps = backbone.schedule.timesteps(steps)
            latents = SAMPLERS[sampler](
                backbone.predict,
                x,
                cond,
                uncond,
                backbone.schedule,
                timesteps,
                guidance,
                eta=eta,
                rng=rng,
                callback=callback,
            )
            images = backbone.decode(latents)
    finally:
        backbone.denoiser.train(training)
    broken = [seed for seed, image in zip(seeds, images, strict=True) if not bool(torch.isfinite(image).all())]
    if broken:
        raise NonFiniteError(
            f"the images of seeds {broken} came out as NaN or infinity; use dtype fp32, or a smaller adapter weight"
        )
    return images.clamp(-1, 1)


def image_size(backbone: Backbone, width: int, height: int) -> tuple[int, int]:
    """Return (width, height) in pixels with 0 replaced by the native side.

    Raises:
        ConfigError: A side is not a multiple of the model's latent factor.
    """
    factor = backbone.latent_factor
    size = (width or backbone.resolution, height or backbone.resolution)
    if any(side % factor for side in size):
        near = [max(1, round(side / factor)) * factor for side in size]
        raise ConfigError(
            f"size {size[0]}x{size[1]}: {backbone.name} needs sides that are multiples of {factor}, "
            f"for example {near[0]}x{near[1]}"
        )
    return size


def _load(config: GenerateConfig) -> Backbone:
    return backbones.load(config.model, device=config.device, dtype=DTYPES[config.dtype])


def _checked(backbone: Backbone, config: GenerateConfig) -> Backbone:
    """Refuse a ready model that is not the one the config, and so the record in the images, speaks of."""
    device = backbones.pick_device(config.device)
    same_place = (device.type, device.index or 0) == (backbone.device.type, backbone.device.index or 0)
    if backbones.find(config.model).resolve() != backbone.path.resolve():
        raise ConfigError(f"the config asks for model {config.model!r}, the loaded one is {backbone.path}")
    if not same_place or DTYPES[config.dtype] != backbone.dtype:
        raise ConfigError(
            f"the config asks for {device} and {config.dtype}, "
            f"the loaded model is on {backbone.device} in {backbone.dtype}"
        )
    return backbone


def _batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    """Split into batches of one scale each, since the adapters' weights hold for a whole batch."""
    for scale in dict.fromkeys(item.scale for item in items):
        same = [item for item in items if item.scale == scale]
        for start in range(0, len(same), size):
            yield same[start : start + size]


def _relay(
    progress: Callable[[Progress], None] | None, images: int, saved: Sequence[Path], batch: Sequence[Item]
) -> Callback | None:
    """Turn sampler events into `Progress`."""
    if progress is None:
        return None

    def callback(event: dict[str, Any]) -> None:
        progress(Progress(images, tuple(saved), event["step"] + 1, event["steps"], tuple(batch), event["x0"]))

    return callback


def _switching(backbone: Backbone, active: Active, scale: float, steps: int, then: Callback | None) -> Callback:
    """Make those adapters active that act at the first step; the callback then does so for every next one."""
    set_weights(backbone.denoiser, active.at(0, steps, scale))

    def callback(event: dict[str, Any]) -> None:
        if then is not None:
            then(event)
        step = event["step"]
        if step + 1 < steps and active.at(step + 1, steps) != active.at(step, steps):
            set_weights(backbone.denoiser, active.at(step + 1, steps, scale))

    return callback


def _record(
    config: GenerateConfig,
    item: Item,
    backbone: Backbone,
    adapters: Sequence[Adapter],
    decoder: Decoder | None,
    size: tuple[int, int],
) -> Mapping[str, Any]:
    """Gather everything that made one image. No time and no output folder: the same image has the same record."""
    texts = {item.prompt, config.negative_prompt}
    return {
        "config": single(config, item, *size),
        "prompt": item.prompt,
        "negative_prompt": config.negative_prompt,
        "truncated": {text: lost for text, lost in backbone.truncated.items() if text in texts},
        "seed": item.seed,
        "steps": config.steps,
        "sampler": config.sampler,
        "guidance": config.guidance,
        "eta": config.eta,
        "width": size[0],
        "height": size[1],
        "model": {"name": backbone.name, "fingerprint": backbone.fingerprint},
        "adapters": [
            {
                "name": adapter.name,
                "method": adapter.artifact.header.method,
                "sha256": adapter.sha256,
                "weight": adapter.weight * item.scale,
                "steps": [adapter.spec.begin, adapter.spec.end],
            }
            for adapter in adapters
        ],
        # By its hash, not by the key: a picture is public.
        "decoder": {"fingerprint": decoder.header.fingerprint} if decoder is not None else None,
        "device": backbone.device.type,
        "dtype": config.dtype,
        "versions": versions(),
    }


def _write_grid(folder: Path, config: GenerateConfig, pictures: Mapping[Item, Image.Image]) -> Path:
    """Write all images on one sheet: seeds across, or scales across when there is one seed; the rest down."""
    seeds = list(range(config.seed, config.seed + config.count))
    across_scales = len(seeds) == 1 and len(config.scale) > 1
    rows = [(prompt, None if across_scales else scale) for prompt in config.prompt for scale in config.scale]
    rows = list(dict.fromkeys(rows))
    columns = list(config.scale) if across_scales else seeds
    cells = [
        [pictures[Item(prompt, seeds[0], float(c)) if scale is None else Item(prompt, int(c), scale)] for c in columns]
        for prompt, scale in rows
    ]
    many = len(config.scale) > 1
    row_text = [prompt + (f" (weight x{scale:g})" if many and scale is not None else "") for prompt, scale in rows]
    column_text = [f"weight x{c:g}" if across_scales else f"seed {c}" for c in columns]
    record = {"kind": "grid", "config": config.model_dump(mode="json", exclude={"out"})}
    page = sheet(cells, row_text, column_text)
    return png.write_new(folder, "grid", png.encode(page, {"lrdiff": metadata.to_json(record)}))
