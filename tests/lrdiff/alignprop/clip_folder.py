"""A tiny random CLIP model in transformers' layout."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel

from tests.tiny import LENGTH, build_tokenizer


def build_tiny_clip(path: Path) -> Path:
    """Write a CLIP model for pictures of 16 px with embeddings of 12 numbers, and its tokenizer."""
    tokenizer = build_tokenizer()
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = size | {
        "vocab_size": len(tokenizer), "max_position_embeddings": LENGTH, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    torch.manual_seed(0)
    vision = size | {"image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
