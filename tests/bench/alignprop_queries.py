"""How many rewards must be asked for: AlignProp against DDPO, which asks 25 times as often.

python -m tests.bench.alignprop_queries [--seeds 0 1 2] [--rewards compressibility ...] [--show]
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from tests.bench.alignprop_ddpo import GROUP, Ddpo
from tests.bench.alignprop_trial import REWARDS, WAYS, WORK, kept, make, measure, said, train
from tests.bench.result import write

WAY = "last-k, k = 1"
PICTURES = 8
TIMES = 25
BATCH = 8
"""Pictures of a step of DDPO."""
COLUMNS = [
    "reward", "seed", f"gain of AlignProp after {PICTURES} pictures",
    *(f"of DDPO after {PICTURES * TIMES * n // 5}" for n in (1, 3, 5)), "CPU s of AlignProp", "of DDPO",
]  # fmt: skip


def main(arguments: list[str]) -> int:
    """Make the trials that are missing, then write the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.alignprop_queries", description=__doc__)
    parser.add_argument("--rewards", nargs="+", default=list(REWARDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--lr", type=float, default=3e-3, help="of DDPO")
    parser.add_argument("--show", action="store_true", help="only write the table of the trials that are there")
    given = parser.parse_args(arguments)
    rows = []
    for seed in given.seeds:
        for reward in given.rewards:
            path = WORK / "queries" / f"{reward}-{given.lr:g}-{seed}.json"
            if path.exists() or not given.show:
                found = kept(path, lambda a=(reward, seed): trial(*a, given.lr))
                ddpo = [gain for _, gain in found["ddpo"]]
                rows.append([reward, seed, found["alignprop"], *ddpo, found["seconds"][0], found["seconds"][1]])
    won = sum(row[2] > max(row[3:6]) for row in rows)
    write(
        "alignprop_queries", "python -m tests.bench.alignprop_queries", COLUMNS, sorted(rows, key=lambda row: row[0]),
        f"{said()}; DDPO {BATCH} pictures a step, {GROUP} of each prompt, at {given.lr:g}. Gain of the held-out reward "
        f"on 6 prompts, 2 pictures each, from the same noise. In {won} of {len(rows)} DDPO never gained as much.",
    )  # fmt: skip
    return 0


def trial(reward: str, seed: int, lr: float) -> dict[str, Any]:
    """Train both, from the same untouched model."""
    ours = make((reward,), seed, WAYS[WAY], pictures=PICTURES)
    before = measure(ours)[reward]
    rows = train(ours)
    gain = measure(ours)[reward] - before
    other = make((reward,), seed, WAYS[WAY], kind=Ddpo, pictures=PICTURES * TIMES, batch=BATCH, lr=lr)
    last = PICTURES * TIMES // BATCH
    curve: list[tuple[int, float]] = []

    def look(step: int) -> None:
        if step in (last // 5, 3 * last // 5, last):
            curve.append((step * BATCH, measure(other)[reward] - before))

    theirs = train(other, look)
    return {"alignprop": gain, "ddpo": curve, "seconds": [rows[-1]["seconds"], theirs[-1]["seconds"]]}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
