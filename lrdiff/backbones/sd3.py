"""Stable Diffusion 3 and 3.5: a flow transformer with joint attention, two CLIP encoders, T5 (arXiv 2403.03206)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from lrdiff.backbones.latent import LatentBackbone
from lrdiff.errors import ShapeError

T5_LENGTH = 256


class SD3Backbone(LatentBackbone):
    """A Stable Diffusion 3 model, with or without its T5 encoder. See `lrdiff.backbones.base.Backbone`."""

    component = "transformer"
    networks: ClassVar[dict[str, type]] = {
        "transformer": SD3Transformer2DModel,
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
        "text_encoder_3": T5EncoderModel,
    }
    tokenizers: ClassVar[dict[str, type]] = {
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": CLIPTokenizer,
        "tokenizer_3": T5Tokenizer,
    }
    optional: ClassVar[frozenset[str]] = frozenset({"text_encoder_3", "tokenizer_3"})

    def condition(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return {"context": [B, L1 + L2, D], "pooled": [B, P1 + P2]}. Errors as in `LatentBackbone`.

        The states of both CLIP encoders lie side by side, filled up with zeros to the width of T5's, which follow.
        """
        states, pooled = [], []
        for ending in ("", "_2"):
            encoder, tokenizer = self._text_part(f"text_encoder{ending}"), self._text_part(f"tokenizer{ending}")
            tokens = self._tokens(tokenizer, prompts, int(tokenizer.model_max_length))
            out = encoder(tokens["input_ids"], output_hidden_states=True)
            states.append(out.hidden_states[-2])
            pooled.append(out[0])
        clip = torch.cat(states, dim=-1)
        width = int(self._config.joint_attention_dim)
        padded = functional.pad(clip, (0, width - clip.shape[-1]))
        return {"context": torch.cat([padded, self._t5(prompts, width, clip)], dim=1), "pooled": torch.cat(pooled, -1)}

    def _t5(self, prompts: Sequence[str], width: int, like: Tensor) -> Tensor:
        encoder, tokenizer = self._text_part("text_encoder_3"), self._text_part("tokenizer_3")
        if encoder is None or tokenizer is None:
            return like.new_zeros(len(prompts), T5_LENGTH, width)
        tokens = self._tokens(tokenizer, prompts, min(T5_LENGTH, int(tokenizer.model_max_length)))
        return encoder(tokens["input_ids"])[0]

    def _predict(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        check_patches(x, int(self._config.patch_size), self.latent_factor)
        times = t.expand(len(x)) if t.ndim == 0 else t
        network: Any = self.denoiser
        return network(
            x, timestep=times, encoder_hidden_states=cond["context"], pooled_projections=cond["pooled"]
        ).sample


def check_patches(x: Tensor, patch: int, factor: int) -> None:
    """Raise `ShapeError` unless both sides of the latents are whole patches."""
    if any(side % patch for side in x.shape[-2:]):
        height, width = (side * factor for side in x.shape[-2:])
        raise ShapeError(
            f"image size {width}x{height}: this model reads patches, so both sides must be multiples of "
            f"{patch * factor} pixels"
        )
