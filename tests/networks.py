"""Small random networks in the layout of files that users supply: LPIPS and ArcFace."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

PLACES = {
    "alex": ((0,), (3,), (6,), (8,), (10,)),
    "vgg": ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)),
}
SIDES = {"alex": (11, 5, 3, 3, 3), "vgg": (3, 3, 3, 3, 3)}


def lpips_state(kind: str = "alex", width: int = 6) -> dict[str, Tensor]:
    """Return tensors as `lpips.LPIPS(net=kind).state_dict()` names and orders them, with few channels."""
    rng = torch.Generator().manual_seed(0)
    state, channels = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1), "scaling_layer.scale": torch.ones(1, 3, 1, 1)}, 3
    for number, (places, side) in enumerate(zip(PLACES[kind], SIDES[kind], strict=True), 1):
        for place in places:
            name = f"net.slice{number}.{place}"
            state[f"{name}.weight"] = torch.randn(width, channels, side, side, generator=rng) / (channels**0.5 * side)
            state[f"{name}.bias"] = 0.1 * torch.randn(width, generator=rng)
            channels = width
        state[f"lin{number - 1}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=rng)
    return state


def arcface_state(width: int = 4, units: tuple[int, ...] = (2, 2, 1, 1), gated: bool = True) -> dict[str, Tensor]:
    """Return tensors as `model_ir_se50.pth` names them, with few channels and units."""
    rng = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}

    def conv(name: str, *shape: int) -> None:
        state[f"{name}.weight"] = torch.randn(*shape, generator=rng) / (shape[1] * shape[2]) ** 0.5 / 2

    def norm(name: str, count: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.ones(count), torch.zeros(count)
        state[f"{name}.running_mean"], state[f"{name}.running_var"] = torch.zeros(count), torch.ones(count)
        state[f"{name}.num_batches_tracked"] = torch.tensor(1)

    conv("input_layer.0", width, 3, 3, 3)
    norm("input_layer.1", width)
    state["input_layer.2.weight"] = torch.full((width,), 0.25)
    into, number = width, 0
    for stage, count in enumerate(units):
        out = width * 2**stage
        for _ in range(count):
            name = f"body.{number}"
            if into != out:
                conv(f"{name}.shortcut_layer.0", out, into, 1, 1)
                norm(f"{name}.shortcut_layer.1", out)
            norm(f"{name}.res_layer.0", into)
            conv(f"{name}.res_layer.1", out, into, 3, 3)
            state[f"{name}.res_layer.2.weight"] = torch.full((out,), 0.25)
            conv(f"{name}.res_layer.3", out, out, 3, 3)
            norm(f"{name}.res_layer.4", out)
            if gated:
                conv(f"{name}.res_layer.5.fc1", 2, out, 1, 1)
                conv(f"{name}.res_layer.5.fc2", out, 2, 1, 1)
            into, number = out, number + 1
    norm("output_layer.0", into)
    state["output_layer.3.weight"] = torch.randn(8, into * 49, generator=rng) / (into * 49) ** 0.5
    state["output_layer.3.bias"] = torch.zeros(8)
    norm("output_layer.4", 8)
    return state


def write(path: Path, state: dict[str, Tensor]) -> Path:
    """Write tensors as `torch.save` does."""
    torch.save(state, path)
    return path
