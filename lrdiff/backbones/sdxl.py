"""Stable Diffusion XL: two CLIP text encoders, and a UNet that is told the size of the picture (arXiv 2307.01952)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from lrdiff.backbones.latent import LatentBackbone
from lrdiff.backbones.unet import check_unet
from lrdiff.errors import ModelError

SIZES = 6
"""Original height and width, top and left of the crop, target height and width."""


class SDXLBackbone(LatentBackbone):
    """A Stable Diffusion XL base model. See `lrdiff.backbones.base.Backbone`.

    The empty prompt is conditioning of zeros where model_index.json says so, as it is in diffusers' pipeline for a
    prompt that is not given.
    """

    component = "unet"
    networks: ClassVar[dict[str, type]] = {
        "unet": UNet2DConditionModel,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
    }
    tokenizers: ClassVar[dict[str, type]] = {"tokenizer": CLIPTokenizer, "tokenizer_2": CLIPTokenizer}

    @classmethod
    def _check_config(cls, path: Path, denoiser: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
        super()._check_config(path, denoiser, vae)
        check_unet(path, denoiser, vae, {"addition_embed_type": "text_time"})
        if denoiser.get("addition_embed_type") != "text_time":
            raise ModelError(f"{path}: the UNet takes no sizes (addition_embed_type), so it is not of SDXL")

    @classmethod
    def load(cls, path: Path, *, device: torch.device, dtype: torch.dtype) -> Self:
        """Load a folder. Raises `ModelError` as other families do, and for the refiner, which takes other sizes."""
        backbone = super().load(path, device=device, dtype=dtype).to(dtype=dtype)
        wanted = backbone._config.projection_class_embeddings_input_dim
        width = backbone._text_part("text_encoder_2").config.projection_dim
        given = width + SIZES * backbone._config.addition_time_embed_dim
        if wanted != given:
            raise ModelError(
                f"{path}: the UNet wants {wanted} numbers of size and caption, this family gives {given}; refiners are "
                "not supported, use the base model"
            )
        return backbone

    def condition(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return {"context": [B, L, D1 + D2], "pooled": [B, P]} of both encoders. Errors as in `LatentBackbone`."""
        states, pooled = [], torch.empty(0)
        for ending in ("", "_2"):
            encoder, tokenizer = self._text_part(f"text_encoder{ending}"), self._text_part(f"tokenizer{ending}")
            tokens = self._tokens(tokenizer, prompts, int(tokenizer.model_max_length))
            out = encoder(tokens["input_ids"], output_hidden_states=True)
            states.append(out.hidden_states[-2])
            pooled = out[0]
        context = torch.cat(states, dim=-1)
        if self._index.get("force_zeros_for_empty_prompt", True):
            present = torch.tensor([bool(prompt) for prompt in prompts]).to(context)
            context, pooled = context * present[:, None, None], pooled * present[:, None]
        return {"context": context, "pooled": pooled}

    def size_condition(self, original: tuple[int, int], corner: tuple[int, int]) -> dict[str, Tensor]:
        """Return {"crop": [1, 4]}: original height and width, top and left of the crop, in pixels."""
        return {"crop": torch.tensor([[*original, *corner]], dtype=torch.float32)}

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move and cast all modules in place. An autoencoder that says it overflows in fp16 stays in fp32."""
        super().to(device, dtype)
        if dtype == torch.float16 and self._vae_config.get("force_upcast"):
            nn.Module.to(self.vae, dtype=torch.float32)
        return self

    def _predict(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        size = [side * self.latent_factor for side in x.shape[-2:]]
        whole = torch.tensor([[*size, 0, 0]]).to(x).expand(len(x), -1)  # a picture of just this size, not cropped
        target = torch.tensor([size]).to(x).expand(len(x), -1)
        added = {"text_embeds": cond["pooled"], "time_ids": torch.cat([cond.get("crop", whole), target], dim=1)}
        return self.denoiser(x, t, encoder_hidden_states=cond["context"], added_cond_kwargs=added).sample
