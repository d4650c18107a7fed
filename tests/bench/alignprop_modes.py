"""Reward against pictures and against time, for every way of sending the gradient back.

python -m tests.bench.alignprop_modes [--seeds 0 1 2] [--rewards brightness ...] [--pictures 16] [--show]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tests.bench.alignprop_trial import (
    FEWER,
    LR,
    REWARDS,
    SETTINGS,
    SIDES,
    WAYS,
    WORK,
    kept,
    make,
    measure,
    said,
    settings,
    train,
    untouched,
)
from tests.bench.result import command, write

PICTURES = Path(__file__).resolve().parents[2] / "assets" / "pictures"
EQUAL = [way for way in WAYS if way != FEWER]
"""Ways that draw their pictures of a batch in equally many steps, as the untouched model does for the curves."""
PAPER = "random-k, k = T (the paper)"
COLUMNS = [
    "reward", "way", "CPU s", "held-out reward, before", "gain", "gain per CPU s, share of the paper's",
    "prompt match, change in points", "diversity, share of before", "seeds",
]  # fmt: skip


def main(arguments: list[str]) -> int:
    """Make the trials that are missing, then write table and curves."""
    given = _given(arguments)
    name = "alignprop_modes" + (f"_{given.name}" if given.name else "")
    folder = WORK / "modes" / given.name
    setup: dict[str, Any] = {"model": given.model, "steps": given.sampling_steps, "pictures": given.pictures}
    trials: list[dict[str, Any]] = []
    before: dict[int, Any] = {}
    for seed in given.seeds:
        path = folder / f"untouched-{seed}.json"
        before[seed] = kept(path, lambda seed=seed: untouched(seed, ways=given.ways, **setup))
        for reward in given.rewards:
            for way in given.ways:
                path = folder / f"{reward}-{way.split(' (')[0].replace(' ', '')}-{seed}.json"
                if path.exists() or not given.show:
                    trials.append(kept(path, lambda a=(way, reward, seed): trial(*a, lr=given.lr, **setup)))
    rows = [
        row for reward in given.rewards for row in table([t for t in trials if t["reward"] == reward], before)
    ]  # fmt: skip
    curves = {
        reward: {way: curve([t for t in trials if (t["reward"], t["way"]) == (reward, way)], before) for way in EQUAL}
        for reward in given.rewards
    }
    draw(curves, PICTURES / f"{name.replace('_', '-')}.png")
    ways = [way for way in EQUAL if way not in {t["way"] for t in trials}]
    absent = f" Not run: {'; '.join(ways)}." if ways else ""
    write(
        name, command("alignprop_modes", [text for text in arguments if text != "--show"]), COLUMNS, rows,
        f"{said(given.model, given.sampling_steps, given.lr)}, {given.pictures} pictures in all, {len(trials)} trials. "
        "Held-out: 6 prompts, 2 pictures each, the same noise before and after; prompt match is the share of named "
        f"attributes that probe-b reads right.{absent}",
        {"curves": curves},
    )  # fmt: skip
    return 0


def trial(
    way: str, reward: str, seed: int, *, model: str, steps: int, pictures: int, lr: float
) -> dict[str, Any]:  # fmt: skip
    """Train once."""
    method = make((reward,), seed, settings(way, steps), pictures=pictures, model=model, lr=lr)
    rows = train(method)
    if method.config.method.sampling_steps != steps:
        trained = method
        method = make((reward,), seed, {"sampling_steps": steps}, model=model)
        method.load_state_dict(trained.state_dict())
    return {"way": way, "reward": reward, "seed": seed, "steps": rows, "after": measure(method)}


def table(trials: list[dict[str, Any]], before: dict[int, Any]) -> list[list[Any]]:
    """Return a row for each way, averaged over seeds."""
    rates = {}
    rows = []
    for way in WAYS:
        same = [t for t in trials if t["way"] == way]
        if not same:
            continue
        held = [before[t["seed"]]["held_out"] for t in same]
        reward = same[0]["reward"]
        gains = [t["after"][reward] - h[reward] for t, h in zip(same, held, strict=True)]
        seconds = statistics.fmean(t["steps"][-1]["seconds"] for t in same)
        rates[way] = statistics.fmean(gains) / seconds
        rows.append([
            reward, way, seconds, statistics.fmean(h[reward] for h in held), _spread(gains), way,
            100 * statistics.fmean(t["after"]["match"] - h["match"] for t, h in zip(same, held, strict=True)),
            statistics.fmean(t["after"]["diversity"] / h["diversity"] for t, h in zip(same, held, strict=True)),
            len(same),
        ])  # fmt: skip
    for row in rows:
        # Shares of a loss would say the opposite of what they seem to.
        row[5] = rates[row[5]] / rates[PAPER] if rates.get(PAPER, 0.0) > 0 else None
    return rows


def _spread(values: list[float]) -> str | float:
    if len(values) == 1:
        return values[0]
    return f"{statistics.fmean(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def curve(trials: list[dict[str, Any]], before: dict[int, Any]) -> list[list[float]]:
    """Return (pictures, seconds, gain on the batch over the untouched model on it) after every step, seeds averaged."""
    points = []
    for number in range(min((len(t["steps"]) for t in trials), default=0)):
        found = []
        for one in trials:
            step, name = one["steps"][number], f"reward_{one['reward']}"
            mode = WAYS[one["way"]]["mode"]
            base = before[one["seed"]][mode if mode in ("lv", "spaced") else "last-k"][number]
            found.append((step["pictures"], step["seconds"], step[name] - base[name]))
        points.append([statistics.fmean(part) for part in zip(*found, strict=True)])
    return points


def draw(curves: dict[str, dict[str, list[list[float]]]], path: Path) -> None:
    """Draw gain against pictures and against seconds, a column for each reward."""
    figure = Figure(figsize=(4 * len(curves), 6), dpi=110, layout="constrained")
    axes = figure.subplots(2, len(curves), squeeze=False)
    for column, (reward, ways) in enumerate(curves.items()):
        for row, (place, label) in enumerate(((0, "pictures"), (1, "CPU seconds"))):
            axis = axes[row][column]
            for way, points in ways.items():
                if points:
                    axis.plot([p[place] for p in points], [p[2] for p in points], label=way, linewidth=1.5)
            axis.set_xlabel(label)
            axis.set_ylabel("gain")
            axis.grid(alpha=0.3)
            if row == 0:
                axis.set_title(reward)
    axes[0][0].legend(fontsize=7)
    FigureCanvasAgg(figure)
    figure.savefig(path, metadata={"Software": None})


def _given(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.alignprop_modes", description=__doc__)
    parser.add_argument("--rewards", nargs="+", default=list(REWARDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=EQUAL)
    parser.add_argument("--model", choices=list(SIDES), default="toys")
    parser.add_argument("--sampling-steps", type=int, default=SETTINGS["sampling_steps"])
    parser.add_argument("--lr", type=float, default=LR)
    parser.add_argument("--name", default="", help="ending of the names of result and picture")
    parser.add_argument("--show", action="store_true", help="only write the table of the trials that are there")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
