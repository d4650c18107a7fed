"""Training of the denoiser and the text encoder of `toys`, together and from scratch, on cached latents.

Four choices make the most of few samples: captions name each attribute only sometimes, so every word is learned in
many company; one caption in ten holds an unknown word, so that such words stay free to be bound to a subject later;
nearly clean samples, which teach little, count less; and the first steps see small pictures, at a third of the time per
sample, which is enough to learn what most words mean.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Self, cast

import numpy as np
import torch
from annotated_types import Ge, Le, MinLen
from diffusers import UNet2DConditionModel
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lrdiff.schedule import Schedule
from lrdiff.world.captions import WORDS, caption
from lrdiff.world.scene import Scene
from trainers.config import Settings
from trainers.embedded.tokenizer import build_tokenizer
from trainers.method import Batch, Method, Metrics, ParamGroup

SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "set_alpha_to_one": True,
    "steps_offset": 1,
    "clip_sample": False,
}
"""Diffusers' DDIMScheduler. Zero terminal SNR, since a model this small cannot ignore the trace of a signal."""


SMALL = "small"
"""Folder of latents of pictures of half the side."""


class ToysUnetConfig(Settings):
    """How the denoiser and the text encoder are built and trained."""

    latents: Path
    """Folder with `latents.npy` (float16 [N, 8, 16, 16]) and `scenes.jsonl`, and where there are steps for it with a
    folder `small` of the same at half the side."""

    small_steps: NonNegativeInt = 0
    """Steps at the beginning that see pictures of half the side."""

    small_batch_size: PositiveInt = 128
    """Samples per step in these."""

    channels: Annotated[tuple[PositiveInt, ...], MinLen(2)] = (64, 128, 256)
    """Width of each level of the denoiser; every level but the first has attention."""

    text_width: PositiveInt = 128
    """Width of the text encoder."""

    text_layers: PositiveInt = 2
    """Depth of the text encoder."""

    batch_size: PositiveInt = 32
    """Samples per step."""

    unconditional: Annotated[float, Ge(0.0), Le(1.0)] = 0.1
    """Share of samples trained without a caption, for guidance."""

    unknown_words: Annotated[float, Ge(0.0), Le(1.0)] = 0.1
    """Share of captions that get an unknown word."""

    min_snr: PositiveFloat = 5.0
    """Errors of v count fully up to this signal-to-noise ratio and less above it, as in min-SNR (arXiv 2303.09556)."""

    high_noise: Annotated[float, Ge(0.0), Le(1.0)] = 0.5
    """Share of samples from the noisier half of the times, where the caption alone decides what is drawn; the others
    come from all times."""

    average: Annotated[float, Ge(0.0), Le(0.99999)] = 0.998
    """Decay of the moving average of the weights, which is what is shipped."""


def build_unet(channels: tuple[int, ...], latent_channels: int, side: int, text_width: int) -> UNet2DConditionModel:
    """Return a fresh denoiser: one block per level, attention on all levels but the first.

    The caption also enters as a whole, pooled into the embedding of the time: what holds for the whole picture then
    reaches every block at once, and need not be found by attention first.
    """
    attention = [False, *[True] * (len(channels) - 1)]
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        cross_attention_dim=text_width,
        attention_head_dim=4,
        norm_num_groups=16,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


