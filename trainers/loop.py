"""`fit`: the training loop. It knows no method and no base model.

A step is: set the learning rate, accumulate the gradients of `accumulate` micro-batches, refuse non-finite numbers,
clip, step, tell the hooks. Every random number is drawn from a stream named by seed and position, so a run that is
resumed at step n continues exactly as an unbroken one.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lrdiff.errors import BackendError, ConfigError, NonFiniteError
from lrdiff.rng import derive, stream
from trainers.config import OptimConfig
from trainers.engine import Engine
from trainers.method import Method, ParamGroup
from trainers.muon import Muon


@dataclass(slots=True)
class State:
    """What hooks may read. They may only set `stop`, to the reason.

    Attributes:
        step: Optimizer steps done.
        method: What is trained.
        groups: Its parameters.
        optimizer: Its optimizer.
        metrics: Averages of the last step: the method's own, `loss`, `grad_norm` and `lr`. Empty before the first step
            of this call.
        seconds: Duration of the last step, without hooks.
        stop: Reason to end after this step, or empty.
    """

    step: int
    method: Method[Any]
    groups: list[ParamGroup]
    optimizer: torch.optim.Optimizer
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    stop: str = ""


Hook = Callable[[State], None]


def fit(
    method: Method[Any],
    optim: OptimConfig,
    *,
    engine: Engine,
    seed: int,
    hooks: Sequence[Hook] = (),
    restore: Callable[[State], None] | None = None,
) -> State:
    """Train a method.

    Args:
        method: Already on the engine's device.
        optim: Steps, learning rate and so on.
        engine: Device, precision, processes.
        seed: Every random number follows from it.
        hooks: Called in order after each step, and once before the first step of this call.
        restore: Puts a checkpoint into the state (parameters, optimizer, step) before the first step.

    Returns:
        The state after the last step; `state.stop` says why it ended early, if it did.

    Raises:
        ConfigError: The method has nothing to train, or names a parameter twice.
        NonFiniteError: A loss or gradient is NaN or infinite. The parameters are those of the step before.
    """
    groups = checked_groups(method)
    optimizer = build_optimizer(groups, optim, engine)
    state = State(step=0, method=method, groups=groups, optimizer=optimizer)
    if restore is not None:
        restore(state)
    module, stepper = engine.prepare(method, optimizer)
    module.train()
    _tell(hooks, state)
    while state.step < optim.steps and not state.stop:
        begin = time.monotonic()
        factor = lr_factor(state.step, optim)
        for group, spec in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] = optim.lr * spec.lr_scale * factor
        metrics = _accumulate(module, method, state, optim.accumulate, engine, seed)
        norm = engine.clip([p for spec in groups for p in spec.params], optim.clip)
        if not math.isfinite(float(norm)):
            raise NonFiniteError(_name_bad_gradient(groups, state.step + 1))
        stepper.step()
        stepper.zero_grad(set_to_none=True)
        state.step += 1
        method.stepped(state.step)
        metrics["grad_norm"] = norm.detach()
        state.metrics = engine.mean(metrics) | {"lr": optim.lr * factor}
        state.seconds = time.monotonic() - begin
        _tell(hooks, state)
    return state


def lr_factor(step: int, optim: OptimConfig) -> float:
    """Return the learning-rate factor in [0, 1] of step `step` (from 0): linear warm-up, then the chosen shape."""
    if step < optim.warmup:
        return (step + 1) / (optim.warmup + 1)
    if optim.schedule == "constant":
        return 1.0
    done = (step - optim.warmup) / max(1, optim.steps - optim.warmup)
    return 1.0 - done if optim.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def checked_groups(method: Method[Any]) -> list[ParamGroup]:
    """Return the method's parameter groups. Raises `ConfigError` when empty, frozen, or overlapping."""
    groups = [group for group in method.param_groups() if group.params]
    seen: set[int] = set()
    for group in groups:
        for parameter in group.params:
            if id(parameter) in seen:
                raise ConfigError(f"parameter group {group.name!r} repeats a parameter of another group")
            if not parameter.requires_grad:
                raise ConfigError(f"parameter group {group.name!r} holds a frozen parameter")
            seen.add(id(parameter))
    if not groups:
        raise ConfigError(f"{type(method).__name__} has nothing to train: all its parameter groups are empty")
    return groups


