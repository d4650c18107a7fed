"""What is said and checked before a run trains: layers, images, time, memory, disk."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from lrdiff.errors import NonFiniteError, RunError
from lrdiff.rng import derive, stream
from trainers.config import RunConfig
from trainers.engine import Engine
from trainers.loop import build_optimizer, checked_groups
from trainers.method import Method

log = logging.getLogger(__name__)

LARGE = 100_000_000
"""Parameters from which a model is not one of the small ones that the default learning rate was found for."""
FAST = 1e-3
"""Learning rate above which a large model is usually spoiled."""


def preflight(method: Method[Any], config: RunConfig[Any], engine: Engine, folder: Path) -> list[str]:
    """Say what a run will do, on which layers and for how long, and refuse what cannot work.

    The time is measured, not guessed: one forward and backward pass after a first one that warms up.

    Raises:
        RunError: The disk has too little room for the checkpoints.
        NonFiniteError: The loss is NaN or infinite before anything was learned.
    """
    need = needed_disk(method, config)
    free = shutil.disk_usage(folder).free
    if free < need:
        raise RunError(f"{folder}: {free / 1e6:.0f} MB free, but the run needs {need / 1e6:.0f} MB; free some space")
    seconds = time_step(method, config, engine)
    optim = config.optim
    if optim.warmup >= optim.steps:
        reached = optim.steps / (optim.warmup + 1)
        log.warning(
            "warm-up of %d steps in a run of %d: lr only reaches %.0f %% of its peak; set optim.warmup lower",
            optim.warmup,
            optim.steps,
            100 * reached,
        )
    whole = sum(p.numel() for p in method.parameters())
    if whole >= LARGE and optim.lr > FAST:
        log.warning(
            "optim.lr %g suits the shipped models; on one of %d million parameters 1e-4 to 5e-4 is usual",
            optim.lr,
            whole // 1_000_000,
        )
    # Known before hours of training: an optimizer whose package is absent is refused here.
    build_optimizer(checked_groups(method), optim, engine)
    total = config.optim.steps * config.optim.accumulate * seconds
    return [
        *method.describe(),
        f"{config.optim.steps} steps at {seconds:.2f} s: about {_duration(total)} on {engine.describe()}, "
        "previews and evaluation not counted",
        f"memory: {engine.peak_memory() / 1e9:.2f} GB at the most so far, measured with one batch; the optimizer adds "
        f"{2 * 4 * sum(p.numel() for g in method.param_groups() for p in g.params) / 1e6:.1f} MB",
        f"disk: up to {need / 1e6:.0f} MB, {free / 1e9:.0f} GB free",
    ]


def needed_disk(method: Method[Any], config: RunConfig[Any]) -> int:
    """Return the bytes that a run may come to need on disk."""
    size = sum(p.numel() * p.element_size() for group in method.param_groups() for p in group.params)
    own = sum(tensor.numel() * tensor.element_size() for tensor in method.state().values())
    # A checkpoint holds the parameters, AdamW's two moments and what the method keeps beside them; one more is on disk
    # while it is being replaced.
    return (3 * size + own) * (config.watch.keep_checkpoints + 1) + size + 50_000_000


def time_step(method: Method[Any], config: RunConfig[Any], engine: Engine) -> float:
    """Time one micro-batch, forward and backward. Gradients are cleared; parameters do not change.

    Raises:
        NonFiniteError: The loss is NaN or infinite, which no learning rate has brought about yet.
    """
    method.train()
    elapsed = 0.0
    for _ in range(2):
        begin = time.perf_counter()
        torch.manual_seed(derive(config.seed, "preflight"))
        batch = engine.move(method.batch(0, stream(config.seed, "batch", 0)))
        with torch.autocast(engine.device.type, dtype=engine.dtype, enabled=engine.dtype != torch.float32):
            loss, _ = method(batch, stream(config.seed, "preflight"))
        if not bool(torch.isfinite(loss)):
            raise NonFiniteError(
                f"the loss of the first batch is {float(loss.detach())}, before anything was learned: {_cause(method)}"
            )
        loss.backward()
        loss.detach().item()  # waits for a GPU
        elapsed = time.perf_counter() - begin
        method.zero_grad(set_to_none=True)
    return elapsed


def _cause(method: Method[Any]) -> str:
    """Say why a method that has learned nothing has no finite loss."""
    bad = [name for name, value in method.named_parameters() if not bool(torch.isfinite(value).all())]
    if bad:
        return f"{bad[0]} of the base model holds numbers that are not finite: copy the model again"
    return "its weights are finite, so numbers became too large: use precision.dtype fp32, or look at the pictures"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
