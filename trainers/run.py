"""Carries out one run: from a run directory in state `queued` to an end state that was checked on disk."""

from __future__ import annotations

import logging
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import ValidationError

from lrdiff.artifact import Artifact, sha256, versions
from lrdiff.errors import ArtifactError, ConfigError, LrdiffError, NonFiniteError, RunError
from lrdiff.rng import derive
from trainers import checkpoint, hooks, inputs, report
from trainers.config import RunConfig, describe_errors
from trainers.engine import Engine, launched_rank
from trainers.loop import Hook, State, fit
from trainers.method import Method
from trainers.preflight import preflight
from trainers.registry import method_class, run_config_class
from trainers.rundir import RunDir, is_alive, now, process_identity

log = logging.getLogger(__name__)

SAVERS = (
    "lower data.batch_size (and raise optim.accumulate), set precision.dtype to bf16, or, where the method has them, "
    "switch method.checkpointing on or choose fewer method.targets"
)
"""What to change when memory does not suffice."""
CLOCK = ("time", "seconds_per_step")
"""Metrics that differ between two equal runs; they stay out of the artifact."""


def execute(run: RunDir, *, resume: bool = False) -> str:
    """Train what the run directory describes and write how it ended.

    Args:
        run: A run in state queued, or, with `resume`, one that was stopped, interrupted or failed.
        resume: Continue from the newest checkpoint.

    Returns:
        `finished` or `stopped`.

    Raises:
        LrdiffError: The run cannot start or go on; the state is then `failed` and `outcome` holds the message.
    """
    started = time.monotonic()
    run.read()  # a folder that is no run gets no lock file
    with _signals() as asked:
        if launched_rank():
            return _take_part(run, asked, resume)
        with run.locked():
            return _conduct(run, asked, resume, started)


def _take_part(run: RunDir, asked: list[str], resume: bool) -> str:
    """Compute in a run of several processes; the first of them has the run and writes everything."""
    record = run.read()
    outcome, _ = _train(run, record["method"], read_config(record), asked, resume)
    return outcome


def _conduct(run: RunDir, asked: list[str], resume: bool, started: float) -> str:
    """Carry out a run that this process has locked, and record how it ends."""
    record = _claim(run, resume)
    with _log_file(run):
        with _recording_failure(run, started):
            config = read_config(record)
            inputs.check(run, config, resume)
            outcome, state = _train(run, record["method"], config, asked, resume)
            run.update(state=outcome, outcome=state.stop or "all steps done", step=state.step, **_ended(started))
        report.write(run)
        log.info("%s after %.0f s: %s", outcome, time.monotonic() - started, run.artifact_path)
    return outcome


def build(method: str, config: RunConfig[Any], engine: Engine) -> Method[Any]:
    """Build a method from its configuration, with its random initialisation drawn from the run's seed."""
    torch.manual_seed(derive(config.seed, "init"))
    return method_class(method)(config, method, engine)


def read_config(record: dict[str, Any]) -> RunConfig[Any]:
    """Return the typed configuration of a run record. Raises `ConfigError` for anything that does not fit."""
    try:
        return run_config_class(record["method"]).model_validate(record["config"])
    except ValidationError as error:
        raise ConfigError(describe_errors(error, "run.json")) from error
    except KeyError as error:
        raise RunError(f"run.json has no {error}; it was not written by lrdiff") from error


def _train(run: RunDir, name: str, config: RunConfig[Any], asked: list[str], resume: bool) -> tuple[str, State]:
    engine = Engine(config.precision)
    try:
        if engine.is_main:
            run.update(device=engine.describe(), versions=versions())
        method = build(name, config, engine)
        lines = preflight(method, config, engine, run.path)
        if engine.is_main:
            for line in lines:
                log.info("%s", line)
            run.update(preflight=lines, parameters=sum(p.numel() for g in method.param_groups() for p in g.params))
        watchers = _hooks(run, config, engine, asked, method)
        restore = (lambda state: _restore(run, state, engine)) if resume else None
        try:
            state = fit(method, config.optim, engine=engine, seed=config.seed, hooks=watchers, restore=restore)
        except NonFiniteError as error:
            raise NonFiniteError(f"{error}. {_on_disk(run)}") from error
        if engine.is_main:
            _save(run, method, state)
            run.update(peak_memory=engine.peak_memory())
    finally:
        engine.close()
    return ("finished" if state.step >= config.optim.steps or method.done() else "stopped"), state


def _on_disk(run: RunDir) -> str:
    """Say what is left of a run that cannot go on: the weights in memory end with it."""
    steps = run.checkpoint_steps()
    return f"On disk: the checkpoint of step {steps[-1]}" if steps else "No checkpoint was due yet"


