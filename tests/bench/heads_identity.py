"""How well the two identity networks of heads tell unseen people apart.

python -m tests.bench.heads_identity [--people 150]

Each person is photographed four times, with other expressions, lights and poses; every other one has a mark. All pairs
of pictures are compared.
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import Tensor

from lrdiff.assets import ASSETS
from lrdiff.probe import load_probe
from lrdiff.rng import stream
from tests.bench.result import write
from trainers.embedded import manifest
from trainers.embedded.evaluate import rate_of_equal_errors
from trainers.embedded.head_probes import people, photograph

NAMES = ("heads-probe-a", "heads-probe-b")
SEED, VIEWS = 2, 4
"""Training draws its people from another seed."""
FALSE_ACCEPTS = 1e-3


def main(arguments: list[str]) -> int:
    """Measure, print, write `heads_identity.json` and the manifest's figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.heads_identity", description=__doc__)
    parser.add_argument("--people", type=int, default=150)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pictures = photograph(*people(given.people, VIEWS, stream(SEED, "people")))
    owner = torch.arange(given.people).repeat_interleave(VIEWS)
    columns = []
    for name in NAMES:
        probe = load_probe(name)
        with torch.no_grad():
            vectors = torch.cat([probe.identity(part) for part in pictures.split(64)])
        figures = verification(vectors, owner)
        manifest.set_quality(ASSETS, name, {"equal_error_rate": figures[0]})
        columns.append([*figures, sum(p.numel() for p in probe.parameters())])
    labels = (
        "equal error rate",
        f"accepted of the same person, at {FALSE_ACCEPTS:g} false accepts",
        "mean cosine, same person",
        "mean cosine, other people",
        "parameters",
    )
    rows = [[label, *(column[n] for column in columns)] for n, label in enumerate(labels)]
    for row in rows:
        print(*row, sep="  ")
    write(
        "heads_identity",
        "python -m tests.bench.heads_identity",
        ["unseen people", *NAMES],
        rows,
        f"{given.people} people, {VIEWS} pictures of each, 64 px, yaw to 1.0 and pitch to 0.3; the networks differ in "
        "seed and widths. Only the first takes part in losses.",
    )
    return 0


def verification(vectors: Tensor, owner: Tensor) -> list[float]:
    """Return equal error rate, rate of true accepts at few false ones, and mean cosines of own and of other pairs.

    Args:
        vectors: [N, D], unit.
        owner: Whose picture each is, [N].
    """
    one, other = torch.triu_indices(len(vectors), len(vectors), offset=1)
    cosines, same = (vectors[one] * vectors[other]).sum(1), owner[one] == owner[other]
    threshold = cosines[~same].quantile(1 - FALSE_ACCEPTS)
    accepted = float((cosines[same] > threshold).float().mean())
    return [rate_of_equal_errors(cosines, same), accepted, float(cosines[same].mean()), float(cosines[~same].mean())]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
