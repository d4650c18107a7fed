"""`python -m tests.bench.compare_adapters`: tensor-lora against other adapters on the shipped subjects, three seeds.

Hours on a CPU: adapters x subjects x seeds runs. `--subject`, `--seeds` and `--steps` make it smaller, `--name`
puts it beside another result. With `--out` the same command goes on where it was interrupted.

The time of a step is measured anew at the end, in seconds of the processor: what else ran during the hours of training
does not count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from app.adapter_comparison import Row, Spec, compare, configure, go_on, read_spec, summary
from lrdiff.assets import ASSETS, SUBJECTS
from lrdiff.files import write_bytes
from tests.bench.result import command, write
from trainers.engine import Engine
from trainers.loop import State, fit
from trainers.run import build

ADAPTERS = (
    "tensor-lora",
    "tensor-lora:transform_rank=2,residual=ring,r=6,alpha=1",
    "lora:r=1,alpha=1",
    "lora:r=4",
    "dora:r=4",
    "lokr",
    "oft",
)
PICTURES = ASSETS / "pictures"
TIMED = 20
"""Steps of which the time is the median."""


def main(arguments: list[str]) -> None:
    """Compare, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter", nargs="+", default=list(ADAPTERS))
    parser.add_argument("--subject", nargs="+", default=sorted(path.parent.name for path in SUBJECTS.glob("*/*.json")))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", type=Path, default=None, help="keep runs and images here")
    parser.add_argument("--name", default="", help="ending of the names of result and picture")
    options = parser.parse_args(arguments)
    ending = f"_{options.name}" if options.name else ""
    specs = [read_spec(text) for text in options.adapter]
    with tempfile.TemporaryDirectory() as scratch:
        begun = sorted(options.out.glob("*/comparison.json")) if options.out else []
        if begun:
            record = json.loads(begun[-1].read_text())
            asked = {
                "adapters": options.adapter, "subjects": options.subject, "seeds": options.seeds, "steps": options.steps
            }  # fmt: skip
            if differs := [name for name, value in asked.items() if record[name] != value]:
                parser.error(f"{begun[-1]} was begun with other {', '.join(differs)}; give the same, or another --out")
            folder = go_on(begun[-1].parent)
        else:
            folder = compare(
                specs, options.subject, seeds=options.seeds, steps=options.steps, out=options.out or Path(scratch)
            )
        record = json.loads((folder / "comparison.json").read_text())
        write_bytes(PICTURES / f"adapters{ending}.png", (folder / "comparison.png").read_bytes())
    entries = summary([Row(**row) for row in record["rows"]])
    for entry in entries:
        entry["seconds"] = step_seconds(read_spec(entry["adapter"]), SUBJECTS / options.subject[0])
    keys = ("adapter", "parameters", "file_bytes", "seconds", "subject_fidelity", "spread", "prompt_fidelity")
    write(
        f"compare_adapters{ending}",
        command("compare_adapters", arguments, without="--out"),
        [
            "adapter",
            "parameters",
            "bytes",
            "CPU s/step",
            "subject fidelity",
            "+-",
            "prompt fidelity",
            "diversity",
            "runs",
        ],
        [[entry[key] for key in (*keys, "diversity", "runs")] for entry in entries],
        note=f"{options.steps} steps, seeds {options.seeds}, subjects {', '.join(options.subject)}, measured by "
        f"{record['probe']}.",
        details=record,
    )


def step_seconds(spec: Spec, subject: Path) -> float:
    """Return the median processor seconds of a step of an adapter."""
    config = configure(spec, "toys", subject, "a photo of sks", TIMED, 0)
    engine = Engine(config.precision)
    method = build(spec.method, config, engine)
    moments: list[float] = []

    def note(state: State) -> None:
        moments.append(time.process_time())

    fit(method, config.optim, engine=engine, seed=0, hooks=[note])
    return statistics.median(after - before for before, after in pairwise(moments))


if __name__ == "__main__":
    main(sys.argv[1:])