def _hooks(run: RunDir, config: RunConfig[Any], engine: Engine, asked: list[str], method: Method[Any]) -> list[Hook]:
    """Arrange what happens around a step."""
    watch, steps = config.watch, config.optim.steps
    measure = hooks.every(watch.evaluate_every, hooks.evaluate(run, config.seed), last=steps, first=True)
    quiet = [
        hooks.LogMetrics(run, steps, watch.log_every),
        hooks.every(watch.preview_every, hooks.preview(run, config.seed), last=steps, first=True),
        hooks.every(watch.checkpoint_every, hooks.save_checkpoint(run, watch.keep_checkpoints), last=steps),
        hooks.at_stop(hooks.save_checkpoint(run, watch.keep_checkpoints)),
    ]
    wishes = hooks.agreed(engine, hooks.stop_file(run), lambda: asked[0] if asked else "", method.done)
    # Measured first, since that may reach the goal; then stopping is asked, so that the others know the last step.
    return [hooks.on_main(engine, measure), hooks.stop_when(wishes), *(hooks.on_main(engine, h) for h in quiet)]


def _restore(run: RunDir, state: State, engine: Engine) -> None:
    checkpoint.restore(run, state)
    if engine.is_main:
        run.drop_metrics_after(state.step)
        log.info("resumed at step %d", state.step)


def _save(run: RunDir, method: Method[Any], state: State) -> None:
    """Write the artifact, read it back, and compare: only what is on disk counts.

    Raises:
        ArtifactError: What was read differs from what was trained.
    """
    made = method.artifact()
    if made is None:
        return
    last = {name: value for row in run.metrics() for name, value in row.items() if name not in CLOCK}
    made.header.extra.update(steps=state.step, metrics=last)
    made.save(run.artifact_path)
    read = Artifact.load(run.artifact_path)
    if read.header != made.header or any(not torch.equal(read.tensors[k], v) for k, v in made.tensors.items()):
        raise ArtifactError(f"{run.artifact_path}: what was read back differs from what was trained; check the disk")
    run.update(artifact={"file": run.artifact_path.name, "sha256": sha256(run.artifact_path)})


def _claim(run: RunDir, resume: bool) -> dict[str, Any]:
    """Take the run, which this process has locked, or refuse: its state does not fit. Return its record."""
    record = run.read()
    # Runs of processes that know no lock.
    if record["state"] == "running" and is_alive(record.get("process")):
        raise RunError(f"{run.path}: is being trained by process {record['process']['pid']}; stop that first")
    if not resume and record["state"] != "queued":
        raise RunError(f"{run.path}: is {record['state']}; resume it with --resume, or make a new run")
    if resume and record["state"] == "finished":
        raise RunError(f"{run.path}: has finished; make a new run from its run.json to train longer")
    if resume and not run.checkpoint_steps():
        raise RunError(f"{run.path}: has no checkpoint to resume from; make a new run from its run.json")
    if resume and record["state"] != "queued":
        # The wish that ended it last time. One for a run that waits in a queue stands.
        run.stop_path.unlink(missing_ok=True)
    times = {"resumed": now()} if resume else {"started": now()}
    return run.update(state="running", process=process_identity(), outcome=None, **times)


@contextmanager
def _recording_failure(run: RunDir, started: float) -> Iterator[None]:
    """Write into log and record how a run ended early, whatever ended it."""
    try:
        yield
    except LrdiffError as error:
        _fail(run, "failed", str(error), started)
        raise
    except OSError as error:
        problem = RunError(f"{run.path}: {error}; free some space or look at the rights")
        _fail(run, "failed", str(problem), started)
        raise problem from error
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            log.error("%s", traceback.format_exc())
            _fail(run, "failed", f"{type(error).__name__}: {error}", started)
            raise
        problem = RunError(f"{run.path}: out of memory ({str(error).splitlines()[0][:200]}); {SAVERS}")
        _fail(run, "failed", str(problem), started)
        raise problem from error
    except KeyboardInterrupt:
        _fail(run, "interrupted", "interrupted a second time, before the step was done", started)
        raise
    except BaseException as error:
        log.error("%s", traceback.format_exc())
        _fail(run, "failed", f"{type(error).__name__}: {error}", started)
        raise


def _is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory was asked for that is not there; on a CPU torch says so in words only."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words)


def _fail(run: RunDir, state: str, outcome: str, started: float) -> None:
    """Write how a run ended early into its log and record."""
    try:
        with run.log_path.open("a", encoding="utf-8") as file:
            file.write(f"{now()} ERROR {outcome}\n")
        run.update(state=state, outcome=outcome, **_ended(started))
    except OSError as error:
        # A full disk must not hide what went wrong. The record still says running, with a process that is gone.
        log.error("%s: the end could not be recorded (%s)", run.path, error)


def _ended(started: float) -> dict[str, Any]:
    return {"ended": now(), "seconds": round(time.monotonic() - started, 1), "process": None}


@contextmanager
def _log_file(run: RunDir) -> Iterator[None]:
    """Also write the log of everything into the run's log.txt."""
    handler = logging.FileHandler(run.log_path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(min(level, logging.INFO))
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()


@contextmanager
def _signals() -> Iterator[list[str]]:
    """Turn the first Ctrl-C or termination request into a wish to stop; the second interrupts at once."""
    asked: list[str] = []

    def handle(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(f"{signal.Signals(number).name} received")

    try:
        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        # Not in the main thread: whoever started the thread owns the signals.
        yield asked
        return
    try:
        yield asked
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
