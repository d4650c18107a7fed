"""How well the shipped probes read unseen pictures.

python -m tests.bench.probes_quality [--count 1000] [--subjects 200]
"""

from __future__ import annotations

import argparse
import sys

import torch

from lrdiff.probe import load_probe
from lrdiff.world.toys import ATTRIBUTES
from tests.bench.result import write
from trainers.embedded import evaluate, manifest
from trainers.embedded.make import ASSETS

BAR = 0.97


def main(arguments: list[str]) -> int:
    """Measure, print, write `probes_quality.json` and the manifest's figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.probes_quality", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="unseen scenes")
    parser.add_argument("--subjects", type=int, default=200, help="unseen individuals, four pictures each")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    rows, details, missed = [], {}, []
    for name in ("probe-a", "probe-b"):
        probe = load_probe(name)
        reading = evaluate.read_scenes(probe, given.count)
        rates, mean = reading.accuracy(), reading.mean_accuracy()
        errors = evaluate.equal_error_rate(probe, given.subjects)
        rows.append([name, mean, *rates.values(), errors])
        details[name] = {"worst": {attribute: reading.worst(attribute) for attribute in rates}}
        print(name, f"mean {mean:.3f}", *(f"{k} {v:.3f}" for k, v in rates.items()), f"equal error rate {errors:.3f}")
        missed += [f"{name} {mean:.3f} < {BAR}"] * (mean < BAR)
        figures = {"scenes": given.count, "attribute_accuracy": mean, "equal_error_rate": errors}
        more = {f"accuracy_{attribute}": rate for attribute, rate in rates.items()}
        manifest.set_quality(ASSETS, name, evaluate.rounded(figures | more))
    print("missed: " + ("; ".join(missed) or "nothing"))
    note = (
        f"Accuracy on {given.count} unseen scenes of one object (bar: mean {BAR}), and the equal error rate of "
        f"identity over all pairs of {4 * given.subjects} pictures of {given.subjects} unseen subjects."
        + (f" Missed: {'; '.join(missed)}." if missed else "")
    )
    columns = ["probe", "mean", *ATTRIBUTES, "equal error rate"]
    command = " ".join(["python -m tests.bench.probes_quality", *arguments])
    write("probes_quality", command, columns, rows, note, details)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
