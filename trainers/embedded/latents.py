"""Scenes and their mirror images as latents on disk, made once by a finished autoencoder."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

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
def write_latents(
    vae: AutoencoderKL, scenes: Shards, folder: Path, *, pixels: int | None = None, count: int | None = None
) -> None:
    """Write `latents.npy` (float16 [2 N, C, h, w]) and `scenes.jsonl` (2 N records), mirror images second.

    A mirror image has the same caption but for left and right, so its record has those two exchanged.

    Args:
        vae: The finished autoencoder.
        scenes: What to encode.
        folder: Where to write.
        pixels: Scale pictures to this side first; none leaves them as they are.
        count: Take the first of them only; none takes all.
    """
    taken = scenes.count if count is None else min(count, scenes.count)
    folder.mkdir(parents=True, exist_ok=True)
    halves: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for part in torch.arange(taken).split(64):
        images = scenes.images(part)
        if pixels is not None:
            images = F.interpolate(images, (pixels, pixels), mode="bicubic", antialias=True)
        halves[0].append(encode(vae, images).numpy().astype(np.float16))
        halves[1].append(encode(vae, images.flip(-1)).numpy().astype(np.float16))
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate([*halves[0], *halves[1]]))
    records = scenes.records()[:taken]
    mirrored = [{**r, "relations": [MIRRORED.get(name, name) for name in r["relations"]]} for r in records]
    lines = "".join(json.dumps(record) + "\n" for record in [*records, *mirrored])
    write_bytes(folder / "scenes.jsonl", lines.encode())
    write_bytes(folder / "latents.npy", buffer.getvalue())
