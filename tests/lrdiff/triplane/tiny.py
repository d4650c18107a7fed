"""Generators small enough for a test."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch

from lrdiff.triplane.cameras import look_at
from lrdiff.triplane.config import RenderConfig, SuperresConfig, TriplaneConfig
from lrdiff.triplane.generator import TriplaneGenerator
from lrdiff.triplane.store import save

MINI = TriplaneConfig(
    z=24, w=128, c=0, mapping_gain=1.0, channels=(64, 64, 64, 32), features=8, hidden=32, colours=3, noise=False,
    render=RenderConfig(coarse=16, fine=0, near=2.1, far=3.4, box=1.2, white=True, density_scale=20.0, side=32),
    focal=3.2,
)  # fmt: skip
"""The reference's smallest self-made generator: 0.32 M parameters."""

TINY = TriplaneConfig(
    z=8, w=16, c=25, channels=(12, 10, 8), features=4, hidden=8, colours=6,
    superres=SuperresConfig(8, (10, 6)), render=RenderConfig(coarse=6, fine=6, side=8),
)  # fmt: skip
"""Every part there is, at 32 px."""


def tiny(seed: int = 0, config: TriplaneConfig = TINY) -> TriplaneGenerator:
    torch.manual_seed(seed)
    generator = TriplaneGenerator(config)
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            torch.nn.init.constant_(parameter, 0.1)
    return generator


def build_tiny_heads(folder: Path, seed: int = 0) -> Path:
    """Write a random generator at 16 px, without cameras and super-resolution, as a folder."""
    render = dataclasses.replace(TINY.render, side=16)
    save(tiny(seed, dataclasses.replace(TINY, c=0, superres=None, render=render)), folder, {"made": "by a test"})
    return folder


def write_cameras(path: Path, images: Path, yaw: float = 0.2) -> Path:
    """Write a camera file for the pictures of a folder, all from one side."""
    camera = look_at(torch.tensor([yaw]), torch.zeros(1), TINY.radius, TINY.focal)[0].tolist()
    path.write_text(json.dumps({picture.name: camera for picture in sorted(images.glob("*.png"))}))
    return path
