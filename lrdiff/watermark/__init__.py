"""Watermark: bits in every image a decoder makes, verified with a stated error rate.

    from lrdiff.watermark import default_lora_config, verify

Names are imported on first use, so that importing this package stays free of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrdiff.watermark.decoder import default_lora_config, fuse
    from lrdiff.watermark.extractor import Calibration, Extractor
    from lrdiff.watermark.verdict import Verdict
    from lrdiff.watermark.verifier import new_key, verify

_HOMES = {
    "Calibration": "extractor",
    "Extractor": "extractor",
    "Verdict": "verdict",
    "default_lora_config": "decoder",
    "fuse": "decoder",
    "new_key": "verifier",
    "verify": "verifier",
}

__all__ = ["Calibration", "Extractor", "Verdict", "default_lora_config", "fuse", "new_key", "verify"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
