"""The settings of sparse-linear attention in a model, checked before any attention runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lrdiff.errors import ConfigError
from lrdiff.sla.blocks import SCOPES, amounts, check_blocks
from lrdiff.sla.features import check_features
from lrdiff.sla.mixing import START
from lrdiff.sla.operator import FeatureMap, Scope


@dataclass(frozen=True)
class SlaSettings:
    """Settings of `sla_attention` that make a trained model what it is. With others it is another function.

    Attributes:
        topk: Share of key blocks that are critical, in (0, 1].
        skip: Share of key blocks that are negligible, in [0, 1).
        block_q: Tokens in a query block: 16, 32, 64 or 128.
        block_k: Tokens in a key block, likewise.
        scope: What the linear branch sees: "marginal", "noncritical" or "all".
        feature_map: "softmax", "elu" or "relu".
        mix: Share of what softmax leaves out with which every head starts to take it from the linear branch, in [0, 1]
            (`mixing.py`); 0 has no shares, which is the paper.

    Raises:
        ConfigError: One is unknown or out of range.
    """

    topk: float = 0.05
    skip: float = 0.10
    block_q: int = 128
    block_k: int = 64
    scope: Scope = "marginal"
    feature_map: FeatureMap = "softmax"
    mix: float = START

    def __post_init__(self) -> None:
        check_blocks(self.block_q, self.block_k)
        amounts(1, self.topk, self.skip)
        if self.scope not in SCOPES:
            raise ConfigError(f"scope is {self.scope!r}; there are {', '.join(SCOPES)}")
        check_features(self.feature_map, torch.float32)
        if not 0 <= self.mix <= 1:
            raise ConfigError(f"mix is the share of the linear branch and lies in [0, 1], not {self.mix}")

    def sparsity(self, tokens: int) -> float:
        """Return the share of key blocks of a sequence that softmax attention leaves out, 0 to 1."""
        blocks = -(-tokens // self.block_k)
        return 1 - amounts(blocks, self.topk, self.skip)[0] / blocks

    def router(self) -> dict[str, Any]:
        """Return the arguments of `route`."""
        return {"topk": self.topk, "skip": self.skip, "block_q": self.block_q, "block_k": self.block_k}

    def branch(self) -> dict[str, Any]:
        """Return the arguments that `sla_attention` and `sla_with_map` share."""
        return {"scope": self.scope, "feature_map": self.feature_map}
