"""Watermark: bits in every image a decoder makes, verified with a stated error rate.

    from lrdiff.watermark import default_lora_config, verify

Names are imported on first use, so that importing this package stays free of torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lrdiff.lazy import lazy

if TYPE_CHECKING:
    from lrdiff.watermark.calibration import Calibration
    from lrdiff.watermark.decoder import default_lora_config, fuse
    from lrdiff.watermark.extractor import Extractor
    from lrdiff.watermark.null import Null
    from lrdiff.watermark.pooling import PooledVerdict, verify_pooled
    from lrdiff.watermark.verdict import Verdict
    from lrdiff.watermark.verifier import new_key, open_extractor, verify, verify_many

_HOMES = {
    "Calibration": "calibration",
    "Extractor": "extractor",
    "Verdict": "verdict",
    "default_lora_config": "decoder",
    "fuse": "decoder",
    "new_key": "verifier",
    "Null": "null",
    "PooledVerdict": "pooling",
    "open_extractor": "verifier",
    "verify": "verifier",
    "verify_many": "verifier",
    "verify_pooled": "pooling",
}

__all__ = [
    "Calibration",
    "Extractor",
    "Verdict",
    "default_lora_config",
    "fuse",
    "Null",
    "PooledVerdict",
    "new_key",
    "open_extractor",
    "verify",
    "verify_many",
    "verify_pooled",
]

__getattr__, __dir__ = lazy(__name__, _HOMES)
