"""From a training of `heads` to the shipped folder: weights, mean latent, and directions of what is known of a head."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from lrdiff.triplane.hull import directions
from lrdiff.triplane.inversion import latent_space
from lrdiff.triplane.store import save, save_directions
from lrdiff.world.heads import heads
from trainers.embedded.export import load_trained, replacing_folder
from trainers.embedded.heads import HeadsConfig, TrainHeads
from trainers.rundir import open_run

MEAN_OF = 10_000
"""Latents whose mean is the middle of w."""


def export_heads(run_path: Path, out: Path) -> int:
    """Write generator.safetensors, config.json and directions.safetensors.

    Args:
        run_path: Run directory of `TrainHeads`; its newest checkpoint is taken.
        out: Folder to write; one that is there is replaced.

    Returns:
        The step of the checkpoint.

    Raises:
        RunError: The run has no checkpoint, or one of another configuration.
    """
    run = open_run(run_path)
    method = TrainHeads(HeadsConfig.model_validate(run.read()["config"]["method"]))
    with torch.no_grad():
        step = load_trained(method, run)
        generator = method.generator.eval()
        mean, _ = latent_space(generator, MEAN_OF, 0)
        generator.backbone.mapping.get_buffer("w_avg").copy_(mean)
    with replacing_folder(out) as folder:
        save(generator, folder, {"made": "regression on procedural heads with known latents", "steps": step})
        save_directions(folder, directions(generator, traits))
    return step


def traits(z: Tensor) -> dict[str, Tensor]:
    """Return what can be edited of the heads of latents z [B, 24], each [B]."""
    person = heads(z)
    plain = (
        "smile",
        "open",
        "brow",
        "lid",
        "jaw_width",
        "jaw_length",
        "nose_length",
        "nose_width",
        "hairline",
        "eye_r",
    )
    found = {name: getattr(person, name)[:, 0] for name in plain}
    light = person.light[:, 0]
    shades = {"skin": person.skin, "hair": person.hair}
    return (
        found
        | {f"{name}_brightness": colour[:, 0].mean(-1) for name, colour in shades.items()}
        | {"light_from_right": torch.atan2(light[:, 0], light[:, 2]) / math.pi}
    )
