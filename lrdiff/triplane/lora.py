"""Low-rank changes of a generator's convolutions and styles (My3DGen, arXiv 2307.05468).

They act on the raw weight, so that modulation and demodulation see the changed one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lrdiff.errors import ArtifactError, ConfigError, TargetError
from lrdiff.triplane.generator import TriplaneGenerator
from lrdiff.triplane.layers import Linear, Modulated

Form = Literal["published", "plain", "loralib"]


class ConvDelta(nn.Module):
    """A change of a weight [O, I, k, k]: (alpha / r) reshape(B A).

    - published: A is [r k, I k^2], B is [O, r k]; the change seen as O x (I k^2) has rank r k.
    - plain: the same with r in place of r k, as in peft.
    - loralib: A is [r k, I k], B is [O k, r k], and the product is viewed as [O, I, k, k].

    A starts as a fully connected layer's weight does, B at 0, so that nothing changes at first.
    """

    def __init__(self, layer: Modulated, r: int, alpha: float, form: Form) -> None:
        super().__init__()
        outputs, inputs, k, _ = layer.weight.shape
        rank = r if form == "plain" else r * k
        rows, columns = (outputs * k, inputs * k) if form == "loralib" else (outputs, inputs * k * k)
        self.shape, self.scale = layer.weight.shape, alpha / r
        self.a = nn.Parameter(layer.weight.new_empty(rank, columns))
        self.b = nn.Parameter(layer.weight.new_zeros(rows, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self) -> Tensor:
        """Return the change, [O, I, k, k]."""
        return self.scale * (self.b @ self.a).view(self.shape)


class LinearDelta(nn.Module):
    """A change of a style's output: (alpha / r) x A^T B^T, without the layer's gain 1 / sqrt(in)."""

    def __init__(self, layer: Linear, r: int, alpha: float) -> None:
        super().__init__()
        outputs, inputs = layer.weight.shape
        self.scale = alpha / r
        self.a = nn.Parameter(layer.weight.new_empty(r, inputs))
        self.b = nn.Parameter(layer.weight.new_zeros(outputs, r))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in] to [B, out]."""
        return self.scale * (x @ self.a.T) @ self.b.T


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """What is trained of a generator.

    Attributes:
        r: Rank parameter.
        alpha: The scale is alpha / r.
        form: How a convolution's weight is seen as a matrix.
        styles: Whether the styles' fully connected layers are changed too.
        extras: Whether biases, noise strengths and the constant of the touched layers are trained too.
        decoder: Whether the decoder is trained too, which the publication freezes.
        full: Train every weight but the mapping's in place of all that: the baseline, as large as the generator.
    """

    r: int = 1
    alpha: float = 1.0
    form: Form = "published"
    styles: bool = True
    extras: bool = True
    decoder: bool = False
    full: bool = False

    def __post_init__(self) -> None:
        if self.r < 1 or not self.alpha > 0:
            raise ConfigError(f"r {self.r} must be 1 or more, and alpha {self.alpha} above 0")


class Personal:
    """A generator with an adapter on it. The generator is changed in place; `remove` takes everything back.

    Every modulated convolution and every projection to colours of synthesis and super-resolution gets a change.
    The mapping stays as it is, and so does the decoder where the configuration does not name it.

    Args:
        generator: Without adapter. Its parameters stop requiring gradients, apart from the trained ones.
        config: What to add.

    Raises:
        TargetError: The generator carries an adapter already.
    """

    def __init__(self, generator: TriplaneGenerator, config: LoraConfig) -> None:
        self.generator, self.config = generator, config
        layers = dict(targets(generator))
        if any(layer.delta is not None for layer in layers.values()):
            raise TargetError("the generator carries an adapter already; remove it or merge it first")
        self.targets = tuple(layers)
        self.required = {name: p.requires_grad for name, p in generator.named_parameters()}
        generator.requires_grad_(False)
        for layer in layers.values() if not config.full else ():
            layer.delta = ConvDelta(layer, config.r, config.alpha, config.form)
            if config.styles:
                layer.affine.delta = LinearDelta(layer.affine, config.r, config.alpha)
        whole = dict(extra_parameters(generator)) if config.extras else {}
        if config.decoder:
            whole |= {n: p for n, p in generator.named_parameters() if n.startswith("decoder.")}
        if config.full:
            whole = {n: p for n, p in generator.named_parameters() if not n.startswith("backbone.mapping.")}
        self.before = {name: p.detach().clone() for name, p in whole.items()}
        for parameter in whole.values():
            parameter.requires_grad_(True)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what is trained."""
        return ((name, p) for name, p in self.generator.named_parameters() if p.requires_grad)

    def state(self) -> dict[str, Tensor]:
        """Return what is trained, as copies on the CPU."""
        return {name: p.detach().float().cpu().clone() for name, p in self.named_parameters()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Put trained tensors in.

        Raises:
            ArtifactError: Names or shapes are other ones than this configuration's.
        """
        own = dict(self.named_parameters())
        wrong = sorted(
            name for name in own.keys() | state.keys()
            if name not in own or name not in state or own[name].shape != state[name].shape
        )  # fmt: skip
        if wrong:
            raise ArtifactError(f"{len(wrong)} tensors do not fit this generator, the first being {wrong[0]}")
        for name, parameter in own.items():
            parameter.copy_(state[name])

    @torch.no_grad()
    def remove(self) -> None:
        """Take the adapter off; the generator is then bit for bit what it was."""
        for name, value in self.before.items():
            self.generator.get_parameter(name).copy_(value)
        self._strip()

    @torch.no_grad()
    def merge(self) -> None:
        """Add the changes to the weights and take the adapter off: the same pictures at no extra cost."""
        for _, layer in targets(self.generator):
            layer.weight.copy_(layer.raw_weight())
            delta = layer.affine.delta
            if isinstance(delta, LinearDelta):
                layer.affine.weight.add_(delta.scale * (delta.b @ delta.a) / layer.affine.weight_gain)
        self._strip()

    def _strip(self) -> None:
        for _, layer in targets(self.generator):
            layer.delta = layer.affine.delta = None
        for name, parameter in self.generator.named_parameters():
            parameter.requires_grad_(self.required[name])


def targets(generator: TriplaneGenerator) -> Iterator[tuple[str, Modulated]]:
    """Yield the layers that an adapter changes, by name: all with a style."""
    return ((name, module) for name, module in generator.named_modules() if isinstance(module, Modulated))


def extra_parameters(generator: TriplaneGenerator) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield what the publication trains beside the low-rank matrices: biases, noise strengths and the constant."""
    for name, parameter in generator.named_parameters():
        styled = name.startswith(("backbone.synthesis.", "superresolution."))
        if styled and name.rpartition(".")[2] in ("bias", "noise_strength", "const"):
            yield name, parameter
