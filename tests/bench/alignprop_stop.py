"""How far a reward can be followed: `last-k`, k = 1, until pictures become alike or no longer match their prompts.

python -m tests.bench.alignprop_stop [--seeds 0 1] [--rewards compressibility ...] [--show]
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from tests.bench.alignprop_trial import BATCH, REWARDS, WAYS, WORK, kept, make, measure, said
from tests.bench.result import write
from trainers.hooks import stop_when
from trainers.loop import State, fit

WAY = "last-k, k = 1"
PICTURES = 160
EVERY = 8
"""Steps between two looks at the held-out prompts."""
LIMITS = {"min_diversity": 0.8, "monitor": "prompt-match=probe-b", "max_drop": 0.02}
"""What ends a run. The monitor named here is replaced by the share of attributes that the same probe reads right."""
COLUMNS = [
    "reward", "seed", "ended after pictures", "because of", "kept from pictures", "gain of the reward",
    "prompt match, change in points", "diversity, share of before",
]  # fmt: skip


def main(arguments: list[str]) -> int:
    """Make the trials that are missing, then write the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.alignprop_stop", description=__doc__)
    parser.add_argument("--rewards", nargs="+", default=list(REWARDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--show", action="store_true", help="only write the table of the trials that are there")
    given = parser.parse_args(arguments)
    rows = []
    details: dict[str, Any] = {}
    for reward in given.rewards:
        for seed in given.seeds:
            path = WORK / "stop" / f"{reward}-{seed}.json"
            if path.exists() or not given.show:
                found = kept(path, lambda a=(reward, seed): trial(*a))
                details[path.stem] = found
                rows.append([reward, seed, *row(reward, found)])
    write(
        "alignprop_stop", "python -m tests.bench.alignprop_stop", COLUMNS, rows,
        f"{said()}, {PICTURES} pictures at the most, a look every {EVERY * BATCH}. A run ends where diversity is below "
        f"{LIMITS['min_diversity']:g} of what it was, or the share of attributes that probe-b reads right in 24 "
        f"pictures is more than {LIMITS['max_drop']:g} below its best; the adapter of the look before is kept.",
        details,
    )  # fmt: skip
    return 0


def trial(reward: str, seed: int) -> dict[str, Any]:
    """Train once; return every look, and why the run ended."""
    method = make((reward,), seed, {**WAYS[WAY], **LIMITS, "held_out_count": 12}, pictures=PICTURES)
    looks: list[dict[str, float]] = []

    def look(state: State) -> None:
        if state.step % EVERY == 0:
            looks.append({"pictures": state.step * BATCH, **measure(method)})
            method.watchdog.see(looks[-1]["diversity"], looks[-1]["match"])
            method.train()

    fit(method, method.config.optim, engine=method.engine, seed=seed, hooks=[look, stop_when(method.done)])
    return {"looks": looks, "reason": method.done()}


def row(reward: str, found: dict[str, Any]) -> list[Any]:
    """Return where a trial ended, and what its kept adapter does."""
    first, last = found["looks"][0], found["looks"][-1]
    good = found["looks"][-2] if found["reason"] else last
    reason = "diversity" if "differ" in found["reason"] else "prompt match" if found["reason"] else "no limit"
    return [
        last["pictures"], reason, good["pictures"], good[reward] - first[reward],
        100 * (good["match"] - first["match"]), good["diversity"] / first["diversity"],
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
