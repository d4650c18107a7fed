"""A tiny random folder of every family of base models, made of diffusers' own classes in its real layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tests.tiny import LENGTH, LETTERS, WORDS, build_tiny_model, build_tokenizer

SIDE = 32
BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def vae(channels: int, *, quantised: bool = True, **settings: Any) -> AutoencoderKL:
    return cast(Any, AutoencoderKL)(
        sample_size=SIDE,
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        scaling_factor=0.5,
        use_quant_conv=quantised,
        use_post_quant_conv=quantised,
        **settings,
    )


def clip(kind: Any, width: int, projection: int = 32) -> Any:
    tokenizer: Any = build_tokenizer()
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            projection_dim=projection,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).eval()


def t5(width: int = 32) -> T5EncoderModel:
    config = T5Config(vocab_size=200, d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
    return T5EncoderModel(config).eval()


def t5_tokenizer() -> T5Tokenizer:
    pieces = [*(f"▁{word}" for word in WORDS), "▁", *LETTERS]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -2.0) for piece in dict.fromkeys(pieces))]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=LENGTH)


def build_sd1(path: Path) -> Path:
    return build_tiny_model(path)


def build_sd2(path: Path) -> Path:
    return build_tiny_model(path, prediction_type="v_prediction")


def build_sdxl(path: Path) -> Path:
    torch.manual_seed(0)
    unet = cast(Any, UNet2DConditionModel)(
        sample_size=SIDE // 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=48,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
    )
    cast(Any, StableDiffusionXLPipeline)(
        vae=vae(4),
        text_encoder=clip(CLIPTextModel, 16),
        text_encoder_2=clip(CLIPTextModelWithProjection, 32),
        tokenizer=build_tokenizer(),
        tokenizer_2=build_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading"),
    ).save_pretrained(path)
    return path


def build_sd3(path: Path, with_t5: bool = True) -> Path:
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=SIDE // 2,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    cast(Any, StableDiffusion3Pipeline)(
        vae=vae(16, quantised=False, shift_factor=0.06),
        text_encoder=clip(CLIPTextModelWithProjection, 16),
        text_encoder_2=clip(CLIPTextModelWithProjection, 32),
        text_encoder_3=t5(64) if with_t5 else None,
        tokenizer=build_tokenizer(),
        tokenizer_2=build_tokenizer(),
        tokenizer_3=t5_tokenizer() if with_t5 else None,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    ).save_pretrained(path)
    return path


def build_flux(path: Path, dev: bool = True) -> Path:
    torch.manual_seed(0)
    transformer = cast(Any, FluxTransformer2DModel)(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=dev,
        axes_dims_rope=(4, 6, 6),
    )
    shifting = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0} if dev else {}
    cast(Any, FluxPipeline)(
        vae=vae(16, quantised=False, shift_factor=0.1),
        text_encoder=clip(CLIPTextModel, 16),
        text_encoder_2=t5(),
        tokenizer=build_tokenizer(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
        scheduler=cast(Any, FlowMatchEulerDiscreteScheduler)(**shifting),
    ).save_pretrained(path)
    return path


def build_pixart(path: Path, sigma: bool = True) -> Path:
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        sample_size=SIDE // 2,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=6,
        cross_attention_dim=48,
        caption_channels=32,
        use_additional_conditions=not sigma,
    )
    kind: Any = PixArtSigmaPipeline if sigma else PixArtAlphaPipeline
    kind(
        vae=vae(4),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        transformer=transformer,
        scheduler=cast(Any, DDIMScheduler)(**BETAS, clip_sample=False, steps_offset=1, set_alpha_to_one=False),
    ).save_pretrained(path)
    return path


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "sd1": build_sd1,
    "sd2": build_sd2,
    "sdxl": build_sdxl,
    "sd3": build_sd3,
    "flux-dev": build_flux,
    "flux-schnell": lambda path: build_flux(path, dev=False),
    "pixart-alpha": lambda path: build_pixart(path, sigma=False),
    "pixart-sigma": build_pixart,
}
