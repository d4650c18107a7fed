"""Settings from files and flags: precedence, round trips, and every kind of bad file."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from app.commands.settings import build, lay_over, read_file, to_toml
from lrdiff.errors import ConfigError
from lrdiff.generate_config import GenerateConfig
from trainers.config import DataConfig, OptimConfig, PrecisionConfig
from trainers.registry import METHODS, config_class, run_config_class


@pytest.mark.parametrize("method", METHODS)
def test_toml_config_json_config_is_the_identity(method: str, tmp_path: Path) -> None:
    model = run_config_class(method)
    prompts = {"prompt": 'a "photo"\n\t\\ of sks \x7f'}
    mark = method == "watermark"
    has_targets = "targets" in config_class(method).model_fields
    data: dict[str, Any] = {"images": tmp_path / "ä b", "flip": True} | ({} if mark else prompts)
    shown = {} if "watch.preview_prompts" in model.unread else {"preview_prompts": ("one, two", "three")}
    config = model(
        model="./a model" if not mark else './a "model"\n\t\\ \x7f',
        data=model.model_fields["data"].annotation(
            **{name: value for name, value in data.items() if f"data.{name}" not in model.unread}
        ),
        method=config_class(method)(**({"targets": "attention+ff"} if has_targets else {"r": 2})),
        optim=model.model_fields["optim"].annotation(lr=3e-5, steps=7, beta2=0.9999),
        precision=PrecisionConfig(device="cpu"),
        watch=model.model_fields["watch"].annotation(**shown),
        seed=11,
    )
    (tmp_path / "a.toml").write_text(to_toml(config), encoding="utf-8")
    from_toml = build(model, {}, read_file(tmp_path / "a.toml"), "a.toml")
    (tmp_path / "a.json").write_text(json.dumps(from_toml.model_dump(mode="json")))
    from_json = build(model, {}, read_file(tmp_path / "a.json"), "a.json")
    assert config == from_toml == from_json
    assert type(from_json.data.images) is type(config.data.images)


def test_toml_holds_every_setting_and_its_meaning() -> None:
    text = to_toml(GenerateConfig())
    assert set(tomllib.loads(text)) == set(GenerateConfig.model_fields) - {"decoder"}, "TOML has no none"
    assert "\n# decoder =\n" in text
    assert "# Sampling steps: evaluations of the network per image.\nsteps = 20\n" in text


def test_none_is_left_out_of_toml_as_a_comment() -> None:
    text = to_toml(DataConfig())
    assert "# validation =\n" in text
    assert "validation" not in tomllib.loads(text)


def test_flags_over_file_over_defaults() -> None:
    model = run_config_class("lora")
    file = {"method": {"r": 8}, "optim": {"lr": 0.5, "steps": 9}, "data": {"flip": True}}
    config = build(model, {"optim": {"lr": 0.25}, "data": {"flip": False}}, file, "a.toml")
    assert (config.optim.lr, config.optim.steps, config.optim.warmup) == (0.25, 9, OptimConfig().warmup)
    assert (config.method.r, config.data.flip) == (8, False)


def test_a_list_is_one_value() -> None:
    assert lay_over({"a": [1, 2], "b": {"c": 1, "d": 2}}, {"a": [3], "b": {"d": 4}}) == {
        "a": [3],
        "b": {"c": 1, "d": 4},
    }


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ({"optim": {"lrr": 0.1}}, "a.toml: optim.lrr: There is no such setting (got 0.1)"),
        ({"optim": {"lr": -1}}, "a.toml: optim.lr: Must be greater than 0 (got -1)"),
        ({"optim": {"steps": "many"}}, "a.toml: optim.steps: Must be a whole number"),
        ({"optim": {"lr": float("nan")}}, "a.toml: optim.lr: Must be a finite number (got nan)"),
        ({"optim": 3}, "a.toml: optim: Must be a table of settings"),
        ({"method": {"r": 0}}, "a.toml: method.r: Must be greater than 0 (got 0)"),
        ({"data": {"prompt": ""}}, "a.toml: data.prompt: "),
        ({"precision": {"device": "tpu"}}, "a.toml: precision.device: Must be 'auto', 'cpu' or 'cuda'"),
        ({"steps": 3}, "a.toml: steps: There is no such setting (got 3)"),
    ],
    ids=str,
)
def test_each_problem_of_a_file_is_one_line_with_its_path(file: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(run_config_class("lora"), {}, {"method": {}} | file, "a.toml")
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_all_problems_come_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        build(run_config_class("lora"), {"method": {}, "optim": {"lr": -1, "steps": "x", "foo": 1}})
    paths = [line.split(": ")[:2] for line in str(error.value).splitlines()]
    assert paths == [["flags", "optim.steps"], ["flags", "optim.lr"], ["flags", "optim.foo"]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.toml", b"lr = = 3", "is not valid TOML: "),
        ("a.toml", b"\xff\xfe", "is not valid TOML: "),
        ("a.json", b"{", "is not valid JSON: "),
        ("a.json", b"[1, 2]", "holds no table of settings"),
        ("a.yaml", b"lr: 3", "is neither a .toml nor a .json file"),
        ("a.toml", None, "cannot be read (No such file or directory)"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read_file(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_a_run_directory_stands_for_its_record(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"method": "lora", "config": {"seed": 3}}')
    assert read_file(tmp_path) == {"method": "lora", "config": {"seed": 3}}
