"""Checkpoints that are complete or absent, and from which a run continues exactly.

A checkpoint is a folder: `weights.safetensors` (trained parameters and the method's own state), `optimizer.safetensors`
(moments, by parameter) and `state.json` (step, config). It is written under a hidden name and renamed; an old one is
renamed to a hidden name before it is deleted.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lrdiff.errors import RunError
from lrdiff.files import replacing, write_json
from trainers.loop import State
from trainers.rundir import RunDir


def save(run: RunDir, state: State, keep: int) -> Path:
    """Write the checkpoint of `state.step`, then drop all but the newest `keep`.

    One that is there already is left alone: a run has one state at a step.

    Raises:
        RunError: The disk is full or not writable; older checkpoints are untouched.
    """
    target = run.checkpoint(state.step)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        if not target.exists():
            _remove_hidden(run)
            temporary.mkdir(parents=True)
            for name, tensors in (("weights", _weights(state)), ("optimizer", _moments(state))):
                with replacing(temporary / f"{name}.safetensors") as file:
                    save_file(tensors, file)
            write_json(temporary / "state.json", {"step": state.step, "config": run.read()["config"]})
            temporary.replace(target)
        for step in run.checkpoint_steps()[:-keep]:
            run.checkpoint(step).replace(run.checkpoints / f".{step:06d}.old")
        _remove_hidden(run)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(f"{target}: checkpoint not written ({error}); older ones are kept, free some space") from error
    return target


def _remove_hidden(run: RunDir) -> None:
    """Delete what an interrupted save left, and checkpoints that were given up."""
    for entry in run.checkpoints.glob(".*"):
        shutil.rmtree(entry)


def restore(run: RunDir, state: State) -> None:
    """Put the newest checkpoint of a run into a fresh state.

    Raises:
        RunError: There is none, it does not fit the method, or run.json holds another configuration than it was made
            with: the run would not continue what it began.
    """
    steps = run.checkpoint_steps()
    if not steps:
        raise RunError(f"{run.path}: has no checkpoint to resume from; start a new run")
    folder = run.checkpoint(steps[-1])
    try:
        weights = load_file(folder / "weights.safetensors")
        moments = load_file(folder / "optimizer.safetensors")
        record = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        step, config = int(record["step"]), record["config"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RunError(f"{folder}: cannot be read ({error}); remove this folder to resume from an older one") from error
    changed = _differences(config, run.read()["config"])
    if changed:
        raise RunError(f"{run.path}: cannot resume with a changed run.json ({'; '.join(changed)}); make a new run")
    _load_weights(state, weights, folder)
    _load_moments(state, moments, folder)
    state.step = step


def _differences(before: Any, after: Any, where: str = "") -> list[str]:
    """List the settings that differ, by dotted name."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = sorted(before.keys() | after.keys())
        return [
            line
            for name in names
            for line in _differences(before.get(name), after.get(name), f"{where}.{name}".lstrip("."))
        ]
    return [] if before == after else [f"{where} was {before!r}, is {after!r}"]


def _parameters(state: State) -> dict[str, torch.nn.Parameter]:
    """Name the trained parameters by group and position, which are stable between runs of one config."""
    return {
        f"param.{number:02d}.{index:05d}": parameter
        for number, group in enumerate(state.groups)
        for index, parameter in enumerate(group.params)
    }


def _weights(state: State) -> dict[str, torch.Tensor]:
    own = {f"own.{name}": tensor for name, tensor in state.method.state().items()}
    tensors = dict(_parameters(state).items()) | own
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _moments(state: State) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in _parameters(state).items():
        for key, value in state.optimizer.state.get(parameter, {}).items():
            found[f"{name}.{key}"] = torch.as_tensor(value).detach().cpu().contiguous().clone()
    return found


def _load_weights(state: State, weights: dict[str, torch.Tensor], folder: Path) -> None:
    parameters = _parameters(state)
    own = {name.removeprefix("own."): value for name, value in weights.items() if name.startswith("own.")}
    stored = {name for name in weights if name.startswith("param.")}
    if stored != set(parameters) or any(weights[k].shape != p.shape for k, p in parameters.items()):
        raise RunError(f"{folder}: holds other parameters than this configuration trains; resume with the same config")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    state.method.load_state(own)


def _load_moments(state: State, moments: dict[str, torch.Tensor], folder: Path) -> None:
    parameters = _parameters(state)
    for name, value in moments.items():
        owner, _, key = name.rpartition(".")
        if owner not in parameters or (key != "step" and value.shape != parameters[owner].shape):
            raise RunError(f"{folder}: its optimizer state does not fit ({name}); resume with the same config")
        # AdamW keeps its step counter on the CPU unless it is fused.
        on_cpu = key == "step" and state.optimizer.defaults.get("fused") is not True
        state.optimizer.state[parameters[owner]][key] = value if on_cpu else value.to(parameters[owner].device)
