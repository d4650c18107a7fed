"""Marks for a tiny model whose second factor is random instead of trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lrdiff import backbones
from lrdiff.artifact import Artifact, Header
from lrdiff.decoders import fingerprint_of
from lrdiff.inject import inject, state
from lrdiff.rng import stream
from lrdiff.watermark.decoder import default_lora_config


def save_mark(model: Path, path: Path, size: float = 0.02, **header: Any) -> Path:
    """Write the adapter of a mark for a model's decoder; its key has the id "k1"."""
    backbone = backbones.load(model)
    config = default_lora_config(backbone.vae)
    inject(backbone.vae, config, "new")
    rng = stream(5, "mark")
    tensors = {
        key: value.clone() if "lora_A" in key else torch.randn(value.shape, generator=rng) * size
        for key, value in state(backbone.vae, "new").items()
    }
    values: dict[str, Any] = {
        "method": "watermark",
        "adapter": "lora",
        "config": config.to_dict(),
        "base_model": backbone.name,
        "base_fingerprint": fingerprint_of(model / "vae"),
        "component": "vae",
        "extra": {"key": "k1", "extractor": "e" * 64, "model": str(model), "registered": False},
        **header,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    Artifact(tensors, Header(**values)).save(path)
    return path
