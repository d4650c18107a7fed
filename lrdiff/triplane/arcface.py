"""ArcFace (Deng et al., arXiv 1801.07698) with the user's own weights: who is on a photo.

The network is the improved residual one, with or without squeeze and excitation (IR-50, IR-SE-50 and deeper), in the
names of tensors that PyTorch editions of it share; the usual file is model_ir_se50.pth. Nothing of it is shipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrdiff.errors import ConfigError
from lrdiff.weights import read_state

SIDE = 112
SUPPLY = "weights of ArcFace with an IR or IR-SE network, as model_ir_se50.pth holds them"


class Excitation(nn.Module):
    """Weigh channels by what they hold on average."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.fc2 = nn.Conv2d(inner, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C, H, W] as it came, channels scaled."""
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class Unit(nn.Module):
    """A residual unit."""

    def __init__(self, into: int, out: int, stride: int, inner: int) -> None:
        """Build one; `inner` is the width of its excitation, 0 for none."""
        super().__init__()
        self.stride = stride
        self.shortcut_layer = (
            nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out)) if into != out else None
        )
        layers = [
            nn.BatchNorm2d(into),
            nn.Conv2d(into, out, 3, 1, 1, bias=False),
            nn.PReLU(out),
            nn.Conv2d(out, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
        ]
        self.res_layer = nn.Sequential(*layers, *([Excitation(out, inner)] if inner else []))

    def forward(self, x: Tensor) -> Tensor:
        """Return features, at half the side where the unit takes steps of 2."""
        short = x[..., :: self.stride, :: self.stride] if self.shortcut_layer is None else self.shortcut_layer(x)
        return self.res_layer(x) + short


class ArcFace(nn.Module):
    """Embeds photos of faces, frozen."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        """Build from a state dict; widths and depth are those of its tensors.

        Raises:
            KeyError: A tensor that says what the network is like is missing.
            RuntimeError: Tensors are missing, left over, or do not fit together.
        """
        super().__init__()
        first = state["input_layer.0.weight"].shape[0]
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first), nn.PReLU(first)
        )
        units, number = [], 0
        while (name := f"body.{number}.res_layer.1.weight") in state:
            out, into = state[name].shape[:2]
            # Every stage begins with a step of 2; all but the first also change the width there.
            stride = 2 if number == 0 or into != out else 1
            gate = state.get(f"body.{number}.res_layer.5.fc1.weight")
            units.append(Unit(into, out, stride, 0 if gate is None else len(gate)))
            number += 1
        self.body = nn.Sequential(*units)
        size, flat = state["output_layer.3.weight"].shape
        last = len(state["output_layer.0.weight"])
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(last), nn.Identity(), nn.Flatten(), nn.Linear(flat, size), nn.BatchNorm1d(size)
        )
        self.load_state_dict(dict(state))
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> ArcFace:
        """Stay in evaluation mode: a loop that trains something else must not move the running means."""
        return super().train(False)

    def identity(self, images: Tensor) -> Tensor:
        """Return unit vectors [B, D]; the cosine of two tells how alike their faces are.

        Args:
            images: [B, 3, H, W] in [-1, 1], whole and not aligned, averaged down to 112 pixels as My3DGen does.
        """
        small = functional.adaptive_avg_pool2d(images.float(), SIDE)
        return functional.normalize(self.output_layer(self.body(self.input_layer(small))), dim=1)


def load_arcface(path: Path) -> ArcFace:
    """Read ArcFace from a file of weights, frozen.

    Raises:
        ConfigError: The file is absent, damaged, or no such network.
    """
    state = read_state(path, SUPPLY)
    try:
        network = ArcFace(state)
        network.identity(torch.zeros(1, 3, SIDE, SIDE))
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        reason = f"no tensor {error}" if isinstance(error, KeyError) else str(error).strip().splitlines()[-1].strip()
        raise ConfigError(f"{path}: is no such network ({reason}); give {SUPPLY}") from error
    return network
