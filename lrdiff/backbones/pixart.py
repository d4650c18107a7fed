"""PixArt-alpha and -sigma: a transformer with cross-attention to T5's words (arXiv 2310.00426, 2403.04692)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor
from transformers import T5EncoderModel, T5Tokenizer

from lrdiff.backbones.latent import LatentBackbone
from lrdiff.backbones.sd3 import check_patches

T5_LENGTH = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}


class PixArtBackbone(LatentBackbone):
    """A PixArt model. See `lrdiff.backbones.base.Backbone`.

    Its transformer also predicts a variance, which no sampler here uses: the first half of its output counts.
    """

    component = "transformer"
    networks: ClassVar[dict[str, type]] = {"transformer": PixArtTransformer2DModel, "text_encoder": T5EncoderModel}
    tokenizers: ClassVar[dict[str, type]] = {"tokenizer": T5Tokenizer}

    def condition(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return {"context": [B, L, D], "mask": [B, L]}, the words in lower case, as the model was trained.

        Errors as in `LatentBackbone`.
        """
        encoder, tokenizer = self._text_part("text_encoder"), self._text_part("tokenizer")
        limit = min(T5_LENGTH[self._index["_class_name"]], int(tokenizer.model_max_length))
        tokens = self._tokens(tokenizer, [prompt.lower().strip() for prompt in prompts], limit)
        context = encoder(tokens["input_ids"], attention_mask=tokens["attention_mask"])[0]
        return {"context": context, "mask": tokens["attention_mask"].to(context.dtype)}

    def _predict(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        check_patches(x, int(self._config.patch_size), self.latent_factor)
        network: Any = self.denoiser
        sizes: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if network.use_additional_conditions:
            height, width = (side * self.latent_factor for side in x.shape[-2:])
            sizes["resolution"] = torch.tensor([[height, width]]).to(x).expand(len(x), -1)
            sizes["aspect_ratio"] = torch.tensor([[height / width]]).to(x).expand(len(x), -1)
        out = network(
            x,
            encoder_hidden_states=cond["context"],
            encoder_attention_mask=cond["mask"],
            timestep=t.expand(len(x)) if t.ndim == 0 else t,
            added_cond_kwargs=sizes,
        ).sample
        return out[:, : x.shape[1]]
