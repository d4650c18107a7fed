"""`python -m app.measure FOLDER < ORDER`: the preflight of a run, measured. Trains nothing, leaves nothing behind."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from lrdiff.errors import LrdiffError


def main(folder: Path) -> int:
    """Read {"method", "config"} from stdin and write the measurement to stdout as one line of JSON."""
    import torch

    from lrdiff.rng import stream
    from trainers.engine import Engine
    from trainers.preflight import needed_disk, preflight, time_step
    from trainers.registry import run_config_class
    from trainers.run import build

    begin = time.monotonic()
    order = json.loads(sys.stdin.read())
    config = run_config_class(order["method"]).model_validate(order["config"])
    engine = Engine(config.precision)
    try:
        method = build(order["method"], config, engine)
        load = time.monotonic() - begin
        lines = preflight(method, config, engine, folder)
        step = min(time_step(method, config, engine) for _ in range(2))
        method.eval()
        with torch.no_grad():
            before = time.monotonic()
            method.evaluate(stream(config.seed, "evaluate"))
            evaluate = time.monotonic() - before
            before = time.monotonic()
            if config.watch.preview_every:
                method.preview(stream(config.seed, "preview"))
            preview = time.monotonic() - before
        memory = engine.peak_memory()
    finally:
        engine.close()
    found = {"load": load, "step": step, "preview": preview, "evaluate": evaluate, "memory": memory}
    sys.stdout.write(json.dumps(found | {"disk": needed_disk(method, config), "lines": lines}) + "\n")
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main(Path(sys.argv[1])))
    except LrdiffError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None
