"""Turn the residual of an adapter into a plain LoRA that every tool reads. Exact for the residual; T has no such form.

W0 (T - I) has nearly full rank (half of its energy needs a tenth of the ranks), so the transform can only be shipped
merged into the base weights or as our own file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from peft import LoraConfig
from torch import Tensor, nn

from lrdiff.errors import ConfigError, TargetError
from lrdiff.tensor_lora import functional
from lrdiff.tensor_lora.layer import TensorLoraLayer


@dataclass(frozen=True, slots=True)
class ResidualExport:
    """A plain LoRA equal to the residuals of an adapter.

    Attributes:
        config: Its settings; alpha equals the rank everywhere, since the scale s is inside the tensors.
        tensors: `<layer>.lora_A.weight` and `<layer>.lora_B.weight`, float32, as peft and diffusers name them.
        left_out: Layer -> |T - I| / |I| (Frobenius): how far the transform, which is not exported, is from doing
            nothing. All 0 for an adapter without a transform.
    """

    config: LoraConfig
    tensors: dict[str, Tensor]
    left_out: dict[str, float]


@torch.no_grad()
def export_residual(model: nn.Module, adapter_name: str = "default", *, drop_transform: bool = False) -> ResidualExport:
    """Export the residual of an adapter as a plain LoRA of rank r^2 (ring) or r (lora), at strength 1.

    Args:
        model: A model that holds the adapter.
        adapter_name: Its name.
        drop_transform: Must be true for an adapter with a transform, because that part is lost.

    Raises:
        ConfigError: The adapter has a transform and `drop_transform` is false, or it has no residual.
        TargetError: No layer holds the adapter, or a convolution is of a kind that plain LoRA gets wrong.
    """
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, TensorLoraLayer) and adapter_name in module.shapes
    }
    if not layers:
        raise TargetError(f"no layer of the model holds a tensor-lora adapter named {adapter_name!r}")
    left_out = {name: _distance(layer, adapter_name) for name, layer in layers.items()}
    if any(layer.shapes[adapter_name].rank for layer in layers.values()) and not drop_transform:
        raise ConfigError(
            f"adapter {adapter_name!r} has a transform, which plain LoRA cannot hold (|T - I| / |I| up to "
            f"{max(left_out.values()):.3g}); merge it into the base model, or pass drop_transform=True to lose it"
        )
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name, layer in layers.items():
        factors = layer.residual_factors(adapter_name)
        if factors is None:
            raise ConfigError(f"adapter {adapter_name!r} has no residual; there is nothing to export")
        up, down = factors[0].t(), factors[1]
        base = layer.get_base_layer()
        if isinstance(base, nn.Conv2d):
            _check_conv(name, base)
            up, down = up[:, :, None, None], down.view(-1, layer.in_features, *base.kernel_size)
        tensors[f"{name}.lora_A.weight"] = down.contiguous()
        tensors[f"{name}.lora_B.weight"] = up.contiguous()
        ranks[name] = layer.shapes[adapter_name].residual_rank
    return ResidualExport(_config(ranks), tensors, left_out)


def _check_conv(name: str, base: nn.Conv2d) -> None:
    """Refuse what peft's LoRA convolution does not copy from its base layer."""
    if base.dilation != (1, 1) or base.padding_mode != "zeros":
        raise TargetError(
            f"layer {name!r} has dilation {base.dilation} and padding mode {base.padding_mode!r}, which plain LoRA in "
            "peft ignores; merge the adapter into the base model instead"
        )


def _config(ranks: dict[str, int]) -> LoraConfig:
    common = next(iter(ranks.values()))
    others = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != common}
    return LoraConfig(
        r=common, lora_alpha=common, target_modules=list(ranks), rank_pattern=others, alpha_pattern=dict(others)
    )


def _distance(layer: TensorLoraLayer, name: str) -> float:
    shapes = layer.shapes[name]
    if not shapes.rank:
        return 0.0
    flat = functional.widen(layer.tensor_lora_transform[name])
    matrix = functional.transform(flat, shapes.modes, shapes.rank)
    matrix.diagonal().sub_(1)
    return float(matrix.norm()) / layer.in_features**0.5
