"""Scenes and their mirror images as latents on disk, made once by a finished autoencoder."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from lrdiff.files import write_bytes
from trainers.embedded.shards import Shards

MIRRORED = {"left of": "right of", "right of": "left of"}


@torch.no_grad()
def moments(vae: AutoencoderKL, scenes: Shards, count: int) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each latent channel over the first `count` scenes, [C] each."""
    means = [encode(vae, scenes.images(part)) for part in torch.arange(min(count, scenes.count)).split(64)]
    values = torch.cat(means).transpose(0, 1).flatten(1)
    return values.mean(1), values.std(1)


def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Return the posterior's mean of images [B, 3, H, W]: [B, C, h, w]."""
    parameter = next(vae.parameters())
    found = [vae.encode(part.to(parameter)).latent_dist.mean for part in images.split(16)]  # pyright: ignore
    return torch.cat(found).float().cpu()


@torch.no_grad()
def write_latents(vae: AutoencoderKL, scenes: Shards, folder: Path) -> None:
    """Write `latents.npy` (float16 [2 N, C, h, w]) and `scenes.jsonl` (2 N records), mirror images second.

    A mirror image has the same caption but for left and right, so its record has those two exchanged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    halves: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for part in torch.arange(scenes.count).split(64):
        images = scenes.images(part)
        halves[0].append(encode(vae, images).numpy().astype(np.float16))
        halves[1].append(encode(vae, images.flip(-1)).numpy().astype(np.float16))
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate([*halves[0], *halves[1]]))
    records = scenes.records()
    mirrored = [{**r, "relations": [MIRRORED.get(name, name) for name in r["relations"]]} for r in records]
    lines = "".join(json.dumps(record) + "\n" for record in [*records, *mirrored])
    write_bytes(folder / "scenes.jsonl", lines.encode())
    write_bytes(folder / "latents.npy", buffer.getvalue())
