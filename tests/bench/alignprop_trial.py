"""One training of a shipped model towards a reward, and what is measured around it: shared by AlignProp's benches.

Every result is kept in a work folder when it is done, and not made again. Seconds are the processor's, of one thread,
without measuring: other work on the machine hardly moves them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from lrdiff.alignprop.diversity import diversity
from lrdiff.alignprop.prompt_match import share_right
from lrdiff.files import write_bytes, write_json
from lrdiff.probe import load_probe
from lrdiff.rng import stream
from lrdiff.world.captions import held_out_captions
from trainers.alignprop.config import AlignPropRun
from trainers.alignprop.method import PER_PROMPT, AlignProp
from trainers.engine import Engine
from trainers.loop import State, fit

WORK = Path("outputs/bench/alignprop")
REWARDS = ("compressibility", "brightness", "prompt-match=probe-a")
BATCH = 2
LR = 3e-3
SETTINGS: dict[str, Any] = {"sampling_steps": 5, "guidance": 3.0, "held_out_count": 6, "recompute": False}
WAYS: dict[str, dict[str, Any]] = {
    "last-k, k = 1": {"mode": "last-k", "k": 1},
    "sparse, k = 2": {"mode": "sparse", "k": 2},
    "lv, 2 repeats": {"mode": "lv"},
    "spaced, k = 2, early stop 2": {"mode": "spaced", "k": 2, "early_stop": 2},
    "random-k, k = T (the paper)": {"mode": "random-k", "k": 5},
    "random-per-step (its code)": {"mode": "random-per-step"},
    "last-k, k = T (full graph)": {"mode": "last-k", "k": 5},
}
FEWER = "last-k, k = 1, trained in 5 steps"
WAYS[FEWER] = {"mode": "last-k", "k": 1, "sampling_steps": 5}
"""For pictures that are drawn, and measured, in more steps than these."""
SIDES = {"toys": 128, "toys-dit": 256}


def said(model: str = "toys", steps: int = SETTINGS["sampling_steps"], lr: float = LR) -> str:
    """Return what trials have in common, in words."""
    return (
        f"{model} at {SIDES[model]} px in bf16, LoRA of rank 4 on attention, {steps} sampling steps, guidance 3, no "
        f"recomputing, AdamW at {lr:g}, {BATCH} pictures a step"
    )


def settings(way: str, steps: int) -> dict[str, Any]:
    """Return the settings of a way at a number of sampling steps, T."""
    return {"sampling_steps": steps, **WAYS[way], **({"k": steps} if "k = T" in way else {})}


def make(
    rewards: tuple[str, ...], seed: int, own: Mapping[str, Any], *, kind: type[AlignProp] = AlignProp,
    model: str = "toys", pictures: int = BATCH, batch: int = BATCH, lr: float = LR,
) -> AlignProp:  # fmt: skip
    """Return the method of a trial, on one thread of the processor."""
    torch.set_num_threads(1)
    lists = {"prompts": captions(48, 7), "held_out": captions(12, 8)}
    config = AlignPropRun.model_validate({
        "model": model,
        "data": {"batch_size": batch},
        "method": {**SETTINGS, **lists, "reward": rewards, **own},
        "optim": {"steps": pictures // batch, "lr": lr},
        "precision": {"device": "cpu", "dtype": "bf16"},
        "seed": seed,
    })  # fmt: skip
    return kind(config, "alignprop", Engine(config.precision))


def captions(count: int, seed: int) -> Path:
    """Return a list of captions that name shape, colour, pattern, material and place, in combinations never seen.

    `toys` draws shapes and places well, patterns and materials less so: prompt match has something to gain.
    """
    path = WORK / f"captions-{seed}.txt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, "".join(f"{text}\n" for text, _ in held_out_captions(count, seed)).encode())
    return path


def measure(method: AlignProp) -> dict[str, float]:
    """Return rewards, prompt match and diversity on the held-out prompts, always from the same noise.

    Prompt match is the share of named attributes that `probe-b` reads right; it took part in no reward.
    """
    method.eval()
    texts = [text for text in method.held_out for _ in range(PER_PROMPT)]
    images = method._draw(texts, "evaluate")
    scores = {term.name: float(term.scores(images, texts).mean()) for term in method.objective.terms}
    spread = diversity(images.unflatten(0, (-1, PER_PROMPT)))
    return scores | {"match": share_right(load_probe("probe-b"), images, texts), "diversity": spread}


def train(method: AlignProp, after_step: Callable[[int], None] = lambda step: None) -> list[dict[str, float]]:
    """Train; return pictures, seconds and metrics after every step. What `after_step` does is not timed."""
    rows: list[dict[str, float]] = []
    config, spent = method.config, 0.0
    begin = time.process_time()

    def record(state: State) -> None:
        nonlocal begin, spent
        spent += time.process_time() - begin
        if state.step:
            rows.append({"pictures": state.step * config.data.batch_size, "seconds": spent, **state.metrics})
            after_step(state.step)
            method.train()
        begin = time.process_time()

    fit(method, config.optim, engine=method.engine, seed=config.seed, hooks=[record])
    return rows


@torch.no_grad()
def untouched(seed: int, pictures: int, ways: Collection[str], model: str, steps: int) -> dict[str, Any]:
    """Return what the untouched model has: on the held-out prompts, and on the very batches that trials train on.

    The difference to a trial's rewards on a batch is what it learned from the batches before, without the luck of the
    draw. `lv` and `spaced` score other pictures of a batch than the rest does, so they have rows of their own.
    """
    method = make(REWARDS, seed, {"sampling_steps": steps}, pictures=pictures, model=model)
    found: dict[str, Any] = {"held_out": measure(method)}
    for way in (settings(name, steps) for name in ways):
        mode = way["mode"] if way["mode"] in ("lv", "spaced") else "last-k"
        if mode in found:
            continue
        method = make(REWARDS, seed, way, pictures=pictures, model=model)
        rows = []
        for index in range(pictures // BATCH):
            with method._autocast():
                _, metrics = method(method.batch(index, stream(seed, "batch", index)), stream(seed, "forward", index))
            rows.append({name: float(value) for name, value in metrics.items()})
        found[mode] = rows
    return found


def kept(path: Path, result: Callable[[], Any]) -> Any:
    """Return what the file holds, or make it and write it."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, result())
        print(f"{path.name}: done", flush=True)
    return json.loads(path.read_text())
