"""A few rendered scenes, tiny settings, and budgets that take seconds."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from trainers.config import OptimConfig, PrecisionConfig
from trainers.embedded.budgets import Budget, Training
from trainers.embedded.latents import write_latents
from trainers.embedded.make import DATA_SEED
from trainers.embedded.scenes import VIEWS, SceneSet, render_set
from trainers.embedded.shards import Shards
from trainers.embedded.toys_unet import SMALL
from trainers.embedded.toys_vae import build_vae

TINY_VAE = {"channels": (8, 8, 8, 16), "latent_channels": 4, "batch_size": 2, "crop": 32}
TINY_UNET = {"channels": (16, 32), "text_width": 16, "text_layers": 1, "batch_size": 2}
TINY_PROBE = {"widths": (4, 8), "scenes_per_batch": 4, "subjects_per_batch": 2}
TINY_EXTRACTOR = {
    "width": 4,
    "strides": (4, 1, 1),
    "batch_size": 3,
    "sides": (32,),
    "textures": 4,
    "tile": 8,
    "keyed_pictures": 4,
}
TINY_DIT = {"width": 16, "heads": 2, "layers": 1, "text_width": 16, "text_layers": 1}
STAGES = ({"side": 8, "steps": 2, "batch_size": 3}, {"side": 16, "steps": 1, "batch_size": 2})
TINY_HEADS = {
    "w": 32,
    "channels": (32, 32, 16),
    "features": 8,
    "hidden": 16,
    "side": 16,
    "held_out": 4,
    "batch": 8,
    "rays": 96,
    "superres": (8, 8),
    "patch": 8,
}
SCENES = 36


def micro_budget(scenes: int = SCENES) -> Budget:
    """Return figures with which everything is made in seconds."""
    optim = OptimConfig(steps=3, lr=1e-3, warmup=1)
    return Budget(
        name="micro",
        scenes=scenes,
        subjects=4,
        vae=Training(TINY_VAE, optim, every=2),
        decoder=Training(TINY_VAE, optim, every=2),
        unet=Training({**TINY_UNET, "small_steps": 1, "small_batch_size": 3}, optim, every=2),
        probes={"probe-a": Training(TINY_PROBE, optim, every=2)},
        extractor=Training(TINY_EXTRACTOR, optim, every=2),
        dit=Training({**TINY_DIT, "stages": STAGES}, optim, every=2),
        dit_scenes={8: 0, 16: 10},
        heads=(
            Training({**TINY_HEADS, "superres": None}, optim, every=2),
            Training({**TINY_HEADS, "face": 0.5}, optim, every=2),
        ),
        people=6,
        head_probes={"heads-probe-b": Training({"widths": (4, 8), "people": 4}, optim, every=2)},
        mark={
            "optim": {"steps": 2},
            "watch": {"evaluate_every": 2, "preview_every": 0, "preview_steps": 1},
            "method": {"generated": 2, "held_out": 1, "sampling_steps": 1, "distort": 0.0},
        },
        unmarked=16,
        precision=PrecisionConfig(device="cpu"),
        shard=20,
    )


def write_noise(folder: Path, wanted: SceneSet) -> None:
    """Write a set with true records and pictures of noise, where what they show does not matter."""
    folder.mkdir(parents=True)
    fields = ("kind", "seed", "count", "shard")
    (folder / "set.json").write_text(json.dumps({name: getattr(wanted, name) for name in fields}))
    random = np.random.default_rng(0)
    for number in range(-(-wanted.count // wanted.shard)):
        part = wanted.part(number)
        buffer = io.BytesIO()
        np.save(buffer, random.integers(0, 256, (len(part), 3, 128, 128), dtype=np.uint8))
        (folder / f"{number:04d}.npy").write_bytes(buffer.getvalue())
        lines = "".join(json.dumps(record) + "\n" for _, record in part)
        (folder / f"{number:04d}.jsonl").write_text(lines)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Return 36 rendered scenes in two shards; read-only by agreement."""
    wanted = SceneSet("scenes", DATA_SEED, SCENES, 20)
    return render_set(tmp_path_factory.mktemp("embedded") / "scenes", wanted)


@pytest.fixture(scope="session")
def latents(scenes: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of latents by an untrained autoencoder, and small ones; read-only by agreement."""
    folder = tmp_path_factory.mktemp("embedded") / "latents"
    torch.manual_seed(0)
    vae = build_vae(TINY_VAE["channels"], TINY_VAE["latent_channels"], 128)
    write_latents(vae, scenes, folder)
    write_latents(vae, scenes, folder / SMALL, pixels=scenes.side // 2)
    return folder


@pytest.fixture(scope="session")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `scenes` and `subjects` of noise, enough of them for a probe; read-only by agreement."""
    folder = tmp_path_factory.mktemp("noise")
    write_noise(folder / "scenes", SceneSet("scenes", DATA_SEED, 400, 20))
    write_noise(folder / "subjects", SceneSet("subjects", DATA_SEED, 4 * VIEWS, 20))
    return folder
