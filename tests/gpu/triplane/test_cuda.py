"""Heads on a CUDA device: pictures and gradients as on the CPU, bits that repeat, half precision, a person."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lrdiff.artifact import Artifact
from lrdiff.triplane.cameras import frontal
from lrdiff.triplane.lora import LoraConfig, Personal
from lrdiff.triplane.personal import wear
from lrdiff.triplane.store import fingerprint, load
from tests.lrdiff.triplane.tiny import TINY, tiny
from tests.trainers.my3dgen.conftest import Studio, studio
from trainers.loop import fit

__all__ = ["studio"]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
DEVICE = "cuda"
Z = torch.randn(2, TINY.z, generator=torch.Generator().manual_seed(7))


def test_pictures_and_gradients_agree_with_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # it keeps ten bits, the tolerance asks for more
    results = []
    for device in ("cpu", DEVICE):
        generator = tiny().to(device)
        torch.manual_seed(1)
        personal = Personal(generator, LoraConfig(decoder=True))
        with torch.no_grad():
            for name, parameter in personal.named_parameters():
                if name.endswith(".b"):
                    parameter.copy_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
                if name.endswith(".a"):
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
        seen = generator(Z.to(device), frontal(TINY).to(device).expand(2, -1))
        (seen.image.square().mean() + seen.depth.mean()).backward()
        grads = [p.grad.cpu() for _, p in personal.named_parameters() if p.grad is not None]
        results.append([t.detach().cpu() for t in (seen.image, seen.raw, seen.depth, seen.opacity)] + grads)
    exact, found = results
    assert len(exact) == len(found) > 20
    for one, other in zip(exact, found, strict=True):
        assert float((one - other).abs().max()) <= 2e-3 * float(one.abs().max()) + 1e-6


@torch.no_grad()
def test_bits_repeat_and_half_precision_is_near() -> None:
    generator = tiny().to(DEVICE)
    camera = frontal(TINY).to(DEVICE).expand(2, -1)
    ws = generator.mapping(Z.to(DEVICE), camera)
    full = generator.view(ws, camera).image
    assert torch.equal(generator.view(ws, camera).image, full)
    half = generator.view(ws, camera, half=True).image
    assert half.dtype == torch.float32
    assert 0 < float((half - full).abs().max()) <= 2e-2 * float(full.abs().max())


def test_a_person_learned_there_is_drawn_alike_on_the_cpu(studio: Studio, tmp_path: Path) -> None:
    trainer, config, engine = studio.method(
        precision__device=DEVICE, optim__steps=60, optim__lr=0.01, method__r=2, method__anchor_steps=40
    )
    before = trainer.evaluate(torch.Generator())["psnr_photos"]
    fit(trainer, config.optim, engine=engine, seed=0)
    assert trainer.evaluate(torch.Generator())["psnr_photos"] > before + 1
    trainer.artifact().save(tmp_path / "adapter.safetensors")
    generator = load(studio.model)
    _, anchors = wear(generator, fingerprint(studio.model), Artifact.load(tmp_path / "adapter.safetensors"))
    ws = anchors.ws.expand(-1, generator.config.latents, -1)
    with torch.no_grad():
        here = generator.view(ws, anchors.cameras).image
        there = trainer.generator.view(ws.to(DEVICE), anchors.cameras.to(DEVICE)).image.cpu()
    assert float((here - there).abs().max()) <= 2e-2
