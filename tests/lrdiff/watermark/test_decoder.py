"""The adapter's place, size, start and end."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny
from peft import LoraConfig
from torch import Tensor, nn

from lrdiff.errors import TargetError
from lrdiff.inject import inject, set_weights
from lrdiff.watermark.decoder import default_lora_config, fuse


def tiny_kl() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    ).eval()


def tiny_taesd() -> AutoencoderTiny:
    torch.manual_seed(0)
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(2, 1),
    ).eval()


def tiny_dc() -> AutoencoderDC:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in {
            "block_types": "ResBlock",
            "block_out_channels": (8, 16),
            "qkv_multiscales": ((), ()),
        }.items()
    }
    layers = {"encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1)}
    return AutoencoderDC(latent_channels=4, attention_head_dim=8, **options, **layers).eval()


class PlainDecoder(nn.Module):
    """A decoder of bare convolutions, without blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(latent_channels=4)
        self.decoder = nn.Sequential(nn.Conv2d(4, 8, 3, 1, 1), nn.Upsample(scale_factor=2))
        for _ in range(2):
            self.decoder.append(nn.Conv2d(8, 8, 3, 1, 1))
        self.decoder.append(nn.Conv2d(8, 3, 1))

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)


def decode(vae: Any) -> Tensor:
    z = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return vae.decode(z).sample


def trainable(vae: nn.Module) -> int:
    return sum(p.numel() for p in vae.parameters() if p.requires_grad)


def add(vae: Any, config: LoraConfig, adapter_name: str) -> None:
    """Add the adapter as diffusers does, where the class can."""
    if hasattr(vae, "add_adapter"):
        vae.add_adapter(config, adapter_name=adapter_name)
    else:
        inject(vae, config, adapter_name)


def stable_diffusion() -> AutoencoderKL:
    with torch.device("meta"):
        return AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
        ).eval()


def places(config: LoraConfig) -> set[str]:
    assert isinstance(config.target_modules, str)
    return {re.sub(r"\\(.)", r"\1", name) for name in config.target_modules.split("|")}


@pytest.mark.parametrize(
    ("target", "count"),
    [
        ("decoder-last-block", 35_328),
        (r"decoder\.up_blocks\.3\.resnets\.\d+\.conv[12]", 35_328),
        (r"decoder\.up_blocks\.0\.resnets\.\d+\.conv[12]", 122_880),
    ],
)
def test_the_published_number_of_parameters(target: str, count: int) -> None:
    vae = stable_diffusion()
    config = default_lora_config(vae, target)
    assert len(places(config)) == 6
    vae.requires_grad_(False)
    vae.add_adapter(config)
    assert trainable(vae) == count


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (tiny_kl, {f"decoder.up_blocks.1.resnets.{i}.conv{j}" for i in range(2) for j in (1, 2)}),
        (tiny_taesd, {f"decoder.layers.6.conv.{i}" for i in (0, 2, 4)}),
        (tiny_dc, {"decoder.up_blocks.0.1.conv1", "decoder.up_blocks.0.1.conv2"}),
        (PlainDecoder, {"decoder.2", "decoder.3"}),
    ],
    ids=["kl", "tiny", "dc", "plain"],
)
def test_the_last_block_is_found_by_structure(build: Any, expected: set[str]) -> None:
    assert places(default_lora_config(build())) == expected


def test_the_place_is_the_same_when_another_adapter_is_there() -> None:
    vae = tiny_kl()
    config = default_lora_config(vae)
    inject(vae, config, "first")
    assert default_lora_config(vae).target_modules == config.target_modules


@pytest.mark.parametrize("build", [tiny_kl, tiny_taesd])
def test_nothing_changes_at_the_start_and_all_goes_into_the_weights_at_the_end(build: Any) -> None:
    vae = build()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    clean = decode(vae)
    config = default_lora_config(vae)
    add(vae, config, adapter_name="mark")
    assert torch.equal(decode(vae), clean)
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02)
    marked = decode(vae)
    assert (marked - clean).abs().max() > 1e-3
    report = fuse(vae, "mark")
    assert (decode(vae) - marked).abs().max() <= 1e-5
    after = vae.state_dict()
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{name}.weight" for name in report.targets} == {f"{name}.weight" for name in places(config)}
    add(vae, config, adapter_name="mark")  # diffusers, where it was asked, knows that none is present


def test_many_places_stay_those_of_the_decoder() -> None:
    """Peft shortens lists of 20 names and more to endings such as conv1, which the encoder has too."""
    vae = stable_diffusion()
    config = default_lora_config(vae, r"decoder\.(mid_block|up_blocks).*conv\d?")
    report = inject(vae, config, "mark")
    assert len(report.targets) > 20
    assert set(report.targets) == places(config)
    again = LoraConfig(**{k: v for k, v in config.to_dict().items() if k in ("r", "lora_alpha", "target_modules")})
    assert inject(stable_diffusion(), again, "mark").targets == report.targets


def test_another_adapter_survives_the_merge() -> None:
    vae = tiny_kl()
    for name in ("mark", "other"):
        inject(vae, default_lora_config(vae), name)
    set_weights(vae, {"mark": 1.0, "other": 1.0})
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02)
    both = decode(vae)
    fuse(vae, "mark")
    assert (decode(vae) - both).abs().max() <= 1e-5
    fuse(vae, "other")
    assert (decode(vae) - both).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("target", "reason"),
    [("nothing", "matches no"), ("(", "no regular expression"), (r".*\.conv1", "outside the decoder")],
)
def test_unusable_targets_are_refused(target: str, reason: str) -> None:
    with pytest.raises(TargetError, match=reason):
        default_lora_config(tiny_kl(), target)


def test_models_without_a_place_are_refused() -> None:
    with pytest.raises(TargetError, match="no decoder"):
        default_lora_config(nn.Linear(2, 2))
    vae = PlainDecoder()
    vae.decoder = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(TargetError, match="no 2D convolutions"):
        default_lora_config(vae)
    vae.decoder = nn.Sequential(nn.Conv2d(4, 3, 3))
    with pytest.raises(TargetError, match="no convolution at full resolution"):
        default_lora_config(vae)
    with pytest.raises(TargetError, match="matched no layer"):
        fuse(tiny_kl(), "mark")
