"""Parameter counts on the attention layers of SD 1.5 and SDXL equal the formulas, to the integer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, PeftConfig, inject_adapter_in_model
from torch import nn

from lrdiff.tensor_lora import TensorLoraConfig
from tests.lrdiff.tensor_lora.models import ATTENTION

SD15: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8}
SDXL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
}


@pytest.fixture(scope="module")
def sd15() -> nn.Module:
    return attention_of(SD15)


@pytest.fixture(scope="module")
def sdxl() -> nn.Module:
    return attention_of(SDXL)


def attention_of(config: dict[str, Any]) -> nn.Module:
    """Return the attention projections of a UNet of this public configuration, without memory for weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
        names = [n for n, _ in unet.named_modules() if n.endswith(tuple(f".{end}" for end in ATTENTION))]
        return nn.ModuleDict({name.replace(".", "_"): unet.get_submodule(name) for name in names})


def count(model: nn.Module, config: PeftConfig) -> int:
    """Put the adapter on a copy of the list of layers and count what can be trained."""
    adapted = inject_adapter_in_model(config, nn.ModuleDict(dict(model.named_children())))
    return sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def ours(transform_rank: int, r: int, residual: str = "ring") -> TensorLoraConfig:
    return TensorLoraConfig(target_modules=r".*", transform_rank=transform_rank, r=r, residual=residual)  # pyright: ignore[reportArgumentType]


def transform_only(rank: int) -> TensorLoraConfig:
    return TensorLoraConfig(target_modules=r".*", transform_rank=rank, residual="none")


def lora(r: int) -> LoraConfig:
    return LoraConfig(target_modules=r".*", r=r)


def test_the_layers_are_the_ones_the_paper_adapts(sd15: nn.Module, sdxl: nn.Module) -> None:
    assert (len(list(sd15.children())), len(list(sdxl.children()))) == (128, 560)
    assert sum(layer.weight.numel() for layer in sd15.children()) == 93_511_680  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    assert sum(layer.weight.numel() for layer in sdxl.children()) == 955_187_200  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (transform_only(1), 36_064),
        (transform_only(2), 144_256),
        (ours(0, 2), 28_448),
        (ours(0, 6), 256_032),
        (ours(2, 4, "lora"), 941_440),
        (ours(2, 6), 400_288),
        (ours(1, 2), 64_512),
        (lora(1), 199_296),
        (lora(4), 797_184),
    ],
    ids=["TRM 1", "TRM 2", "TR 2", "TR 6", "TLoRA* (2,4)", "TLoRA (2,6)", "TLoRA (1,2)", "LoRA 1", "LoRA 4"],
)
def test_sd15(sd15: nn.Module, config: PeftConfig, expected: int) -> None:
    assert count(sd15, config) == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (transform_only(1), 245_520),
        (transform_only(2), 982_080),
        (ours(0, 2), 151_200),
        (ours(2, 4, "lora"), 6_788_160),
        (ours(2, 6), 2_342_880),
        (ours(1, 2), 396_720),
        (lora(1), 1_451_520),
    ],
    ids=["TRM 1", "TRM 2", "TR 2", "TLoRA* (2,4)", "TLoRA (2,6)", "TLoRA (1,2)", "LoRA 1"],
)
def test_sdxl(sdxl: nn.Module, config: PeftConfig, expected: int) -> None:
    assert count(sdxl, config) == expected


def test_convolutions_count_channels_and_one_core_for_the_kernel() -> None:
    model = nn.Sequential(nn.Conv2d(12, 30, 3))
    adapted = inject_adapter_in_model(ours(2, 3), model)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained == 4 * (2 * 2 + 2 * 2 + 3 * 3) + 9 * ((2 + 3 + 5) + (2 + 2 + 3) + 9)
