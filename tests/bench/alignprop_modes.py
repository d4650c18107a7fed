"""Reward against pictures seen and time, for every way of sending the gradient back, and for DDPO.

python -m tests.bench.alignprop_modes [--rewards compressibility] [--seeds 0] [--pictures 40]

Every trial (way, reward, seed) is kept in --work when it is done, and not made again; the table shows those that are
there. Times are of the processor, of one thread, evaluation not counted: other work on the machine hardly moves them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from lrdiff.alignprop.diversity import diversity
from lrdiff.alignprop.prompt_match import share_right
from lrdiff.files import write_json
from lrdiff.images import save_png
from lrdiff.probe import load_probe
from tests.bench.alignprop_ddpo import Ddpo
from tests.bench.result import write
from trainers.alignprop.config import AlignPropRun
from trainers.alignprop.method import PER_PROMPT, AlignProp
from trainers.engine import Engine
from trainers.loop import State, fit

WAYS: dict[str, dict[str, Any]] = {
    "sparse, k = 2": {"mode": "sparse", "k": 2},
    "last-k, k = 1": {"mode": "last-k", "k": 1},
    "random-k, k = T": {"mode": "random-k"},
    "lv, 2 repeats": {"mode": "lv"},
    "random-per-step (AlignProp's code)": {"mode": "random-per-step"},
    "spaced, k = 2": {"mode": "spaced", "k": 2},
    "last-k, k = T": {"mode": "last-k"},
    "ddpo": {"mode": "last-k", "k": 1},
}


def main(arguments: list[str]) -> int:
    """Make what is missing, then write `alignprop_modes.json`."""
    given = _given(arguments)
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    trials = []
    for seed in given.seeds:
        for reward in given.rewards:
            for way in WAYS:
                path = given.work / f"{reward}-{way.split(' (')[0].replace(' ', '').replace(',', '-')}-{seed}.json"
                if not path.exists() and not given.show:
                    write_json(path, trial(way, reward, seed, given, path.with_suffix("")))
                if path.exists():
                    trials.append(json.loads(path.read_text()))
    write("alignprop_modes", _command(arguments), COLUMNS, table(trials), _note(given, trials))
    return 0


def trial(way: str, reward: str, seed: int, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train once; return rewards and seconds after every step, and held-out figures before and after."""
    own = dict(WAYS[way])
    if own["mode"] == "random-k" or way == "last-k, k = T":
        own["k"] = given.steps
    pictures = given.pictures * (given.more if way == "ddpo" else 1)
    batch = 2 * given.batch if way == "ddpo" else given.batch
    config = AlignPropRun.model_validate({
        "data": {"batch_size": batch},
        "method": own | {
            "reward": [reward], "sampling_steps": given.steps, "guidance": given.guidance,
            "held_out_count": given.held_out,
        },
        "optim": {"steps": max(1, pictures // batch), "lr": given.lr},
        "precision": {"device": "cpu"},
        "seed": seed,
    })  # fmt: skip
    engine = Engine(config.precision)
    method = (Ddpo if way == "ddpo" else AlignProp)(config, "alignprop", engine)
    probe = load_probe("probe-b")
    texts = [text for text in method.held_out for _ in range(PER_PROMPT)]

    def measure(name: str) -> dict[str, float]:
        images = method._draw(texts, "evaluate")
        for number in range(0, len(images), PER_PROMPT):
            save_png(images[number] * 2 - 1, folder / f"{name}-{number:02d}.png")
        score = float(method.objective.terms[0].scores(images, texts).mean())
        spread = diversity(images.unflatten(0, (-1, PER_PROMPT)))
        return {"reward": score, "match": share_right(probe, images, texts), "diversity": spread}

    folder.mkdir(parents=True, exist_ok=True)
    method.eval()
    before = measure("before")
    steps: list[dict[str, float]] = []
    begin = time.process_time()

    def record(state: State) -> None:
        if state.metrics:
            row = {"seconds": time.process_time() - begin, "pictures": state.step * batch}
            steps.append(row | {"reward": state.metrics[f"reward_{reward}"], "grad_norm": state.metrics["grad_norm"]})
            print(way, reward, seed, steps[-1], flush=True)

    fit(method, config.optim, engine=engine, seed=seed, hooks=[record])
    method.eval()
    found = {"way": way, "reward": reward, "seed": seed, "steps": steps, "before": before, "after": measure("after")}
    print(json.dumps({key: found[key] for key in ("way", "reward", "before", "after")}), flush=True)
    return found


COLUMNS = [
    "reward", "way", "pictures", "CPU s", "held-out reward, before", "after", "gain per 100 CPU s",
    "prompt match, before", "after", "diversity, share of before", "seeds",
]  # fmt: skip


def table(trials: list[dict[str, Any]]) -> list[list[Any]]:
    """Return a row for each reward and way, averaged over seeds."""
    rows = []
    for reward in dict.fromkeys(t["reward"] for t in trials):
        for way in WAYS:
            same = [t for t in trials if t["reward"] == reward and t["way"] == way]
            if same:
                rows.append(_row(reward, way, same))
    return rows


def _row(reward: str, way: str, same: list[dict[str, Any]]) -> list[Any]:
    def mean(when: str, what: str) -> float:
        return statistics.fmean(t[when][what] for t in same)

    seconds = statistics.fmean(t["steps"][-1]["seconds"] for t in same)
    gain = mean("after", "reward") - mean("before", "reward")
    return [
        reward, way, int(same[0]["steps"][-1]["pictures"]), seconds, mean("before", "reward"), mean("after", "reward"),
        100 * gain / seconds, mean("before", "match"), mean("after", "match"),
        mean("after", "diversity") / mean("before", "diversity"), len(same),
    ]  # fmt: skip


def _note(given: argparse.Namespace, trials: list[dict[str, Any]]) -> str:
    planned = len(given.rewards) * len(WAYS) * len(given.seeds)
    ways = [way for way in WAYS if way not in {t["way"] for t in trials}]
    rewards = [reward for reward in given.rewards if reward not in {t["reward"] for t in trials}]
    return (
        f"toys at 128 px, LoRA of rank 4 on attention, {given.steps} sampling steps, guidance {given.guidance:g}, "
        f"AdamW at {given.lr:g}, {given.batch} pictures a step (DDPO: {2 * given.batch}). Measured on "
        f"{given.held_out} held-out prompts, {PER_PROMPT} pictures each, with the same noise before and after; prompt "
        "match is the share of named attributes that probe-b reads right. So few pictures and seeds show a direction, "
        f"no ranking. {len(trials)} of {planned} trials were run."
        + (f" Not run at all: {'; '.join([*ways, *rewards])}." if ways or rewards else "")
    )


def _command(arguments: list[str]) -> str:
    return " ".join(["python -m tests.bench.alignprop_modes", *(text for text in arguments if text != "--show")])


def _given(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.alignprop_modes", description=__doc__)
    parser.add_argument("--rewards", nargs="+", default=["compressibility", "brightness", "prompt-match=probe-a"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--more", type=int, default=2, help="DDPO's pictures, as a multiple")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5, help="sampling steps")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--held-out", type=int, default=4)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--work", type=Path, default=Path("outputs/bench/alignprop_modes"))
    parser.add_argument("--show", action="store_true", help="only write the table of the trials that are there")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
