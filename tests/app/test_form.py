"""The form is the configuration: every field once, both directions, every error at its field."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

import gradio as gr
import pytest
from pydantic import BaseModel, PositiveInt

from app.form import Form, FormError, form_fields
from app.jobs import Queue
from app.site import Site
from app.tabs.generate import GenerateTab
from app.tabs.train import TrainTab
from lrdiff.errors import ConfigError
from lrdiff.generate_config import GenerateConfig
from trainers.registry import METHODS, run_config_class


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(Queue(tmp_path / "runs"), tmp_path / "outputs", tmp_path / "subjects", tmp_path / "adapters")


def leaves(tree: dict[str, Any], prefix: str = "") -> set[str]:
    """Dotted paths of a dumped configuration: found without looking at annotations, unlike the form."""
    found: set[str] = set()
    for name, value in tree.items():
        found |= leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name}
    return found


def rendered(model: type[BaseModel], skip: tuple[str, ...] = ()) -> Form:
    with gr.Blocks():
        form = Form(model, skip=skip)
        for path in form.missing():
            form.add(path)
    return form


@pytest.mark.parametrize("method", list(METHODS))
def test_every_field_of_a_run_has_a_component_and_the_reverse(method: str) -> None:
    model = run_config_class(method)
    form = rendered(model)
    assert set(form.components) == leaves(model(method={}).model_dump())
    assert len({component._id for component in form.components.values()}) == len(form.components)


def test_the_train_page_holds_every_field_once(site: Site) -> None:
    with gr.Blocks() as page:
        tab = TrainTab(site)
    assert tab.form.missing() == []
    assert set(tab.form.components) | {"data.images"} == leaves(run_config_class("tensor-lora")(method={}).model_dump())
    labels = [block.label for block in page.blocks.values() if block in tab.form.components.values()]  # pyright: ignore
    assert all(labels)
    assert len(labels) == len(tab.form.components)


def test_the_generate_page_holds_every_field_once(site: Site) -> None:
    with gr.Blocks():
        tab = GenerateTab(site)
    assert tab.form.missing() == []
    assert set(tab.form.components) | {"out"} == leaves(GenerateConfig().model_dump())


def test_a_changed_configuration_comes_back_equal() -> None:
    form = rendered(run_config_class("tensor-lora"))
    config = run_config_class("tensor-lora").model_validate(
        {
            "model": "/models/mine",
            "seed": 7,
            "data": {"images": "/photos", "prompt": "a photo of sks cat", "validation": "/held out", "flip": True},
            "method": {"r": 3, "residual": "lora", "targets": "attention+ff", "alpha": 0.25},
            "optim": {"steps": 12, "lr": 3e-5, "schedule": "linear"},
            "watch": {"preview_prompts": ["a red cube", "sks on sand, sunny"], "checkpoint_every": 0},
        }
    )
    assert form.read(form.write(config)) == config


def test_the_components_start_with_the_defaults() -> None:
    model = run_config_class("tensor-lora")
    form = rendered(model)
    shown = {component: component.value for component in form.components.values()}  # pyright: ignore
    assert form.read(shown) == model(method={})


def test_a_generation_comes_back_equal() -> None:
    form = rendered(GenerateConfig)
    config = GenerateConfig(prompt=("a", "b"), adapter=("x.safetensors:0.5",), scale=(0.0, 1.0), out=Path("o"), seed=9)
    assert form.read(form.write(config)) == config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("optim.lr", -1, "Must be greater than 0"),
        ("optim.lr", None, "Give a number"),
        ("optim.steps", 2.5, "Must be a whole number"),
        ("optim.steps", 0, "Must be greater than 0"),
        ("optim.beta1", 1.5, "Must be less than or equal to 0.9999"),
        ("data.prompt", "  ", "Must not be empty"),
        ("data.batch_size", None, "Give a number"),
        ("method.residual", "wood", "Must be 'ring', 'lora' or 'none'"),
        ("method.r", -3, "Must be greater than 0"),
        ("seed", -1, "Must be greater than or equal to 0"),
    ],
)
def test_a_bad_value_is_named_at_its_field(path: str, value: Any, message: str) -> None:
    form = rendered(run_config_class("tensor-lora"))
    values = form.write(run_config_class("tensor-lora")(method={}))
    with pytest.raises(FormError) as caught:
        form.read(values | {form.components[path]: value})
    assert caught.value.problems == {path: message}


def test_all_bad_values_are_named_at_once() -> None:
    form = rendered(run_config_class("tensor-lora"))
    values = form.write(run_config_class("tensor-lora")(method={}))
    bad = {form.components["optim.lr"]: -1, form.components["optim.steps"]: None, form.components["seed"]: 0.5}
    with pytest.raises(FormError) as caught:
        form.read(values | bad)
    assert set(caught.value.problems) == {"optim.lr", "optim.steps", "seed"}


def test_a_list_of_numbers_names_the_word_that_is_none() -> None:
    form = rendered(GenerateConfig)
    values = form.write(GenerateConfig())
    with pytest.raises(FormError) as caught:
        form.read(values | {form.components["scale"]: "0, half, 1"})
    assert caught.value.problems == {"scale": "'half' is no number"}


def test_a_problem_of_two_fields_together_has_the_empty_path() -> None:
    form = rendered(GenerateConfig)
    values = form.write(GenerateConfig())
    with pytest.raises(FormError) as caught:
        form.read(values | {form.components["negative_prompt"]: "fog", form.components["guidance"]: 1})
    assert list(caught.value.problems) == [""]
    assert "negative_prompt has no effect" in caught.value.problems[""]


def test_the_validator_answers_in_the_order_of_the_inputs() -> None:
    form = rendered(run_config_class("tensor-lora"))
    values = form.write(run_config_class("tensor-lora")(method={}))
    answers = form.validator(lambda _: {"optim.lr": "no"})(values)
    ordered = sorted(values, key=lambda component: component._id)
    marked = [component for component, answer in zip(ordered, answers, strict=True) if not answer["is_valid"]]
    assert marked == [form.components["optim.lr"]]


def test_a_field_takes_one_component_only() -> None:
    with gr.Blocks():
        form = Form(run_config_class("tensor-lora"))
        form.add("seed")
        with pytest.raises(ConfigError, match="has its component already"):
            form.add("seed")
        with pytest.raises(ConfigError, match=r"has no field optim\.speed"):
            form.add("optim.speed")


def test_choices_that_are_numbers_stay_numbers() -> None:
    class Sized(BaseModel):
        side: Literal[64, 128] = 128

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        form = rendered(Sized)
    [component] = form.components.values()
    chosen = component.preprocess(64)  # pyright: ignore[reportAttributeAccessIssue]
    assert form.read({component: chosen}) == Sized(side=64)


def test_a_type_without_a_component_is_refused() -> None:
    class Odd(BaseModel):
        size: PositiveInt = 1
        mode: Literal["a", "b"] = "a"
        table: dict[str, int] = {}

    with pytest.raises(ConfigError, match="table: the form has no component"):
        form_fields(Odd)
