"""Training of the transformer and the text encoder of `toys-dit`, together and from scratch, on cached latents.

A transformer of single latents costs most where it has most tokens, and learns what words mean just as well where it
has few. So it learns in stages: pictures of 64 px (64 tokens), of 128 px (256), of 256 px (1,024). Its positions are
relative to the picture, and the noise of the larger pictures is shifted up, so that one stage begins where the last
ended.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Self

import numpy as np
import torch
from annotated_types import Ge, Le, MinLen
from pydantic import PositiveInt
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lrdiff.schedule import Schedule
from lrdiff.world.captions import WORDS
from lrdiff.world.scene import Scene
from trainers.config import Settings
from trainers.embedded.toys_dit_parts import SHIFT, SIDE, build_text_encoder, build_tokenizer, build_transformer
from trainers.embedded.toys_unet import training_caption
from trainers.method import Batch, Method, Metrics, ParamGroup


class Stage(Settings):
    """Some steps on pictures of one size."""

    side: PositiveInt
    """Of the latents; the folder of latents is named after it."""

    steps: PositiveInt
    """Steps of this stage; the last one goes on to the end of the run."""

    batch_size: PositiveInt
    """Samples per step."""


class ToysDitConfig(Settings):
    """How the transformer and the text encoder are built and trained."""

    latents: Path
    """Folder with a folder per side, each with `latents.npy` (float16 [N, C, side, side]) and `scenes.jsonl`."""

    stages: Annotated[tuple[Stage, ...], MinLen(1)]
    """From few tokens to many."""

    width: PositiveInt = 192
    """Of the transformer."""

    heads: PositiveInt = 3
    """Of each attention."""

    layers: PositiveInt = 6
    """Of the transformer."""

    text_width: PositiveInt = 128
    """Of the text encoder."""

    text_layers: PositiveInt = 2
    """Of the text encoder."""

    unconditional: Annotated[float, Ge(0.0), Le(1.0)] = 0.1
    """Share of samples trained without a caption, for guidance."""

    unknown_words: Annotated[float, Ge(0.0), Le(1.0)] = 0.05
    """Share of captions that get an unknown word."""

    average: Annotated[float, Ge(0.0), Le(0.99999)] = 0.995
    """Decay of the moving average of the weights, which is what is shipped."""


class ToysDit(Method[ToysDitConfig]):
    """Flow matching on captions of scenes; keeps a moving average of all weights."""

    def __init__(self, config: ToysDitConfig) -> None:
        super().__init__(config)
        self.latents: dict[int, np.ndarray] = {}
        self.scenes: dict[int, list[Scene]] = {}
        for side in {stage.side for stage in config.stages}:
            folder = config.latents / str(side)
            self.latents[side] = np.load(folder / "latents.npy", mmap_mode="r")
            lines = (folder / "scenes.jsonl").read_text().splitlines()
            self.scenes[side] = [Scene.from_dict(json.loads(line)) for line in lines]
        self.tokenizer = build_tokenizer(WORDS)
        self.transformer = build_transformer(
            self.latents[config.stages[0].side].shape[1],
            width=config.width,
            heads=config.heads,
            layers=config.layers,
            text_width=config.text_width,
        )
        self.text_encoder = build_text_encoder(self.tokenizer, config.text_width, config.text_layers)
        self.averages = {name: p.detach().clone() for name, p in self.named_parameters()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the averages with the weights."""
        super()._apply(fn, recurse)
        self.averages = {name: fn(average) for name, average in self.averages.items()}
        return self

    def stage(self, index: int) -> Stage:
        """Return the stage of step `index`, from 0."""
        ends = list(accumulate(stage.steps for stage in self.config.stages))
        return self.config.stages[min(bisect_right(ends, index), len(ends) - 1)]

    def batch(self, index: int, rng: torch.Generator) -> Batch:
        """Draw latents and captions."""
        stage = self.stage(index)
        latents, scenes = self.latents[stage.side], self.scenes[stage.side]
        chosen = torch.randint(0, len(latents), (stage.batch_size,), generator=rng).tolist()
        rates = (self.config.unconditional, self.config.unknown_words)
        texts = [training_caption(scenes[i], rng, *rates) for i in chosen]
        tokens = self.tokenizer(texts, padding="longest", truncation=True, return_tensors="pt")
        clean = torch.from_numpy(latents[chosen].astype(np.float32))
        return {"latents": clean, "ids": tokens.input_ids, "mask": tokens.attention_mask}

    def forward(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """Return the mean squared error of the velocity, eps - x0."""
        clean: Tensor = batch["latents"]
        schedule = Schedule.flow()
        noise = torch.randn(clean.shape, generator=rng).to(clean)
        times = draw_times(len(clean), max(1.0, SHIFT * clean.shape[-1] / SIDE), schedule.steps, rng)
        text = self.text_encoder(batch["ids"], attention_mask=batch["mask"])[0]
        # On a CPU the fused attention is slower for few tokens and faster for many.
        few = clean.shape[-2] * clean.shape[-1] < 1024
        with sdpa_kernel(SDPBackend.MATH) if few else nullcontext():
            out = self.transformer(
                schedule.add_noise(clean, noise, times),
                encoder_hidden_states=text,
                encoder_attention_mask=batch["mask"].to(text.dtype),
                timestep=times.to(clean.device),
            ).sample
        return (out.float() - schedule.target(clean, noise, times)).square().mean(), {}

    def stepped(self, step: int) -> None:
        """Move the average; young averages forget faster."""
        decay = min(self.config.average, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                self.averages[name].lerp_(parameter, 1 - decay)

    def param_groups(self) -> Iterable[ParamGroup]:
        """Everything is trained: the blocks' matrices with orthogonalised steps, vectors and tables without decay."""
        inner, outer, vectors = [], [], []
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1 or name.endswith("_table"):
                vectors.append(parameter)
            elif "transformer_blocks" in name or ("encoder.block" in name and "bias" not in name):
                inner.append(parameter)
            else:
                outer.append(parameter)
        return [
            ParamGroup("blocks", inner, orthogonal=True),
            ParamGroup("embeddings and edges", outer),
            ParamGroup("vectors", vectors, decay=False),
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


def draw_times(count: int, shift: float, steps: int, rng: torch.Generator) -> Tensor:
    """Return flow times, [count] in (0, steps]: one per stratum, which lowers the gradient's variance, then shifted."""
    s = 1.0 - (torch.arange(count) + torch.rand(count, generator=rng)) / count
    return shift * s / (1.0 + (shift - 1.0) * s) * steps
