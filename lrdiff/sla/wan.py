"""Sparse-linear attention in Wan's transformers: a processor with its own projection for every self-attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import Tensor, nn

from lrdiff.errors import BackendError, ConfigError, TargetError
from lrdiff.sla.operator import FeatureMap, Scope, sla_attention, zero_projection


class WanSlaProcessor(nn.Module):
    """Replaces Wan's self-attention by `sla_attention`, rotary embedding included.

    The projection of the linear branch stays float32 when the model is cast. Settings are those of `sla_attention`.

    Raises:
        ConfigError: A call brings a mask, cross-attention or fused projections.
        BackendError: Context parallelism or an attention backend of diffusers is set: neither can be honoured.
    """

    # diffusers writes to these only where they exist; a processor without them would ignore the request in silence.
    _attention_backend: Any = None
    _parallel_config: Any = None

    def __init__(
        self,
        features: int,
        *,
        topk: float = 0.05,
        skip: float = 0.10,
        block_q: int = 128,
        block_k: int = 64,
        scope: Scope = "marginal",
        feature_map: FeatureMap = "softmax",
    ) -> None:
        super().__init__()
        self.proj = zero_projection(features)
        self.topk, self.skip, self.block_q, self.block_k = topk, skip, block_q, block_k
        self.scope: Scope = scope
        self.feature_map: FeatureMap = feature_map

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WanSlaProcessor:
        def keep_float32(x: Tensor) -> Tensor:
            moved = fn(x)
            return moved if moved.dtype == x.dtype else x.to(moved.device)

        return super()._apply(keep_float32, recurse)

    def forward(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Attend within `hidden_states`, [B, L, C]; returns the same shape."""
        if encoder_hidden_states is not None or attention_mask is not None or attn.fused_projections:
            raise ConfigError(
                "sparse-linear attention in Wan is for unmasked self-attention with separate projections: leave out "
                "masks and cross-attention, and call unfuse_projections() first"
            )
        if self._parallel_config is not None or self._attention_backend is not None:
            raise BackendError(
                "sparse-linear attention does not support context parallelism or diffusers' attention backends: "
                "take enable_parallelism() or set_attention_backend() out"
            )
        heads = (attn.heads, -1)
        q = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, heads)
        k = attn.norm_k(attn.to_k(hidden_states)).unflatten(2, heads)
        v = attn.to_v(hidden_states).unflatten(2, heads)
        if rotary_emb is not None:
            q, k = _rotate(q, *rotary_emb), _rotate(k, *rotary_emb)
        out = sla_attention(
            q,
            k,
            v,
            proj=self.proj,
            topk=self.topk,
            skip=self.skip,
            block_q=self.block_q,
            block_k=self.block_k,
            scope=self.scope,
            feature_map=self.feature_map,
            layout="blhd",
        )
        return attn.to_out[1](attn.to_out[0](out.flatten(2)))


def attach_wan(model: nn.Module, **settings: Any) -> list[str]:
    """Give every self-attention of a Wan transformer its own processor, and return the names of those layers.

    Args:
        model: A diffusers Wan transformer. Cross-attention is left alone.
        settings: Those of `WanSlaProcessor`.

    Raises:
        TargetError: The model has no self-attention of Wan's class.
    """
    found = {n: m for n, m in model.named_modules() if isinstance(m, WanAttention) and not m.is_cross_attention}
    if not found:
        raise TargetError(
            f"{type(model).__name__} has no self-attention that can be replaced: give a diffusers Wan transformer"
        )
    for layer in found.values():
        weight: Tensor = layer.to_q.weight
        # diffusers' annotation lists only its own processors.
        processor: Any = WanSlaProcessor(weight.shape[0] // layer.heads, **settings).to(weight.device)
        layer.set_processor(processor)
    return list(found)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turned = torch.stack((-x[..., 1::2], x[..., 0::2]), -1).flatten(-2)
    return (x * cos + turned * sin).type_as(x)
