"""The adapted Linear and Conv2d. W0 T and D are never built: `base(T x) + s (x down^T) up`."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrdiff.errors import TargetError
from lrdiff.tensor_lora import autograd
from lrdiff.tensor_lora.autograd import autocasts, full_precision
from lrdiff.tensor_lora.config import TensorLoraConfig
from lrdiff.tensor_lora.layer import LayerShape, TensorLoraLayer


class Adapted(nn.Module, TensorLoraLayer):
    """A base layer with adapters; decides whether they take part."""

    def __init__(self, base_layer: nn.Module, shape: LayerShape) -> None:
        nn.Module.__init__(self)
        TensorLoraLayer.__init__(self, base_layer, shape)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's output, adapted unless adapters are disabled, merged, absent or of strength 0."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        names = [] if self.disable_adapters or self.merged else self._working()
        return self._adapted(x, names, *args, **kwargs) if names else self.base_layer(x, *args, **kwargs)

    def _adapted(self, x: Tensor, names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        raise NotImplementedError

    def __repr__(self) -> str:
        return "tensor_lora." + super().__repr__()


class Linear(Adapted):
    """A linear layer, or anything with `in_features` and `out_features` that acts on the last axis, with adapters.

    The base layer is only called, never looked into, so quantised layers work.
    """

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Peft may approximate the change by plain LoRA; exact only without a transform, see `export.py`."""
        return adapter_name in self.shapes

    def _adapted(self, x: Tensor, names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        x = _as_autocast(x)
        plan, flats = self.plan(names, self.strength)
        z, h, up = autograd.adapt(x.reshape(math.prod(x.shape[:-1]), self.in_features), plan, flats)
        y = self.base_layer(z.view(x.shape), *args, **kwargs)
        if h is None or up is None:
            return y
        with full_precision(x.device.type):
            return torch.addmm(y.reshape(len(h), self.out_features), h.to(y.dtype), up.to(y.dtype)).view(y.shape)


class Conv2d(Adapted):
    """A convolution with adapters. T mixes its input channels at every pixel; D is a thin convolution, then a 1x1 one.

    Differs from the paper: it adapts linear layers only.
    """

    def _adapted(self, x: Tensor, names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        x = _as_autocast(x)
        matrix, up, down = autograd.expand(*self.plan(names, self.strength), x.dtype)
        with full_precision(x.device.type):
            z = x if matrix is None else x + F.conv2d(x, matrix[:, :, None, None])
        y = self.base_layer(z, *args, **kwargs)
        if up is None or down is None:
            return y
        with full_precision(x.device.type):
            return y + F.conv2d(self._thin(x, down), up.t()[:, :, None, None])

    def _thin(self, x: Tensor, down: Tensor) -> Tensor:
        """Convolve with down [K, in * kh * kw] the way the base layer convolves."""
        base = self.get_base_layer()
        assert isinstance(base, nn.Conv2d)
        weight = down.view(-1, self.in_features, *base.kernel_size)
        padding = base.padding
        if base.padding_mode != "zeros":
            x = F.pad(x, base._reversed_padding_repeated_twice, mode=base.padding_mode)
            padding = 0
        return F.conv2d(x, weight, None, base.stride, padding, base.dilation)


def adapt(target: nn.Module, adapter_name: str, config: TensorLoraConfig, r: int, alpha: float) -> Adapted:
    """Wrap a layer. Raises `TargetError` for kinds that cannot be adapted, `ShapeError` for widths without modes."""
    shape = shape_of(target)
    kind = Conv2d if isinstance(target, nn.Conv2d) else Linear
    layer = kind(target, shape)
    layer._active_adapter = adapter_name
    layer.update_layer(adapter_name, config, r, alpha)
    return layer


def shape_of(target: nn.Module) -> LayerShape:
    """Return the sizes of a base layer. Raises `TargetError` for kinds that cannot be adapted."""
    if isinstance(target, nn.Conv2d):
        if target.groups != 1:
            raise TargetError(
                f"a convolution with groups={target.groups} cannot be adapted, since the transform mixes all input "
                "channels; leave it out with `exclude_modules`"
            )
        kernel = target.kernel_size[0] * target.kernel_size[1]
        return LayerShape(target.in_channels, target.out_channels, kernel)
    if type(target).__name__ == "NonDynamicallyQuantizableLinear":
        raise TargetError(
            "the output projection of torch.nn.MultiheadAttention is read, not called, so an adapter on it would have "
            "no effect; leave it out with `exclude_modules`"
        )
    into, out = getattr(target, "in_features", None), getattr(target, "out_features", None)
    if isinstance(into, int) and isinstance(out, int):
        return LayerShape(into, out, 1)
    raise TargetError(f"a {type(target).__name__} cannot be adapted; choose Linear or Conv2d layers in target_modules")


def _as_autocast(x: Tensor) -> Tensor:
    """Round the input once to the dtype that autocast would use for every product with it."""
    device = x.device.type
    if autocasts(device) and x.is_floating_point() and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(device))
    return x
