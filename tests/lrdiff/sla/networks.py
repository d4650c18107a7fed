"""Tiny random transformers of every supported class in its real layout, each with a call on fixed inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    FluxTransformer2DModel,
    HunyuanVideoTransformer3DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    WanTransformer3DModel,
)
from torch import Tensor, nn


@dataclass(frozen=True)
class Network:
    """A class of transformers.

    Attributes:
        build: Makes the model.
        inputs: Makes the arguments of a call.
        layers: Names of the layers that are to be replaced.
    """

    build: Callable[[], Any]
    inputs: Callable[[], dict[str, Any]]
    layers: tuple[str, ...]

    def make(self) -> Any:
        """Return the model, the same at every call, with every weight away from a start that would hide a layer."""
        torch.manual_seed(0)
        model: nn.Module = self.build().eval()
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "table" in name:
                nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
        return model

    def call(self, model: Any) -> Tensor:
        """Run the model on fixed inputs in its own number format."""
        torch.manual_seed(1)
        kind = next(model.parameters()).dtype
        given = {name: _cast(value, kind) for name, value in self.inputs().items()}
        return model(**given, return_dict=False)[0]


def _cast(value: Any, kind: torch.dtype) -> Any:
    if isinstance(value, tuple):
        return tuple(_cast(item, kind) for item in value)
    return value.to(kind) if isinstance(value, Tensor) and value.is_floating_point() else value


def wan() -> Any:
    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8, freq_dim=16,
        ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip


def wan_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, 4, 3, 10, 12),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 5, 8),
    }


def flux() -> Any:
    return cast(Any, FluxTransformer2DModel)(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip


def flux_inputs() -> dict[str, Any]:
    places = torch.cartesian_prod(torch.zeros(1), torch.arange(9.0), torch.arange(11.0))
    return {
        "hidden_states": torch.randn(2, 99, 4),
        "encoder_hidden_states": torch.randn(2, 21, 8),
        "pooled_projections": torch.randn(2, 8),
        "timestep": torch.tensor([0.5, 0.2]),
        "img_ids": places,
        "txt_ids": torch.zeros(21, 3),
    }


def sd3() -> Any:
    return SD3Transformer2DModel(
        sample_size=20, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=8, caption_projection_dim=32, pooled_projection_dim=8,
        pos_embed_max_size=16, qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip


def sd3_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 4, 20, 18),
        "encoder_hidden_states": torch.randn(2, 21, 8),
        "pooled_projections": torch.randn(2, 8),
        "timestep": torch.tensor([500.0, 20.0]),
    }


def cogvideox() -> Any:
    return CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8,
        text_embed_dim=8, num_layers=2, sample_width=12, sample_height=10, sample_frames=9, patch_size=2,
        temporal_compression_ratio=4, max_text_seq_length=21, use_rotary_positional_embeddings=True,
    )  # fmt: skip


def cogvideox_inputs() -> dict[str, Any]:
    angles = torch.randn(90, 8).repeat_interleave(2, 1)
    return {
        "hidden_states": torch.randn(1, 3, 4, 10, 12),
        "encoder_hidden_states": torch.randn(1, 21, 8),
        "timestep": torch.tensor([500]),
        "image_rotary_emb": (angles.cos(), angles.sin()),
    }


def hunyuan() -> Any:
    return cast(Any, HunyuanVideoTransformer3DModel)(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, patch_size=2, patch_size_t=1, text_embed_dim=8,
        pooled_projection_dim=8, rope_axes_dim=(4, 6, 6),
    )  # fmt: skip


def hunyuan_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, 4, 3, 10, 12),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 21, 8),
        "encoder_attention_mask": (torch.arange(21) < 13)[None],
        "pooled_projections": torch.randn(1, 8),
        "guidance": torch.tensor([4000.0]),
    }


def pixart() -> Any:
    return PixArtTransformer2DModel(
        sample_size=20, patch_size=2, in_channels=4, out_channels=8, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, cross_attention_dim=32, caption_channels=8, use_additional_conditions=False,
    )  # fmt: skip


def pixart_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 4, 20, 18),
        "encoder_hidden_states": torch.randn(2, 7, 8),
        "encoder_attention_mask": (torch.arange(7) < 5).float().expand(2, -1),
        "timestep": torch.tensor([500, 20]),
    }


def unet() -> Any:
    return UNet2DConditionModel(
        sample_size=20, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=32, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=4,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def unet_inputs() -> dict[str, Any]:
    return {
        "sample": torch.randn(2, 4, 20, 20),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(2, 7, 32),
    }


NETWORKS = {
    "wan": Network(wan, wan_inputs, ("blocks.0.attn1", "blocks.1.attn1")),
    "flux": Network(flux, flux_inputs, ("transformer_blocks.0.attn", "single_transformer_blocks.0.attn")),
    "sd3": Network(
        sd3, sd3_inputs, ("transformer_blocks.0.attn", "transformer_blocks.0.attn2", "transformer_blocks.1.attn")
    ),
    "cogvideox": Network(cogvideox, cogvideox_inputs, ("transformer_blocks.0.attn1", "transformer_blocks.1.attn1")),
    "hunyuan": Network(hunyuan, hunyuan_inputs, ("transformer_blocks.0.attn", "single_transformer_blocks.0.attn")),
    "pixart": Network(pixart, pixart_inputs, ("transformer_blocks.0.attn1", "transformer_blocks.1.attn1")),
    "unet": Network(
        unet,
        unet_inputs,
        tuple(
            f"{block}.attentions.{n}.transformer_blocks.0.attn1"
            for block, n in (("down_blocks.1", 0), ("up_blocks.0", 0), ("up_blocks.0", 1), ("mid_block", 0))
        ),
    ),
}
