"""Checkpoints that are complete or absent, and from which a run continues exactly.

A checkpoint is a folder: `weights.safetensors` (trained parameters and the method's own state), `optimizer.safetensors`
(moments, by parameter) and `state.json` (step, digest of the config). It is written under a temporary name and renamed.
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
from lrdiff.files import write_json
from trainers.loop import State
from trainers.rundir import RunDir


def save(run: RunDir, state: State, keep: int) -> Path:
    """Write the checkpoint of `state.step`, then drop all but the newest `keep`.

    Raises:
        RunError: The disk is full or not writable; older checkpoints are untouched.
    """
    target = run.checkpoint(state.step)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(_weights(state), temporary / "weights.safetensors")
        save_file(_moments(state), temporary / "optimizer.safetensors")
        write_json(temporary / "state.json", {"step": state.step})
        if target.exists():
            shutil.rmtree(target)
        temporary.replace(target)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(f"{target}: checkpoint not written ({error.strerror or error}); older ones are kept") from error
    for step in run.checkpoint_steps()[:-keep]:
        shutil.rmtree(run.checkpoint(step))
    return target


def restore(run: RunDir, state: State) -> None:
    """Put the newest checkpoint of a run into a fresh state.

    Raises:
        RunError: There is none, or it does not fit the method.
    """
    steps = run.checkpoint_steps()
    if not steps:
        raise RunError(f"{run.path}: has no checkpoint to resume from; start a new run")
    folder = run.checkpoint(steps[-1])
    try:
        weights = load_file(folder / "weights.safetensors")
        moments = load_file(folder / "optimizer.safetensors")
        step = json.loads((folder / "state.json").read_text())["step"]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise RunError(f"{folder}: cannot be read ({error}); remove this folder to resume from an older one") from error
    _load_weights(state, weights, folder)
    _load_moments(state, moments, folder)
    state.step = int(step)


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
    return found or {"empty": torch.zeros(1)}


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
    for name, parameter in _parameters(state).items():
        prefix = f"{name}."
        values: dict[str, Any] = {k.removeprefix(prefix): v for k, v in moments.items() if k.startswith(prefix)}
        for key, value in values.items():
            # AdamW keeps its step counter on the CPU unless it is fused.
            on_cpu = key == "step" and state.optimizer.defaults.get("fused") is not True
            values[key] = value.clone() if on_cpu else value.to(parameter.device)
        if values:
            state.optimizer.state[parameter] = values
