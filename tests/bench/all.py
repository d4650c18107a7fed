"""`make bench`: every benchmark that this machine can run, then the README's tables. `make bench OP=sla`: some."""

from __future__ import annotations

import importlib
import sys

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
    "alignprop_cost",
    "alignprop_memory",
    "alignprop_modes",
    "alignprop_queries",
    "alignprop_stop",
    "page_pictures",
    "page_load",
    "my3dgen_prior",
    "my3dgen_evidence",
    "my3dgen_speed",
    "sla_attention",
    "sla_quality",
    "sla_wan",
)


def main(beginning: str = "") -> int:
    """Run those whose names begin so, one after another."""
    chosen = [name for name in BENCHES if name.startswith(beginning)]
    if not chosen:
        print(f"no benchmark begins with {beginning!r}; there are {', '.join(BENCHES)}")
        return 2
    for name in chosen:
        print(f"== {name}", flush=True)
        importlib.import_module(f"tests.bench.{name}").main([])
    return readme.main([])


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:2]))
