"""A LoRA made here loads in diffusers by itself: same keys, same alpha, same images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig

from lrdiff import backbones
from lrdiff.artifact import Artifact, Header
from lrdiff.inject import attach, inject, state
from lrdiff.rng import stream


@pytest.mark.parametrize("alpha", [4, 10])
def test_a_lora_file_gives_the_same_output_in_a_diffusers_pipeline(
    tiny_model_dir: Path, tmp_path: Path, alpha: int
) -> None:
    backbone = backbones.load(tiny_model_dir)
    config = LoraConfig(r=4, lora_alpha=alpha, target_modules=backbone.target_layers("attention"))
    inject(backbone.denoiser, config, "made")
    rng = stream(0, "weights")
    with torch.no_grad():
        for parameter in backbone.denoiser.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.3)
    header = Header("lora", "lora", config.to_dict(), backbone.name, backbone.fingerprint)
    Artifact(state(backbone.denoiser, "made"), header).save(tmp_path / "adapter.safetensors")

    fresh = backbones.load(tiny_model_dir)
    x, t, cond = (
        torch.randn(1, *fresh.latent_shape, generator=rng),
        torch.tensor([500]),
        fresh.condition(["a red cube"]),
    )
    with torch.no_grad():
        before = fresh.predict(x, t, cond)
        attach(fresh.denoiser, Artifact.load(tmp_path / "adapter.safetensors"), "ours")
        ours = fresh.predict(x, t, cond)
        pipeline = StableDiffusionPipeline.from_pretrained(tiny_model_dir, safety_checker=None)
        pipeline.load_lora_weights(tmp_path / "adapter.safetensors")
        theirs = pipeline.unet(x, t, next(iter(cond.values()))).sample
    assert float((ours - before).abs().max()) > 1e-3
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_same_lora_gives_the_same_bytes(tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["to_q"]).to_dict()
    made = Artifact({"a.weight": torch.ones(2, 3)}, Header("lora", "lora", config, "tiny", "0"))
    files = [tmp_path / f"{number}.safetensors" for number in range(8)]
    for file in files:
        made.save(file)
    assert len({file.read_bytes() for file in files}) == 1
