"""FLUX.1 dev and schnell: a flow transformer over packed latents, CLIP for the whole caption and T5 for its words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from lrdiff.backbones.latent import LatentBackbone
from lrdiff.backbones.sd3 import check_patches
from lrdiff.errors import ModelError
from lrdiff.schedule import Schedule

PATCH = 2
"""Latents on a side of a token."""
T5_LENGTH = {True: 512, False: 256}
"""Words of dev and of schnell, which has no guidance embedding."""
GUIDANCE = 3.5
"""Strength that the guidance-distilled model is told, in training and sampling: diffusers' own default. Guidance by a
second prompt comes on top of it; sample with `guidance` 1 to leave it out."""


class FluxBackbone(LatentBackbone):
    """A FLUX.1 text-to-image model. See `lrdiff.backbones.base.Backbone`.

    Differs from diffusers: the shift of the times belongs to the model's native size also at other sizes.
    """

    component = "transformer"
    networks: ClassVar[dict[str, type]] = {
        "transformer": FluxTransformer2DModel,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": T5EncoderModel,
    }
    tokenizers: ClassVar[dict[str, type]] = {"tokenizer": CLIPTokenizer, "tokenizer_2": T5Tokenizer}

    def _side(self) -> int:
        # Not in the transformer's config. The autoencoder's is 1024 px in the published models.
        return int(self._vae_config.sample_size) // self.latent_factor

    @classmethod
    def _check_config(cls, path: Path, denoiser: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
        taken, given = int(denoiser.get("in_channels", 0)), int(vae.get("latent_channels", 0))
        if taken != given * PATCH**2:
            raise ModelError(
                f"{path}: the transformer takes {taken} channels, packed latents have {given * PATCH**2}; fill, depth "
                "and control models are not supported"
            )

    def _read_schedule(self) -> Schedule:
        config = dict(self.scheduler.config)
        if not config.get("use_dynamic_shifting"):
            return Schedule.from_config(config)
        # The shift e^mu grows with the number of tokens; a straight line in mu through two given points.
        first, last = config["base_image_seq_len"], config["max_image_seq_len"]
        slope = (config["max_shift"] - config["base_shift"]) / (last - first)
        tokens = (self.latent_shape[1] // PATCH) * (self.latent_shape[2] // PATCH)
        mu = config["base_shift"] + slope * (tokens - first)
        return Schedule.flow(steps=int(config["num_train_timesteps"]), shift=math.exp(mu))

    def condition(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return {"context": [B, L, D] of T5, "pooled": [B, P] of CLIP}. Errors as in `LatentBackbone`."""
        clip, t5 = self._text_part("text_encoder"), self._text_part("text_encoder_2")
        reader, words = self._text_part("tokenizer"), self._text_part("tokenizer_2")
        pooled = clip(self._tokens(reader, prompts, int(reader.model_max_length))["input_ids"]).pooler_output
        limit = min(T5_LENGTH[bool(self._config.guidance_embeds)], int(words.model_max_length))
        return {"context": t5(self._tokens(words, prompts, limit)["input_ids"])[0], "pooled": pooled}

    def _predict(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        check_patches(x, PATCH, self.latent_factor)
        count, channels, height, width = x.shape
        rows, columns = height // PATCH, width // PATCH
        packed = x.view(count, channels, rows, PATCH, columns, PATCH).permute(0, 2, 4, 1, 3, 5)
        context = cond["context"]
        network: Any = self.denoiser
        out = network(
            packed.reshape(count, rows * columns, channels * PATCH**2),
            encoder_hidden_states=context,
            pooled_projections=cond["pooled"],
            timestep=t.to(x.dtype).expand(count) / self.schedule.steps,
            guidance=x.new_full((count,), GUIDANCE) if self._config.guidance_embeds else None,
            img_ids=positions(rows, columns).to(x),
            txt_ids=x.new_zeros(context.shape[1], 3),
        ).sample
        blocks = out.reshape(count, rows, columns, channels, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5)
        return blocks.reshape(count, channels, height, width)


def positions(rows: int, columns: int) -> Tensor:
    """Return (0, row, column) of every token in reading order, [rows * columns, 3]."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).reshape(-1, 3).float()
