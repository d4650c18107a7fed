"""The generator of heads learns from heads whose latents are known."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from lrdiff.rng import stream
from lrdiff.triplane.generator import TriplaneGenerator
from lrdiff.triplane.store import load
from trainers.config import OptimConfig, PrecisionConfig
from trainers.embedded.heads import HEADS, HeadsConfig, TrainHeads
from trainers.embedded.heads_make import CPU, GPU, HeadsBudget, make

SMALL = dataclasses.replace(
    HEADS, w=32, channels=(32, 32, 16), features=8, hidden=16, colours=3, superres=None,
    render=dataclasses.replace(HEADS.render, coarse=16, side=16),
)  # fmt: skip


def test_the_shipped_sizes_fit_into_16_mb_and_give_128_px() -> None:
    with torch.device("meta"):
        generator = TriplaneGenerator(HEADS)
    assert 4 * sum(tensor.numel() for tensor in generator.state_dict().values()) < 16e6
    assert (HEADS.side, HEADS.render.side) == (128, 64)
    assert GPU.generator == CPU.generator == HEADS


def test_making_learns_and_leaves_a_folder(tmp_path: Path) -> None:
    method = HeadsConfig(pool=24, batch=4, held_out=4)
    torch.manual_seed(0)
    before = TrainHeads(method, SMALL).evaluate(stream(0, "evaluate"))
    optim = OptimConfig(steps=60, lr=1e-2, warmup=5, beta1=0.0, clip=10.0)
    budget = HeadsBudget("test", method, optim, PrecisionConfig(device="cpu"), SMALL)
    after = make(tmp_path / "heads", budget)
    assert after["psnr_unseen"] > before["psnr_unseen"] + 3, (before, after)
    assert after["mask_unseen"] < before["mask_unseen"]
    made = load(tmp_path / "heads")
    assert made.config == SMALL
    assert float(made.backbone.mapping.get_buffer("w_avg").abs().max()) > 0


def test_gradients_reach_every_parameter_and_targets_are_exact() -> None:
    superres = dataclasses.replace(HEADS.superres, input=16, channels=(8, 8)) if HEADS.superres else None
    trainer = TrainHeads(HeadsConfig(batch=2, held_out=1), dataclasses.replace(SMALL, colours=4, superres=superres))
    batch = trainer.batch(0, stream(0, "batch", 0))
    assert batch["pixels"].shape == (2, 3, 32, 32)
    loss, metrics = trainer(batch, stream(0, "forward", 0))
    loss.backward()
    missing = [name for name, p in trainer.generator.named_parameters() if p.grad is None]
    assert [name for name in missing if not name.endswith("noise_strength")] == [], "super-resolution adds no noise"
    assert set(metrics) == {"psnr", "psnr_raw", "mask", "depth"}
    again = trainer.batch(0, stream(0, "batch", 0))
    assert torch.equal(again["pixels"], batch["pixels"])
    inside = batch["mask"]
    assert float(batch["depth"][inside].float().min()) / 4096 == pytest.approx(2.2, abs=0.3)
    assert {name: tuple(image.shape) for name, image in trainer.preview(stream(0, "p")).items()} == {
        "made": (1, 3, 32, 32), "meant": (1, 3, 32, 32)
    }  # fmt: skip