def build_text_encoder(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextModel:
    """Return a fresh text encoder for a tokenizer."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=cast(int, tokenizer.bos_token_id),
            eos_token_id=cast(int, tokenizer.eos_token_id),
            pad_token_id=cast(int, tokenizer.pad_token_id),
        )
    )


class ToysUnet(Method[ToysUnetConfig]):
    """Denoising loss on captions of scenes; keeps a moving average of all weights."""

    def __init__(self, config: ToysUnetConfig) -> None:
        super().__init__(config)
        self.latents, self.scenes = _read(config.latents)
        if config.small_steps:
            self.small_latents, self.small_scenes = _read(config.latents / SMALL)
        self.tokenizer = build_tokenizer(WORDS)
        self.unet = build_unet(config.channels, self.latents.shape[1], self.latents.shape[2], config.text_width)
        self.unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.text_encoder = build_text_encoder(self.tokenizer, config.text_width, config.text_layers)
        self.schedule = Schedule.from_config(SCHEDULER)
        self.averages = {name: p.detach().clone() for name, p in self.named_parameters()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the averages with the weights."""
        super()._apply(fn, recurse)
        self.averages = {name: fn(average) for name, average in self.averages.items()}
        return self

    def batch(self, index: int, rng: torch.Generator) -> Batch:
        """Draw latents and captions."""
        latents, scenes, size = self.latents, self.scenes, self.config.batch_size
        if index < self.config.small_steps:
            latents, scenes, size = self.small_latents, self.small_scenes, self.config.small_batch_size
        chosen = torch.randint(0, len(scenes), (size,), generator=rng).tolist()
        rates = (self.config.unconditional, self.config.unknown_words)
        texts = [training_caption(scenes[i], rng, *rates) for i in chosen]
        ids = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return {"latents": torch.from_numpy(latents[chosen].astype(np.float32)), "ids": ids}

    def forward(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """Return the min-SNR weighted loss."""
        clean: Tensor = batch["latents"]
        noise = torch.randn(clean.shape, generator=rng).to(clean)
        times = draw_times(len(clean), self.schedule.steps, self.config.high_noise, rng)
        noisy = self.schedule.add_noise(clean, noise, times).contiguous(memory_format=torch.channels_last)
        text = self.text_encoder(batch["ids"]).last_hidden_state
        # On a CPU in bf16, with so few tokens, the backward pass of the fused attention takes five times as long.
        with sdpa_kernel(SDPBackend.MATH) if torch.is_autocast_enabled("cpu") else nullcontext():
            out = self.unet(noisy, times.to(clean.device), text, return_dict=False)[0].float()
        errors = (out - self.schedule.target(clean, noise, times)).square().flatten(1).mean(1)
        # Min-SNR's own weight of v, min(SNR, gamma) / (SNR + 1), vanishes at high noise, where layout is decided.
        snr = self.schedule.snr(times)
        weights = ((snr.clamp(max=self.config.min_snr) + 1.0) / (snr + 1.0)).to(errors)
        return (errors * weights).mean(), {"error": errors.mean()}

    def stepped(self, step: int) -> None:
        """Move the average; young averages forget faster."""
        decay = min(self.config.average, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                self.averages[name].lerp_(parameter, 1 - decay)

    def param_groups(self) -> Iterable[ParamGroup]:
        """Everything is trained: inner matrices with orthogonalised steps, vectors without decay."""
        inner, outer = [], []
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                at_the_edge = "embedding" in name or "conv_in" in name or name.startswith("unet.conv_out")
                (outer if at_the_edge else inner).append(parameter)
        return [
            ParamGroup("inner matrices", inner, orthogonal=True),
            ParamGroup("embeddings and edges", outer),
            ParamGroup("vectors", [p for p in self.parameters() if p.ndim <= 1], decay=False),
        ]

    def artifact(self) -> None:
        """Nothing: `make` writes the folder in diffusers' layout."""

    def state(self) -> dict[str, Tensor]:
        """Return the moving average."""
        return dict(self.averages)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back the moving average."""
        for name, average in self.averages.items():
            average.copy_(state[name])


def _read(folder: Path) -> tuple[np.ndarray, list[Scene]]:
    latents = np.load(folder / "latents.npy", mmap_mode="r")
    lines = (folder / "scenes.jsonl").read_text().splitlines()
    return latents, [Scene.from_dict(json.loads(line)) for line in lines[: len(latents)]]


def draw_times(count: int, steps: int, high_noise: float, rng: torch.Generator) -> Tensor:
    """Return timesteps, int64 [count].

    One per stratum: the batch covers the schedule evenly, which lowers the variance of the gradient. A share of
    `high_noise` is moved to the noisier half.
    """
    strata = (torch.arange(count) + torch.rand(count, generator=rng)) / count
    noisier = torch.rand(count, generator=rng) < high_noise
    strata = torch.where(noisier, 0.5 + 0.5 * strata, strata)
    # The last stratum can round up to 1.
    return (strata * steps).long().clamp(max=steps - 1)


def training_caption(scene: Scene, rng: torch.Generator, unconditional: float, unknown_words: float) -> str:
    """Return a caption to train with.

    Args:
        scene: What is seen.
        rng: Decides which of its captions.
        unconditional: Share of captions that are empty, for guidance.
        unknown_words: Share of the others that get an unknown word somewhere.
    """
    if float(torch.rand((), generator=rng)) < unconditional:
        return ""
    text = caption(scene, rng)
    if float(torch.rand((), generator=rng)) < unknown_words:
        words = text.split()
        at = int(torch.randint(0, len(words) + 1, (), generator=rng))
        words.insert(at, unknown_word(rng))
        text = " ".join(words)
    return text


def unknown_word(rng: torch.Generator) -> str:
    """Return two to six random letters."""
    length = int(torch.randint(2, 7, (), generator=rng))
    letters = torch.randint(0, 26, (length,), generator=rng).tolist()
    return "".join(string.ascii_lowercase[i] for i in letters)
