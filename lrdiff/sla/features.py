"""The feature maps phi of the linear branch, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from lrdiff.errors import ConfigError

FEATURES = ("softmax", "elu", "relu")


def phi(x: Tensor, feature_map: str) -> Tensor:
    """Apply a non-negative feature map over the last dimension.

    softmax over the features (the paper's choice), elu(x) + 1, or relu. Half precision is widened to float32 first.

    Args:
        x: Queries or keys, [..., D].
        feature_map: One of `FEATURES`.

    Returns:
        Features, [..., D], float32 or float64.
    """
    x = x if x.dtype == torch.float64 else x.float()
    if feature_map == "softmax":
        return x.softmax(-1)
    if feature_map == "elu":
        return torch.nn.functional.elu(x) + 1
    return x.relu()


def check_features(feature_map: str, dtype: torch.dtype) -> None:
    """Raise `ConfigError` for an unknown feature map, or one whose sums leave the range of float16."""
    if feature_map not in FEATURES:
        raise ConfigError(f"feature_map is {feature_map!r}; there are {', '.join(FEATURES)}")
    if dtype == torch.float16 and feature_map != "softmax":
        raise ConfigError(
            f"feature_map={feature_map!r} overflows float16 (its sums pass 65504 at 4,096 tokens): "
            "use bfloat16, or feature_map='softmax'"
        )
