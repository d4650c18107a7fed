"""Promises about settings: one definition, complete, documented, and without a dead switch."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel, ValidationError

from lrdiff.errors import BackendError
from tests.contract.conftest import World, observe
from trainers.config import describe_errors
from trainers.denoise.config import DenoiseSettings
from trainers.registry import METHODS, config_class, run_config_class
from trainers.rundir import RunDir


def leaves(model: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every setting that is not itself a group of settings."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def to_toml(values: dict[str, Any]) -> str:
    """Write settings as TOML with dotted keys; TOML has no null, so what is not set is left out."""
    return "\n".join(f"{name} = {json.dumps(value)}" for name, value in flat(values).items() if value is not None)


# Another value for every setting, and what it must change of a run: something `observe` sees, "refused" for what this
# machine may not have, or "invalid" for what says nothing beside the other settings. A setting without a line here, or
# one that changes nothing, fails the test.
COMMON: dict[str, tuple[Any, str]] = {
    "model": ("{other_model}", "weights"),
    "data.images": ("{other_images}", "weights"),
    "data.prompt": ("a blue ball", "weights"),
    "data.validation": ("{other_images}", "metrics"),
    "data.batch_size": (3, "weights"),
    "data.flip": (True, "weights"),
    "optim.steps": (6, "files"),
    "optim.lr": (1e-2, "weights"),
    "optim.schedule": ("linear", "weights"),
    "optim.warmup": (2, "weights"),
    "optim.weight_decay": (0.5, "weights"),
    "optim.beta1": (0.5, "weights"),
    "optim.beta2": (0.5, "weights"),
    "optim.clip": (1e-3, "weights"),
    "optim.accumulate": (2, "weights"),
    "precision.device": ("cuda", "refused or device"),
    "precision.dtype": ("bf16", "weights"),
    "optim.optimizer": ("adamw-8bit", "refused"),
    "watch.log_every": (1, "metrics"),
    "watch.checkpoint_every": (3, "files"),
    "watch.keep_checkpoints": (1, "files"),
    "watch.evaluate_every": (0, "metrics"),
    "watch.preview_every": (0, "files"),
    "watch.preview_prompts": (["a green ring"], "previews"),
    "watch.preview_steps": (3, "previews"),
    "watch.preview_count": (2, "files"),
    "seed": (1, "weights"),
}
# What all adapters that learn by the denoising loss share.
DENOISE: dict[str, tuple[Any, str]] = {
    "method.targets": ("attention+ff", "shapes"),
    "method.min_snr": (1.0, "weights"),
    "method.buckets": (True, "plan"),
    "method.prior_prompt": ("a photo", "weights"),
    "method.prior_count": (3, "weights"),
    "method.prior_steps": (2, "weights"),
    "method.prior_weight": (0.5, "weights"),
    "method.guidance": (1.0, "previews"),
    "method.ema": (0.9, "weights"),
    "method.patience": (1, "files"),
    "method.checkpointing": (True, "plan"),
    "method.compile": ("eager", "plan"),
}
OWN: dict[str, dict[str, tuple[Any, str]]] = {
    "tensor-lora": DENOISE
    | {
        "method.transform_rank": (2, "shapes"),
        "method.residual": ("ring", "shapes"),
        "method.r": (2, "shapes"),
        "method.alpha": (1.0, "weights"),
        "method.transform_lr": (0.1, "weights"),
        "method.init": ("paper", "weights"),
    },
    "lora": DENOISE
    | {
        "method.r": (2, "shapes"),
        "method.alpha": (16, "weights"),
        "method.dropout": (0.5, "weights"),
    },
    "dora": DENOISE
    | {
        "method.r": (2, "shapes"),
        "method.alpha": (16, "weights"),
        "method.dropout": (0.5, "weights"),
    },
    "loha": DENOISE
    | {
        "method.r": (2, "shapes"),
        "method.alpha": (16, "weights"),
        "method.dropout": (0.5, "weights"),
    },
    "lokr": DENOISE
    | {
        "method.r": (1, "shapes"),
        "method.alpha": (16, "weights"),
        "method.factor": (2, "shapes"),
        "method.dropout": (0.5, "weights"),
    },
    "oft": DENOISE
    | {
        "method.block_size": (8, "shapes"),
        "method.shared": (True, "shapes"),
    },
    "boft": DENOISE
    | {
        "method.block_size": (8, "shapes"),
        "method.dropout": (0.5, "weights"),
    },
    "alignprop": {
        "optim.clip": (1e-6, "weights"),  # gradients of a tiny model's reward are small
        "data.images": ("{other_images}", "invalid"),
        "data.prompt": ("a blue ball", "invalid"),
        "data.validation": ("{other_images}", "invalid"),
        "data.flip": (True, "invalid"),
        "method.reward": (["brightness"], "weights"),
        "method.bound": ("relu", "invalid"),
        "method.target": ([0.5], "invalid"),
        "method.normalise": (2, "weights"),
        "method.straight_through": (True, "weights"),
        "method.mode": ("random-per-step", "weights"),
        "method.k": (2, "weights"),
        "method.repeats": (1, "weights"),
        "method.early_stop": (1, "weights"),
        "method.detach_negative": (True, "weights"),
        "method.recompute": (False, "plan"),
        "method.recompute_blocks": (True, "plan"),
        "method.sampling_steps": (4, "weights"),
        "method.guidance": (1.0, "weights"),
        "method.prompts": ("{other_mark}/prompts.txt", "weights"),
        "method.held_out": ("{other_mark}/prompts.txt", "metrics"),
        "method.held_out_count": (2, "metrics"),
        "method.monitor": ("sharpness", "metrics"),
        "method.penalty": (0.5, "weights"),
        "method.min_diversity": (1.0, "files"),
        "method.max_drop": (1e-9, "files"),
        "method.adapter": ("loha", "shapes"),
        "method.targets": ("attention+ff", "shapes"),
        "method.r": (2, "shapes"),
        "method.alpha": (16, "weights"),
    },
    "sla": DENOISE
    | {
        "method.topk": (0.6, "weights"),
        "method.skip": (0.3, "weights"),
        "method.scope": ("all", "weights"),
        "method.feature_map": ("elu", "weights"),
        "method.mix": (0.8, "weights"),
        "method.block_q": (32, "weights"),
        "method.block_k": (32, "weights"),
        "method.ramp": (3, "weights"),
        "method.ramp_from": (0.7, "weights"),
        "method.loss": ("denoise", "weights"),
        "method.projection_lr": (1.0, "weights"),
        "method.train": ("projections", "shapes"),
        "method.r": (2, "shapes"),
        "method.alpha": (64, "weights"),
    },
    "watermark": {
        "data.prompt": ("a blue ball", "invalid"),
        "method.key": ("0a1b2c", "invalid"),
        "method.owner": ("somebody", "invalid"),
        "method.registry": ("keys.sqlite", "invalid"),
        "method.key_file": ("keys.key", "invalid"),
        "method.bits_file": ("{other_mark}/key.txt", "weights"),
        "method.extractor": ("{other_mark}/extractor.safetensors", "weights"),
        "method.target": (r"decoder\.up_blocks\.1\.resnets\.0\.conv1", "shapes"),
        "method.r": (2, "shapes"),
        "method.alpha": (8.0, "weights"),
        "method.image_loss": ("watson", "weights"),
        "method.lpips": ("{lpips}", "invalid"),
        "method.gain": (5.0, "weights"),
        "method.focus": (0.0, "weights"),
        "method.weighting": ("fixed", "weights"),
        "method.image_weight": (0.2, "invalid"),
        "method.distort": (0.0, "weights"),
        "method.margin": (2, "weights"),
        "method.target_psnr": (60.0, "metrics"),
        "method.target_accuracy": (0.501, "metrics"),
        "method.target_distorted": (0.501, "metrics"),
        "method.patience": (1, "files"),
        "method.generated": (3, "weights"),
        "method.held_out": (3, "metrics"),
        "method.prompts": ("{other_mark}/prompts.txt", "weights"),
        "method.sampling_steps": (1, "weights"),
        "method.guidance": (1.0, "weights"),
    },
    "my3dgen": {
        "model": ("{other_heads}", "weights"),
        "data.prompt": ("a blue ball", "invalid"),
        "data.flip": (True, "invalid"),
        "watch.preview_prompts": (["a green ring"], "invalid"),
        "watch.preview_steps": (3, "invalid"),
        "method.cameras": ("{cameras}", "weights"),
        "method.refine": (False, "weights"),
        "method.space": ("w+", "shapes"),
        "method.anchor_steps": (3, "weights"),
        "method.anchor_lr": (0.01, "weights"),
        "method.together": (0.0, "weights"),
        "method.anchor_side": (8, "weights"),
        "method.patch": (8, "weights"),
        "method.r": (2, "shapes"),
        "method.alpha": (8.0, "weights"),
        "method.form": ("plain", "shapes"),
        "method.styles": (False, "shapes"),
        "method.extras": (False, "shapes"),
        "method.decoder": (False, "shapes"),
        "method.whole_rate": (1.0, "weights"),
        "method.full": (True, "shapes"),
        "method.symmetry": (0.5, "weights"),
        "method.symmetry_every": (1, "weights"),
        "method.symmetry_form": ("identity", "weights"),
        "method.symmetry_temperature": (1.0, "weights"),
        "method.identity": (0.5, "weights"),
        "method.identity_every": (1, "weights"),
        "method.arcface": ("{arcface}", "weights"),
        "method.lpips": ("{lpips}", "weights"),
    },
}
# What both runs of a comparison share, where the setting acts only then.
TOGETHER: dict[str, dict[str, Any]] = {
    "method.patience": {
        "method__target_psnr": 20.0,
        "method__target_accuracy": 0.501,
        "method__target_distorted": 0.501,
        "method__distort": 0.0,
    },
    "method.ramp_from": {"method__ramp": 3},
    "method.k": {"method__mode": "last-k"},
    "method.repeats": {"method__mode": "lv"},
    "method.early_stop": {"method__mode": "spaced"},
    "method.straight_through": {"method__reward": ["brightness"]},
    "method.min_diversity": {"method__reward": ["contrast:-1"]},
    "method.max_drop": {"method__reward": ["brightness:-1"], "method__monitor": "brightness"},
    "method.refine": {"method__cameras": "{cameras}"},
    "method.symmetry_every": {"method__symmetry": 0.5, "method__symmetry_form": "pixels"},
    "method.symmetry_form": {"method__symmetry": 0.5},
    "method.symmetry_temperature": {"method__symmetry": 0.5, "method__symmetry_form": "pixels"},
    "method.identity_every": {"method__identity": 0.5},
    "method.arcface": {"method__identity": 0.5},
}
# The same of adapters that learn by the denoising loss.
PRESERVED = {"method__prior_prompt": "a photo", "method__prior_count": 2, "method__prior_steps": 1}
TOGETHER_DENOISE: dict[str, dict[str, Any]] = {
    "method.prior_count": {"method__prior_prompt": "a photo", "method__prior_steps": 1},
    "method.prior_steps": {"method__prior_prompt": "a photo", "method__prior_count": 2},
    "method.prior_weight": PRESERVED,
    "method.compile": {"watch__preview_every": 0, "watch__evaluate_every": 0, "optim__steps": 1},
    "method.patience": {"data__validation": "{other_images}", "watch__evaluate_every": 1, "optim__lr": 1e-12},
    "method.init": {"method__transform_rank": 2},  # a ring of rank 1 has one start
}
# The settings all methods share are read by the Method class and the loop, so they are walked once for each class.
WALKED = {entry.method: name for name, entry in reversed(METHODS.items())}


def table(method: str) -> dict[str, tuple[Any, str]]:
    return COMMON | OWN[method]


def is_walked(method: str, name: str) -> bool:
    """Tell whether a setting is tried with this method; one that several share is tried with one of them."""
    if name in DENOISE and OWN[method].keys() >= DENOISE.keys():
        return method == "lora"  # the quickest of them to compile
    if method == "sla":  # which reads the shared settings by the code of the adapters
        return name.startswith("method.")
    return name.startswith("method.") or WALKED[METHODS[method].method] == method


def walks() -> list[tuple[str, str]]:
    return [
        (method, name) for method in METHODS for name in leaves(run_config_class(method)) if is_walked(method, name)
    ]


def test_every_setting_has_an_alternative_to_try() -> None:
    assert set(OWN) == set(METHODS)
    for method in METHODS:
        assert set(leaves(run_config_class(method))) == set(table(method)), method


def filled(value: Any, world: World) -> Any:
    """Return a value with the name of a folder of the world, in braces, put in."""
    return value.format_map(asdict(world)) if isinstance(value, str) and value.startswith("{") else value


@pytest.mark.parametrize("walk", walks(), ids=lambda walk: "-".join(walk))
def test_every_setting_changes_the_run_or_is_refused(
    walk: tuple[str, str], world: World, tmp_path: Path, references: dict[str, RunDir]
) -> None:
    method, name = walk
    value, effect = table(method)[name]
    value = filled(value, world)
    together = TOGETHER_DENOISE if issubclass(config_class(method), DenoiseSettings) else TOGETHER
    shared = {key: filled(v, world) for key, v in together.get(name, {}).items()}
    before = world.run(tmp_path / "before", method, **shared) if shared else references[method]
    change = {name.replace(".", "__"): value} | shared
    if effect == "invalid":
        with pytest.raises(ValidationError, match=name.rpartition(".")[2]):
            world.run(tmp_path / "run", method, **change)
        return
    if effect.startswith("refused") and not torch.cuda.is_available():
        with pytest.raises(BackendError, match=name):
            world.run(tmp_path / "run", method, **change)
        return
    run = world.run(tmp_path / "run", method, **change)
    settings, others = flat(run.read()["config"]), flat(before.read()["config"])
    assert {key for key in settings if settings[key] != others[key]} == {name}, "the record says what was different"
    seen, reference = observe(run), observe(before)
    kind = effect.removeprefix("refused or ")
    assert seen[kind] != reference[kind], f"{name} = {value!r} left the {kind} as they were"


@pytest.fixture(scope="session")
def references(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDir]:
    root = tmp_path_factory.mktemp("references")
    return {method: world.run(root / method, method) for method in METHODS}


def test_the_same_settings_give_the_same_run(references: dict[str, RunDir], world: World, tmp_path: Path) -> None:
    """Without this, every setting would seem to change something."""
    for method, reference in references.items():
        assert observe(world.run(tmp_path / method, method)) == observe(reference)


def full(world: World, method: str) -> Any:
    """Return settings that differ from the defaults wherever they can."""
    changes = {n.replace(".", "__"): value for n, (value, effect) in table(method).items() if effect != "invalid"}
    if method == "sla":  # these leave others without effect
        changes |= {"method__scope": "marginal", "method__train": "lora"}
    if method == "alignprop":
        changes = {n: v for n, v in changes.items() if n not in ("method__k", "method__early_stop", "method__guidance")}
        changes["method__mode"] = "lv"
    changes.pop("method__full", None)  # leaves the low-rank settings without effect, so it is refused beside them
    changes.pop("method__whole_rate", None)  # refused where neither extras nor decoder is trained
    if "method__symmetry_form" in changes:
        changes["method__symmetry_form"] = "pixels"  # the only one that reads the temperature
    if "data.validation" not in run_config_class(method).unread:
        changes["data__validation"] = str(world.other_images)
    changes["watch__preview_every"] = 2  # prompts of previews that are off would be refused
    changes["watch__evaluate_every"] = 3  # so would the patience of goals that are never measured
    return run_config_class(method).model_validate(world.settings(method, **changes))


def test_settings_survive_json_and_toml(method: str, world: World) -> None:
    kind = run_config_class(method)
    for config in (full(world, method), kind.model_validate(world.settings(method))):
        assert kind.model_validate_json(config.model_dump_json()) == config
        assert kind.model_validate(tomllib.loads(to_toml(config.model_dump(mode="json")))) == config


def test_a_record_is_a_configuration(method: str, reference: RunDir) -> None:
    kind = run_config_class(method)
    record = json.loads(reference.record_path.read_text())
    assert kind.model_validate(record["config"]).model_dump(mode="json") == record["config"]
    assert set(flat(record["config"])) == set(leaves(kind)), "the record is complete"


def test_every_setting_is_explained_in_the_schema(method: str) -> None:
    schema = run_config_class(method).model_json_schema()

    def check(node: dict[str, Any], where: str) -> None:
        for name, item in node.get("properties", {}).items():
            # A group of settings that says of itself what its field says is written once, in the definition.
            target = schema["$defs"].get(item.get("$ref", "").rpartition("/")[2], {})
            assert len(item.get("description", target.get("description", ""))) > 15, f"{where}{name} has no docstring"
            check(target, f"{where}{name}.")

    check(schema, "")


def test_unknown_names_wrong_types_and_bad_values_are_refused_by_name(method: str, world: World) -> None:
    cases = {
        "optim.lr": [-1, 0, "fast", float("nan"), float("inf")],
        "optim.steps": [0, 1.5],
        "optim.lrr": [1],
        "data.batch_size": [0],
        "method.no_such": [1],
        "method.r": [0],
        "nosuch": [1],
        "precision.dtype": ["fp8"],
        "watch.log_every": [0],
        "seed": [-1],
    }
    for name, values in cases.items():
        for value in values:
            with pytest.raises(ValidationError) as caught:
                run_config_class(method).model_validate(world.settings(method, **{name.replace(".", "__"): value}))
            assert f"flags: {name}: " in describe_errors(caught.value, "flags")


def test_settings_cannot_be_changed_afterwards(method: str, world: World) -> None:
    config = run_config_class(method).model_validate(world.settings(method))
    with pytest.raises(ValidationError):
        config.optim.lr = 1.0


def test_reading_settings_does_not_import_torch() -> None:
    code = (
        "import sys\n"
        "from trainers.registry import METHODS, run_config_class\n"
        "for name in METHODS: run_config_class(name).model_json_schema()\n"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'peft', 'accelerate') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
