"""Small networks of real layers that the tensor-lora tests adapt, and the settings they use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from lrdiff.tensor_lora import TensorLoraConfig, TensorLoraLayer

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


class Mlp(nn.Module):
    """Two linear layers that are no squares, and a head that stays as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.lin0 = nn.Linear(12, 30)
        self.lin1 = nn.Linear(30, 8, bias=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.lin1(torch.relu(self.lin0(x)))))


class ConvNet(nn.Module):
    """Convolutions of several kinds: strided, dilated, 1x1, non-square kernel, circular padding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.conv1 = nn.Conv2d(8, 6, 1)
        self.conv2 = nn.Conv2d(6, 6, (3, 1), padding=(2, 0), dilation=2)
        self.conv3 = nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular", bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(torch.relu(self.conv2(torch.tanh(self.conv1(self.conv0(x))))))


def mlp(seed: int = 0) -> Mlp:
    torch.manual_seed(seed)
    return Mlp().eval()


def conv_net(seed: int = 0) -> ConvNet:
    torch.manual_seed(seed)
    return ConvNet().eval()


def tiny_unet(seed: int = 0) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    return unet.eval().requires_grad_(False)


def unet_inputs(seed: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(2, 4, 8, 8, generator=rng), torch.tensor([3, 700]), torch.randn(2, 5, 12, generator=rng)


def draw(*shape: int, seed: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    """Seeded normal numbers, the same in every dtype up to rounding."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def settings(targets: list[str] | str = ("lin0", "lin1"), **changes: Any) -> TensorLoraConfig:  # pyright: ignore[reportArgumentType]
    """Settings whose adapter does something from the start."""
    names = targets if isinstance(targets, str) else list(targets)
    rank = {} if changes.get("residual") == "none" else {"r": 3}
    return TensorLoraConfig(target_modules=names, **{**rank, "init_weights": False, **changes})


def layers(model: nn.Module) -> Iterator[TensorLoraLayer]:
    for module in model.modules():
        if isinstance(module, TensorLoraLayer):
            yield module


def base_weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if "tensor_lora_" not in name}
