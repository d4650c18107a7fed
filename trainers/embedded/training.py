"""One training of a shipped model, in a run directory of the cache: begun, gone on with, or done already."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrdiff.errors import RunError
from trainers.config import OptimConfig, PrecisionConfig
from trainers.embedded.budgets import Training

if TYPE_CHECKING:
    from trainers.engine import Engine
    from trainers.method import Method
    from trainers.rundir import RunDir

log = logging.getLogger(__name__)

KEEP_CHECKPOINTS = 2


def train(
    path: Path,
    name: str,
    method: Callable[[Any], Method[Any]],
    config: Any,
    plan: Training,
    precision: PrecisionConfig,
    seed: int,
) -> float:
    """Bring the run in `path` to its last step, from its newest checkpoint if it has one.

    Returns:
        Seconds of all steps, those before an interruption included.

    Raises:
        RunError: The run was begun with other figures, or was asked to stop.
    """
    import torch

    from lrdiff.rng import derive
    from trainers import rundir
    from trainers.engine import Engine

    optim = plan.optim
    torch.manual_seed(derive(seed, "init"))
    module = method(config)
    record = {
        "method": config.model_dump(mode="json"),
        "optim": optim.model_dump(mode="json"),
        "seed": seed,
        # The network is built in code, which may have changed since a run was begun.
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
    }
    fresh = not (path / "run.json").exists()
    run = rundir.create(path, name, record) if fresh else rundir.open_run(path)
    if run.read()["config"] != record:
        raise RunError(f"{path}: was begun with other figures or another network; remove it, or go back to those")
    if run.read()["state"] == "finished":
        return training_seconds(path)
    with run.locked():
        _train(run, module, optim, Engine(precision), plan.every, seed)
    return training_seconds(path)


def _train(run: RunDir, module: Method[Any], optim: OptimConfig, engine: Engine, every: int, seed: int) -> None:
    """Carry out a run that this process has locked, to its last step."""
    from trainers import checkpoint, hooks, rundir
    from trainers.loop import State, fit

    log.info("training %s: %d steps", run.path.name, optim.steps)
    module.to(engine.device)
    run.stop_path.unlink(missing_ok=True)
    run.update(state="running", device=engine.describe(), process=rundir.process_identity())

    def restore(state: State) -> None:
        checkpoint.restore(run, state)
        run.drop_metrics_after(state.step)

    save = hooks.save_checkpoint(run, KEEP_CHECKPOINTS)
    watchers = [
        hooks.stop_when(hooks.stop_file(run)),
        hooks.LogMetrics(run, optim.steps, 20),
        hooks.every(every, hooks.evaluate(run, seed), last=optim.steps),
        hooks.every(every, save, last=optim.steps),
        hooks.at_stop(save),
    ]
    again = restore if run.checkpoint_steps() else None
    state = fit(module, optim, engine=engine, seed=seed, hooks=watchers, restore=again)
    if state.stop:
        run.update(state="stopped", process=None)
        raise RunError(f"{run.path}: stopped at step {state.step} ({state.stop}); the same command goes on from there")
    run.update(state="finished", process=None)


def training_seconds(path: Path) -> float:
    """Return the seconds that the logged steps of a run took."""
    from trainers.rundir import open_run

    rows = [row for row in open_run(path).metrics() if "seconds_per_step" in row]
    before = [0, *(row["step"] for row in rows)]
    return sum((row["step"] - last) * row["seconds_per_step"] for row, last in zip(rows, before, strict=False))
