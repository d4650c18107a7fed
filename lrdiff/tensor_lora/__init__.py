"""Tensor-lora: a tensor-ring transform of the weight plus a low-rank residual, as a peft tuner.

    from lrdiff.tensor_lora import TensorLoraConfig

Names are imported on first use, so that importing this package stays free of torch. README.md beside this file holds
the derivation, the parameter counts and what differs from the paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lrdiff.lazy import lazy

if TYPE_CHECKING:
    from lrdiff.tensor_lora.config import TensorLoraConfig
    from lrdiff.tensor_lora.export import ResidualExport, export_residual
    from lrdiff.tensor_lora.layer import TensorLoraLayer
    from lrdiff.tensor_lora.model import TensorLoraModel, check_nesting
    from lrdiff.tensor_lora.modes import factorise

_HOMES = {
    "ResidualExport": "export",
    "TensorLoraConfig": "config",
    "TensorLoraLayer": "layer",
    "TensorLoraModel": "model",
    "check_nesting": "model",
    "export_residual": "export",
    "factorise": "modes",
}

__all__ = [
    "ResidualExport",
    "TensorLoraConfig",
    "TensorLoraLayer",
    "TensorLoraModel",
    "check_nesting",
    "export_residual",
    "factorise",
]

__getattr__, __dir__ = lazy(__name__, _HOMES)
