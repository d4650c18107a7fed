"""The parts of `toys-dit` before training: PixArt's transformer, T5's encoder and tokenizer, small, and a scheduler.

Every part is of the class that PixArt's pipeline in diffusers expects, so the finished folder loads there as it is.
"""

from __future__ import annotations

import string
from collections.abc import Iterable
from typing import Any, cast

import torch
from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel
from transformers import T5Config, T5EncoderModel, T5Tokenizer

LENGTH = 32
"""Tokens of a prompt, end included."""
SIDE = 32
"""Native side in latents, one token each: 1,024 tokens."""
SHIFT = 3.0
"""Of the sampling and training times towards noise at the native side; a quarter of the pixels of PixArt's 512."""


def build_transformer(channels: int, *, width: int, heads: int, layers: int, text_width: int) -> Any:
    """Return a fresh transformer whose tokens are single latents.

    The modulation starts independent of the time, every branch of a block at 0.3 of its strength, and the output at
    zero. diffusers' own start has gates of random sign around 0.07, from which few steps lead nowhere.
    """
    network: Any = cast(Any, PixArtTransformer2DModel)(
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        in_channels=channels,
        out_channels=channels,
        num_layers=layers,
        cross_attention_dim=width,
        sample_size=SIDE,
        patch_size=1,
        caption_channels=text_width,
        interpolation_scale=1,
        use_additional_conditions=False,
    )
    torch.nn.init.zeros_(network.adaln_single.linear.weight)
    torch.nn.init.zeros_(network.adaln_single.linear.bias)
    torch.nn.init.zeros_(network.proj_out.weight)
    torch.nn.init.zeros_(network.proj_out.bias)
    with torch.no_grad():
        for block in network.transformer_blocks:
            # shift, scale, gate of the attention, then of the feed-forward
            block.scale_shift_table.zero_()
            block.scale_shift_table[[2, 5]] = 0.3
        network.scale_shift_table.zero_()
    return network


def build_text_encoder(tokenizer: T5Tokenizer, width: int, layers: int) -> T5EncoderModel:
    """Return a fresh text encoder for a tokenizer."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=width,
            d_kv=width // 4,
            d_ff=2 * width,
            num_layers=layers,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
        )
    )


def build_tokenizer(words: Iterable[str]) -> T5Tokenizer:
    """Return a tokenizer that has each of these lower-case words as one token and spells all others."""
    signs = string.ascii_lowercase + string.digits + string.punctuation
    pieces = dict.fromkeys([*(f"▁{word}" for word in words), "▁", *signs])
    # Equal scores: the fewest pieces win.
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -2.0) for piece in pieces)]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=LENGTH)


def build_scheduler() -> Any:
    """Return the scheduler of the shipped folder: flow matching, times shifted by `SHIFT`."""
    return cast(Any, DPMSolverMultistepScheduler)(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT
    )
