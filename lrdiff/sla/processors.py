"""Processors for diffusers' transformers of images and videos. Wan's is in `wan.py`.

Each repeats what the layer's own processor does around the attention; a test compares them at topk = 1.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from lrdiff.errors import ConfigError, ShapeError
from lrdiff.sla.processor import SlaProcessor, no_mask, projected, projected_text


class SelfProcessor(SlaProcessor):
    """Self-attention of diffusers' `Attention`: PixArt, and the transformer blocks of UNets."""

    def forward(self, attn: Any, states: Tensor, text: Tensor | None, mask: Tensor | None, rotary: Any) -> Tensor:
        """Attend within `states`, [B, L, C]; returns the same shape."""
        no_mask(mask)
        if text is not None or rotary is not None or states.dim() != 3:
            raise ConfigError("this layer was asked for cross-attention or for pictures that are not tokens")
        out = attn.to_out[1](attn.to_out[0](self.attend(*projected(attn, states))))
        out = out + states if attn.residual_connection else out
        return out / attn.rescale_output_factor


class SD3Processor(SlaProcessor):
    """Stable Diffusion 3: image, then text, each with its own projections; or the image alone."""

    def forward(self, attn: Any, states: Tensor, text: Tensor | None, mask: Tensor | None, rotary: Any) -> Any:
        """Attend within [image, text]; returns the image, and the text where there is one."""
        no_mask(mask)
        if text is None:
            return _finished(attn, self.attend(*projected(attn, states)))
        parts = zip(projected(attn, states), projected_text(attn, text), strict=True)
        out = self.attend(*(torch.cat(pair, 1) for pair in parts), text=text.shape[1])
        image, words = out[:, : states.shape[1]], out[:, states.shape[1] :]
        return _finished(attn, image), words if attn.context_pre_only else attn.to_add_out(words)


class FluxProcessor(SlaProcessor):
    """FLUX: text, then image, rotated together. A single-stream layer gets both in one and is told how much is text."""

    text_tokens: int | None = None
    """Of the call that is under way in a single-stream layer; `lrdiff.sla.models` sets it."""

    def forward(self, attn: Any, states: Tensor, text: Tensor | None, mask: Tensor | None, rotary: Any) -> Any:
        """Attend within [text, image]; returns image and text, or both in one as they came."""
        no_mask(mask)
        if text is None and self.text_tokens is None:
            raise ConfigError("a single-stream layer was called outside its block, so its text is unknown")
        count = int(self.text_tokens or 0) if text is None else text.shape[1]
        q, k, v = projected(attn, states)
        if text is not None:
            q, k, v = (torch.cat(pair, 1) for pair in zip(projected_text(attn, text), (q, k, v), strict=True))
        if rotary is not None:
            q, k = (apply_rotary_emb(x, rotary, sequence_dim=1) for x in (q, k))
        out = self.attend(*(_text_last(x, count) for x in (q, k, v)), text=count)  # pyright: ignore[reportArgumentType]
        words, image = out[:, out.shape[1] - count :], out[:, : out.shape[1] - count]
        if text is None:
            return torch.cat([words, image], 1)
        return _finished(attn, image), attn.to_add_out(words)


class CogVideoXProcessor(SlaProcessor):
    """CogVideoX: text, then video, with the same projections; only the video is rotated."""

    def forward(self, attn: Any, states: Tensor, text: Tensor | None, mask: Tensor | None, rotary: Any) -> Any:
        """Attend within [text, video]; returns video and text."""
        no_mask(mask)
        if text is None:
            raise ConfigError("CogVideoX attends to text and video together; this call brings no text")
        q, k, v = projected(attn, torch.cat([states, text], 1))
        video = states.shape[1]
        if rotary is not None:
            q, k = (_rotated_head(x, video, rotary) for x in (q, k))
        out = _finished(attn, self.attend(q, k, v, text=text.shape[1]))
        return out[:, :video], out[:, video:]


class HunyuanVideoProcessor(SlaProcessor):
    """HunyuanVideo: video, then text padded to a fixed length. The padding is left out instead of masked.

    Nobody attends to the padding, so what becomes of it changes no picture: it gets zeros.
    """

    def forward(self, attn: Any, states: Tensor, text: Tensor | None, mask: Tensor | None, rotary: Any) -> Any:
        """Attend within [video, text]; returns video and text."""
        if text is None:
            raise ConfigError("HunyuanVideo attends to video and text together; this call brings no text")
        video, padded = states.shape[1], text.shape[1]
        kept = padded if mask is None else _unmasked(mask, video, padded)
        words = text[:, :kept]
        single = attn.add_q_proj is None
        q, k, v = projected(attn, torch.cat([states, words], 1) if single else states)
        if rotary is not None:
            q, k = (_rotated_head(x, video, rotary) for x in (q, k))
        if not single:
            q, k, v = (torch.cat(pair, 1) for pair in zip((q, k, v), projected_text(attn, words), strict=True))
        out = self.attend(q, k, v, text=kept)
        image, words = out[:, :video], out[:, video:]
        if getattr(attn, "to_out", None) is not None:
            image = _finished(attn, image)
        if getattr(attn, "to_add_out", None) is not None:
            words = attn.to_add_out(words)
        return image, torch.nn.functional.pad(words, (0, 0, 0, padded - kept))


def _finished(attn: Any, x: Tensor) -> Tensor:
    return attn.to_out[1](attn.to_out[0](x))


def _text_last(x: Tensor, text: int) -> Tensor:
    return torch.cat([x[:, text:], x[:, :text]], 1)


def _rotated_head(x: Tensor, count: int, rotary: Any) -> Tensor:
    """Rotate the first `count` tokens of [B, L, H, D]."""
    return torch.cat([apply_rotary_emb(x[:, :count], rotary, sequence_dim=1), x[:, count:]], 1)  # pyright: ignore


def _unmasked(mask: Tensor, video: int, text: int) -> int:
    """Return how many text tokens a mask of padded text leaves. Waits for the device."""
    rows = mask.reshape(len(mask), -1)
    if mask.dtype != torch.bool or rows.shape[1] != video + text:
        raise ShapeError(
            f"the attention mask is {mask.dtype} {list(mask.shape)}; only masks of padded text are supported, bool "
            f"[batch, 1, 1, {video + text}]"
        )
    counts = rows[:, video:].sum(1).tolist()
    expected = torch.arange(video + text, device=mask.device) < video + counts[0]
    if len(set(counts)) > 1 or not bool((rows == expected).all()):
        raise ConfigError(
            f"prompts of different lengths ({counts} tokens) in one batch, or a mask with gaps: run them one by one"
        )
    return counts[0]
