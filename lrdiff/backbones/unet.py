"""Stable Diffusion 1.x and 2.x: AutoencoderKL, CLIPTextModel, UNet2DConditionModel in diffusers' layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from lrdiff.backbones.latent import LatentBackbone
from lrdiff.errors import ModelError

# "text" pools the caption that the UNet gets anyway; other kinds of addition want inputs of their own.
FREE = {"addition_embed_type": "text"}


class UNetBackbone(LatentBackbone):
    """A Stable Diffusion model of the first two generations. See `lrdiff.backbones.base.Backbone`."""

    component = "unet"
    networks: ClassVar[dict[str, type]] = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}
    tokenizers: ClassVar[dict[str, type]] = {"tokenizer": CLIPTokenizer}

    @classmethod
    def _check_config(cls, path: Path, denoiser: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
        super()._check_config(path, denoiser, vae)
        check_unet(path, denoiser, vae, FREE)

    @property
    def text_encoder(self) -> CLIPTextModel | None:
        """The text encoder, or None once it was released."""
        return self._texts.get("text_encoder")

    def condition(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return {"context": [B, L, D]}, the text encoder's last hidden states. Errors as in `LatentBackbone`."""
        encoder, tokenizer = self._text_part("text_encoder"), self._text_part("tokenizer")
        limit = min(int(tokenizer.model_max_length), int(encoder.config.max_position_embeddings))
        tokens = self._tokens(tokenizer, prompts, limit)
        mask = tokens["attention_mask"] if getattr(encoder.config, "use_attention_mask", False) else None
        return {"context": encoder(tokens["input_ids"], attention_mask=mask).last_hidden_state}

    def _predict(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        return self.denoiser(x, t, encoder_hidden_states=cond["context"]).sample

    def _without_checks(self) -> dict[str, Any]:
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def check_unet(path: Path, unet: Mapping[str, Any], vae: Mapping[str, Any], free: Mapping[str, str]) -> None:
    """Refuse UNets that want or give more than latents.

    Args:
        path: The model's folder, for messages.
        unet: The UNet's config.json.
        vae: The autoencoder's.
        free: Setting -> the one value of it, besides none, that the family provides for.
    """
    if unet.get("out_channels") != vae.get("latent_channels"):
        raise ModelError(
            f"{path}: the UNet predicts {unet.get('out_channels')} channels; learned variance is not supported"
        )
    for key in ("class_embed_type", "addition_embed_type", "time_cond_proj_dim", "num_class_embeds"):
        if unet.get(key) not in (None, free.get(key)):
            raise ModelError(f"{path}: the UNet wants extra conditioning ({key}), which this family does not give")
