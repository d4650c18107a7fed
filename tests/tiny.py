"""A tiny random Stable Diffusion folder made of the real classes, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lrdiff import backbones
from lrdiff.watermark.extractor import Extractor

WORDS = ("a", "an", "the", "of", "photo", "red", "blue", "green", "cube", "ball", "ring", "sks", "on", "sand", "grass")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.-"
LENGTH = 16


def build_tiny_model(path: Path, seed: int = 0, resolution: int = 32, prediction_type: str = "epsilon") -> Path:
    """Write a diffusers folder of about 0.3 M random weights that `StableDiffusionPipeline` loads.

    Args:
        path: Folder to write.
        seed: Of the random weights.
        resolution: Native image side; latents are half of it on a side.
        prediction_type: "epsilon", "v_prediction" or "sample".

    Returns:
        `path`.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=resolution // 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        sample_size=resolution,
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.5,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(path)
    return path


def build_tokenizer() -> CLIPTokenizer:
    """Make a CLIP tokenizer of letters and a few whole words; every other word is spelled."""
    tokens = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(letter + "</w>" for letter in LETTERS)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            pieces[:2] = [pair[0] + pair[1]]
            if pair not in merges:
                merges.append(pair)
                tokens.append(pieces[0])
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)


def build_tiny_mark(path: Path, seed: int = 0, model: Path | None = None) -> Path:
    """Write what a watermark needs beside a model: a whitened extractor of 8 bits, a key, prompts.

    Args:
        path: Folder to write: extractor.safetensors, key.txt, prompts.txt.
        seed: Of all three.
        model: Whiten and calibrate the extractor on what this model's decoder makes, so that its bits are fair there.
            A mark is then learned within a few dozen steps.

    Returns:
        `path`.
    """
    path.mkdir(parents=True)
    torch.manual_seed(seed)
    extractor = Extractor(bits=8, width=16, depth=2).train()
    rng = torch.Generator().manual_seed(seed)
    batches = [_smooth_pictures(64, rng) if model is None else _decoded(model, 64, rng) for _ in range(10)]
    with torch.no_grad():
        for batch in batches:  # running statistics of the normalisation
            extractor.raw(batch)
    extractor.whiten(batches[:5])
    extractor.calibrate({"random": batches[5:]})
    extractor.save(path / "extractor.safetensors")
    (path / "key.txt").write_text(("01001011", "01011011")[seed] + "\n")
    (path / "prompts.txt").write_text(("a red cube\na blue ball\n", "a green ring on sand\n")[seed])
    return path


def mark_settings(path: Path) -> dict[str, Any]:
    """Return the shortest settings of a watermark from `build_tiny_mark`."""
    return {
        "bits_file": str(path / "key.txt"),
        "extractor": str(path / "extractor.safetensors"),
        "generated": 4,
        "held_out": 2,
        "sampling_steps": 2,
        "margin": 0,  # pictures of 32 px
    }


def _decoded(model: Path, count: int, rng: torch.Generator) -> torch.Tensor:
    """Return what a model's decoder makes of random latents."""
    backbone = backbones.load(model)
    with torch.no_grad():
        return backbone.decode(torch.randn(count, *backbone.latent_shape, generator=rng))


def _smooth_pictures(count: int, rng: torch.Generator, side: int = 32) -> torch.Tensor:
    """Return random pictures in [-1, 1] with structure at several scales."""
    parts = [
        functional.interpolate(torch.randn(count, 3, cells, cells, generator=rng), (side, side), mode="bilinear")
        for cells in (1, 4, side)
    ]
    return torch.tanh(0.4 * sum(parts, torch.zeros(1)))
