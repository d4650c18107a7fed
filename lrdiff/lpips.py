"""LPIPS (Zhang et al., arXiv 1801.03924) with the user's own weights: how different two pictures look.

    d = sum over layers of mean over places of sum_c v_c (f_c / |f| - g_c / |g|)^2

f and g are features of AlexNet or VGG16 after five of its rectifiers, v >= 0 was learned from people's judgements. The
weights are nobody's to ship but their makers'; on a machine with the package lpips this writes them:

    torch.save(lpips.LPIPS(net="alex").state_dict(), "lpips-alex.pth")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrdiff.errors import ConfigError, ShapeError
from lrdiff.weights import read_state

Trunk = tuple[tuple[tuple[int, ...], ...], Callable[[Tensor], Tensor]]
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Takes pictures in [-1, 1] to what the trunks were trained on."""
TRUNKS: dict[str, Trunk] = {
    "alex": (((0,), (3,), (6,), (8,), (10,)), lambda x: functional.max_pool2d(x, 3, 2)),
    "vgg": (((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)), lambda x: functional.max_pool2d(x, 2)),
}
"""Numbers of the convolutions of each slice in torchvision's count, and the pooling before a slice."""
POOLED = {"alex": (1, 2), "vgg": (1, 2, 3, 4)}
"""Slices that begin with pooling."""
SMALLEST = {"alex": 32, "vgg": 16}
"""Sides below it leave nothing of a picture in the last slice."""
SUPPLY = (
    "the state dict of lpips.LPIPS(net='alex') or net='vgg', as torch.save writes it on a machine with that package"
)


class LPIPS(nn.Module):
    """The distance of pictures, frozen.

    Attributes:
        kind: "alex" or "vgg".
        smallest: The shortest side, in pixels, of pictures that it compares.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        """Build from the package's state dict; the channels are those of its tensors.

        Raises:
            ConfigError: Tensors are missing, or they do not fit together.
        """
        super().__init__()
        self.kind = "vgg" if "net.slice1.2.weight" in state else "alex"
        self.smallest = SMALLEST[self.kind]
        slices, _ = TRUNKS[self.kind]
        self.slices = nn.ModuleList()
        channels = 3
        for number, places in enumerate(slices, 1):
            convs = nn.ModuleList()
            for place in places:
                name = f"net.slice{number}.{place}"
                weight = _tensor(state, f"{name}.weight", 4, channels)
                channels = len(weight)
                convs.append(self._conv(weight, _tensor(state, f"{name}.bias", 1, channels)))
            self.slices.append(convs)
            self.register_buffer(f"lin{number - 1}", _tensor(state, f"lin{number - 1}.model.1.weight", 4, channels))
        self.register_buffer("shift", torch.tensor(SHIFT).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(3, 1, 1))
        self.requires_grad_(False).eval()

    def _conv(self, weight: Tensor, bias: Tensor) -> nn.Conv2d:
        out, into, side, _ = weight.shape
        # AlexNet's first convolution takes steps of 4 and pads by 2; all others keep the side.
        stride, padding = (4, 2) if self.kind == "alex" and into == 3 else (1, side // 2)
        conv = nn.Conv2d(into, out, side, stride, padding)
        conv.load_state_dict({"weight": weight, "bias": bias})
        return conv

    def features(self, images: Tensor) -> list[Tensor]:
        """Return features of images [B, 3, H, W] in [-1, 1] after each slice, with length 1 over channels."""
        x = (images - self.get_buffer("shift")) / self.get_buffer("scale")
        pool, found = TRUNKS[self.kind][1], []
        for number, convs in enumerate(self.slices):
            x = pool(x) if number in POOLED[self.kind] else x
            for conv in convs.children():
                x = torch.relu(conv(x))
            # Inside the root: a place where every feature is 0 would have no gradient.
            found.append(x / (x.square().sum(1, keepdim=True) + 1e-20).sqrt())
        return found

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the distance of each pair of pictures, [B].

        Args:
            one: [B, 3, H, W] in [-1, 1], `smallest` pixels or more on a side.
            other: The same shape.

        Raises:
            ShapeError: The shapes differ or are too small.
        """
        if one.shape != other.shape or one.shape[1] != 3 or min(one.shape[-2:]) < self.smallest:
            raise ShapeError(
                f"LPIPS compares pictures [B, 3, H, W] of one shape, {self.smallest} pixels or more on a side, not "
                f"{list(one.shape)} with {list(other.shape)}"
            )
        total = one.new_zeros(len(one))
        for number, (f, g) in enumerate(zip(self.features(one.float()), self.features(other.float()), strict=True)):
            total = total + functional.conv2d((f - g).square(), self.get_buffer(f"lin{number}")).mean((1, 2, 3))
        return total


def load_lpips(path: Path) -> LPIPS:
    """Read LPIPS from a file of weights, frozen.

    Args:
        path: State dict of the package's `LPIPS` with AlexNet or VGG16, as .pth or .safetensors.

    Raises:
        ConfigError: The file is absent, damaged, or no LPIPS.
    """
    try:
        return LPIPS(read_state(path, SUPPLY))
    except KeyError as error:
        raise ConfigError(f"{path}: is no LPIPS of AlexNet or VGG16 ({error.args[0]}); give {SUPPLY}") from error


def _tensor(state: Mapping[str, Tensor], name: str, axes: int, channels: int) -> Tensor:
    """Return a tensor that must be there, with `channels` along its axis of channels; else `KeyError` says why."""
    if name not in state:
        raise KeyError(f"it has no tensor {name}")
    tensor = state[name].float()
    if tensor.ndim != axes or tensor.shape[1 if axes > 1 else 0] != channels:
        raise KeyError(f"{name} has shape {list(tensor.shape)}, which does not go with {channels} channels")
    return tensor
