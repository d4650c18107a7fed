"""ArcFace from a file of the user's: its layers, its gradient, and files that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lrdiff.errors import ConfigError
from lrdiff.triplane.arcface import load_arcface
from tests.networks import arcface_state, lpips_state, write


def by_hand(state: dict[str, Tensor], images: Tensor, strides: tuple[int, ...]) -> Tensor:
    """The network written out by the names of its tensors, the steps given."""

    def norm(name: str, x: Tensor) -> Tensor:
        shape = (1, -1) + (1,) * (x.ndim - 2)
        mean, var, gain, bias = (
            state[f"{name}.{part}"].view(shape) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * gain + bias

    def prelu(name: str, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, x * state[f"{name}.weight"].view(1, -1, 1, 1))

    x = functional.conv2d(functional.adaptive_avg_pool2d(images, 112), state["input_layer.0.weight"], padding=1)
    x = prelu("input_layer.2", norm("input_layer.1", x))
    for number, stride in enumerate(strides):
        name = f"body.{number}"
        short = x[:, :, ::stride, ::stride]
        if f"{name}.shortcut_layer.0.weight" in state:
            short = norm(f"{name}.shortcut_layer.1", functional.conv2d(short, state[f"{name}.shortcut_layer.0.weight"]))
        y = functional.conv2d(norm(f"{name}.res_layer.0", x), state[f"{name}.res_layer.1.weight"], padding=1)
        y = prelu(f"{name}.res_layer.2", y)
        y = norm(f"{name}.res_layer.4", functional.conv2d(y, state[f"{name}.res_layer.3.weight"], None, stride, 1))
        if f"{name}.res_layer.5.fc1.weight" in state:
            gate = functional.adaptive_avg_pool2d(y, 1)
            gate = functional.conv2d(gate, state[f"{name}.res_layer.5.fc1.weight"]).clamp_min(0)
            y = y * functional.conv2d(gate, state[f"{name}.res_layer.5.fc2.weight"]).sigmoid()
        x = y + short
    x = norm("output_layer.0", x).flatten(1) @ state["output_layer.3.weight"].T + state["output_layer.3.bias"]
    x = norm("output_layer.4", x)
    return x / x.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("gated", [True, False])
def test_the_network_is_the_published_one(gated: bool, tmp_path: Path) -> None:
    state = arcface_state(gated=gated)
    network = load_arcface(write(tmp_path / "arcface.pth", state))
    images = torch.rand(2, 3, 130, 130, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = by_hand(state, images, (2, 1, 2, 1, 2, 2))
    torch.testing.assert_close(network.identity(images), expected, atol=1e-5, rtol=1e-4)
    network.train()
    torch.testing.assert_close(network.identity(images), expected, atol=1e-5, rtol=1e-4)


def test_gradients_reach_pictures_and_not_the_network(tmp_path: Path) -> None:
    network = load_arcface(write(tmp_path / "arcface.pth", arcface_state()))
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    network.identity(image)[0, 0].backward()
    assert image.grad is not None
    assert float(image.grad.abs().max()) > 0
    assert not any(p.requires_grad for p in network.parameters())


def test_files_that_are_no_arcface_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file; give weights of ArcFace .*model_ir_se50\.pth"):
        load_arcface(tmp_path / "absent.pth")
    with pytest.raises(ConfigError, match=r"no tensor 'input_layer\.0\.weight'.*give weights of ArcFace"):
        load_arcface(write(tmp_path / "lpips.pth", lpips_state()))
    with pytest.raises(ConfigError, match=r"is no such network .*give weights of ArcFace"):
        load_arcface(write(tmp_path / "flat.pth", arcface_state() | {"output_layer.3.weight": torch.zeros(8, 5)}))
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "code.pt"))
    with pytest.raises(ConfigError, match="are not run: give weights of ArcFace"):
        load_arcface(tmp_path / "code.pt")
