"""What happens around a step: log, evaluate, preview, checkpoint, stop. Small functions of the state."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from lrdiff.images import save_png
from lrdiff.rng import stream
from trainers import checkpoint
from trainers.engine import Engine
from trainers.loop import Hook, State
from trainers.rundir import RunDir

log = logging.getLogger(__name__)


def every(interval: int, act: Hook, *, last: int = 0, first: bool = False) -> Hook:
    """Return a hook that acts every `interval` steps; 0 never.

    Args:
        interval: Steps between actions.
        act: What to do.
        last: Also act at this step, and at the one that reaches the method's goal, whatever the interval.
        first: Also act before the first step.
    """

    def hook(state: State) -> None:
        # No step was made yet in this call: what was due at a resumed step was done before it was interrupted.
        starting = not state.metrics
        ending = state.step == last or bool(state.method.done())
        due = (first and state.step == 0) if starting else (state.step % interval == 0 or ending)
        if due:
            act(state)

    return hook if interval else lambda state: None


@dataclass(slots=True)
class LogMetrics:
    """Writes the mean of the metrics since the last line, with the speed, to metrics.jsonl and the log."""

    run: RunDir
    total: int
    interval: int
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    count: int = 0

    def __call__(self, state: State) -> None:
        """Collect one step; write when due."""
        if not state.metrics:
            return
        for name, value in state.metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.seconds += state.seconds
        self.count += 1
        if state.step % self.interval and state.step != self.total and not state.stop:
            return
        seconds = self.seconds / self.count
        means = {name: value / self.count for name, value in self.sums.items()}
        self.run.append_metrics({"step": state.step, **means, "seconds_per_step": seconds, "time": time.time()})
        left = (self.total - state.step) * seconds
        text = f"step {state.step}/{self.total}  loss {means['loss']:.4f}  {seconds:.3f} s/step  {left:.0f} s left"
        log.info("%s", text)
        self.sums, self.seconds, self.count = {}, 0.0, 0


def evaluate(run: RunDir, seed: int) -> Hook:
    """Return a hook that writes the method's fixed-seed evaluation to metrics.jsonl."""

    def act(state: State) -> None:
        with torch.no_grad(), _evaluating(state):
            values = state.method.evaluate(stream(seed, "evaluate"))
        if values:
            run.append_metrics({"step": state.step, **values, "time": time.time()})
            log.info("step %d  %s", state.step, "  ".join(f"{name} {value:.4f}" for name, value in values.items()))

    return act


def preview(run: RunDir, seed: int) -> Hook:
    """Return a hook that writes the method's fixed-seed previews as PNGs."""

    def act(state: State) -> None:
        with torch.no_grad(), _evaluating(state):
            images = state.method.preview(stream(seed, "preview"))
        folder = run.previews / f"{state.step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        for name, batch in images.items():
            for number, image in enumerate(batch):
                save_png(image, folder / f"{name}-{number:02d}.png")

    return act


def save_checkpoint(run: RunDir, keep: int) -> Hook:
    """Return a hook that writes a checkpoint."""

    def act(state: State) -> None:
        checkpoint.save(run, state, keep)

    return act


def at_stop(act: Hook) -> Hook:
    """Return a hook that acts once the run was asked to stop."""

    def hook(state: State) -> None:
        if state.stop:
            act(state)

    return hook


def stop_when(asked: Callable[[], str]) -> Hook:
    """Return a hook that ends the run after the current step when `asked` returns a reason."""

    def act(state: State) -> None:
        state.stop = state.stop or asked()

    return act


def stop_file(run: RunDir) -> Callable[[], str]:
    """Return a function that gives a reason to stop once the file STOP is there."""
    return lambda: "the file STOP appeared" if run.stop_path.exists() else ""


def agreed(engine: Engine, *asked: Callable[[], str]) -> Callable[[], str]:
    """Return a function that gives every process the same reason: the first that any of them has.

    Processes that ended after different steps would wait for each other for ever.
    """
    return lambda: engine.first(next((reason for ask in asked if (reason := ask())), ""))


def on_main(engine: Engine, hook: Hook) -> Hook:
    """Return the hook on the main process and nothing on the others."""
    return hook if engine.is_main else lambda state: None


class _evaluating:
    """Put the method into eval mode and back."""

    def __init__(self, state: State) -> None:
        self._method = state.method

    def __enter__(self) -> None:
        self._method.eval()

    def __exit__(self, *exc: object) -> None:
        self._method.train()