def build_optimizer(groups: Sequence[ParamGroup], optim: OptimConfig, engine: Engine) -> torch.optim.Optimizer:
    """Return AdamW over the groups, or Muon where a group asks for it.

    On a GPU in the fused form, which computes the same in fewer kernels.

    Raises:
        BackendError: Moments in 8 bits were asked for, and the GPU or the package for them is absent.
        ConfigError: They were asked for parameters that do not take AdamW's steps.
    """
    kind: Any = Muon if any(group.orthogonal for group in groups) else torch.optim.AdamW
    more: dict[str, Any] = {"fused": engine.device.type == "cuda"}
    if optim.optimizer == "adamw-8bit":
        if kind is Muon:
            raise ConfigError("optim.optimizer is adamw-8bit, but this method takes steps of its own; use adamw")
        kind, more = eight_bit_adamw(engine.device), {}
    if kind is Muon:
        more["half"] = engine.dtype == torch.bfloat16
    return kind(
        [
            {
                "params": list(group.params),
                "weight_decay": optim.weight_decay if group.decay else 0.0,
                "orthogonal": group.orthogonal,
            }
            for group in groups
        ],
        lr=optim.lr,
        betas=(optim.beta1, optim.beta2),
        **more,
    )


def eight_bit_adamw(device: torch.device) -> Any:
    """Return bitsandbytes' AdamW. Raises `BackendError` where it cannot work."""
    try:
        optim = importlib.import_module("bitsandbytes.optim")
    except ImportError as error:
        raise BackendError(
            f"optim.optimizer is adamw-8bit, but bitsandbytes cannot be used ({error}); "
            "install lrdiff[gpu], or use adamw"
        ) from error
    if device.type != "cuda":
        raise BackendError(f"optim.optimizer is adamw-8bit, which needs a GPU, not {device.type}; use adamw")
    return optim.AdamW8bit


def _accumulate(
    module: nn.Module, method: Method[Any], state: State, count: int, engine: Engine, seed: int
) -> dict[str, torch.Tensor]:
    """Run `count` micro-batches forward and backward; return metrics averaged over them.

    The finite check of each loss comes before its backward, so a bad batch never reaches the gradients.
    """
    totals: dict[str, torch.Tensor] = {}
    for part in range(count):
        index = (state.step * count + part) * engine.processes + engine.rank
        # Dropout and the like draw from the global generator: seed it by position too, or a resume would differ.
        torch.manual_seed(derive(seed, "global", index))
        batch = engine.move(method.batch(index, stream(seed, "batch", index)))
        with engine.unsynchronised(module, last=part == count - 1):
            with engine.autocast():
                loss, metrics = module(batch, stream(seed, "forward", index))
            bad = not bool(torch.isfinite(loss))
            # One process that gives up alone would leave the others waiting for its gradients.
            if engine.any(bad):
                found = float(loss.detach()) if bad else "not finite in another process"
                raise NonFiniteError(
                    f"the loss of step {state.step + 1} is {found}; the weights of step {state.step} are kept"
                    f"{_bad_weights(state.groups)}. "
                    "Lower optim.lr, use precision.dtype fp32, or look at the images of this batch"
                )
            engine.backward(loss / count)
        for name, value in (metrics | {"loss": loss}).items():
            totals[name] = totals.get(name, 0) + value.detach() / count
    return totals


def _bad_weights(groups: Sequence[ParamGroup]) -> str:
    """Say which parameter groups hold non-finite weights, if any do."""
    bad = [group.name for group in groups if any(not bool(torch.isfinite(p).all()) for p in group.params)]
    return f" (not finite in: {', '.join(bad)})" if bad else " (all of them are finite)"


def _name_bad_gradient(groups: Sequence[ParamGroup], step: int) -> str:
    """Say which parameter groups hold non-finite gradients."""
    bad = [
        group.name
        for group in groups
        if any(p.grad is not None and not bool(torch.isfinite(p.grad).all()) for p in group.params)
    ]
    where = ", ".join(bad) or "their norm only (overflow)"
    return (
        f"the gradient of step {step} is not finite in: {where}; the weights of step {step - 1} are kept. "
        "Lower optim.lr or use precision.dtype fp32"
    )


def _tell(hooks: Sequence[Hook], state: State) -> None:
    for hook in hooks:
        hook(state)
