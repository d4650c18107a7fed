"""`make bench`: every benchmark that this machine can run, then the README's tables."""

from __future__ import annotations

import importlib

from tests.bench import readme

BENCHES = (
    "toys_quality",
    "probes_quality",
    "tensor_lora_step",
    "demo",
    "watermark_speed",
    "watermark_false_positives",
    "watermark_robustness",
    "watermark_limits",
    "sla_attention",
)


def main() -> int:
    """Run them one after another."""
    for name in BENCHES:
        print(f"== {name}", flush=True)
        importlib.import_module(f"tests.bench.{name}").main([])
    return readme.main([])


if __name__ == "__main__":
    raise SystemExit(main())
