"""A generation under way: progress, cancel, waiting for the device, errors, and settings taken back from its file."""

from __future__ import annotations

import time
from pathlib import Path

import gradio as gr
import pytest

from app import text
from app.drawing import Drawing, Pace, bar
from app.jobs import Queue
from app.site import Site
from app.tabs.generate import GenerateTab
from lrdiff.errors import DataError
from lrdiff.generate_config import GenerateConfig
from tests.app.conftest import wait_for


@pytest.fixture
def site(tmp_path: Path) -> Site:
    root = tmp_path / "runs"
    root.mkdir()
    return Site(Queue(root), tmp_path / "outputs", tmp_path / "none", tmp_path / "none")


@pytest.fixture
def config(site: Site, tiny_model: Path) -> GenerateConfig:
    return GenerateConfig(
        model=str(tiny_model), prompt=("a red cube",), out=site.outputs, steps=3, count=2, batch_size=1, device="cpu"
    )


def test_a_generation_reports_and_ends_with_its_files(site: Site, config: GenerateConfig) -> None:
    drawing = Drawing([config], site.queue.device)
    drawing.start()
    wait_for(lambda: drawing.status.is_over)
    assert drawing.status.error == ""
    assert list(drawing.status.saved) == sorted(site.outputs.glob("*.png"))
    assert drawing.status.message.startswith("2 images in")
    assert site.queue.device.holder() is None


def test_a_cancelled_generation_keeps_what_was_written(site: Site, config: GenerateConfig) -> None:
    drawing = Drawing([config.model_copy(update={"count": 500})], site.queue.device)
    drawing.start()
    wait_for(lambda: drawing.status.saved)
    drawing.cancel()
    wait_for(lambda: drawing.status.is_over)
    written = sorted(site.outputs.glob("*.png"))
    assert 1 <= len(written) < 500
    assert list(drawing.status.saved) == written
    assert drawing.status.message.startswith("Cancelled after")


def test_a_generation_waits_for_the_device_and_says_for_whom(site: Site, config: GenerateConfig) -> None:
    lock = site.queue.device.acquire("tensor-lora-mug-001")
    assert lock is not None
    drawing = Drawing([config], site.queue.device)
    drawing.start()
    wait_for(lambda: "tensor-lora-mug-001" in drawing.status.message)
    drawing.cancel()
    wait_for(lambda: drawing.status.is_over)
    assert drawing.status.message == "Cancelled after no images."
    shared = Drawing([config], site.queue.device, wait=False)
    shared.start()
    wait_for(lambda: shared.status.is_over)
    assert len(shared.status.saved) == 2


def test_a_pace_counts_neither_the_first_step_nor_what_is_shown_in_between() -> None:
    pace = Pace()
    for step in (1, 2, 3):
        time.sleep(1.0 if step == 1 else 0.02)
        pace.arrive(step)
        time.sleep(0.5)
        pace.leave()
    assert pace.steps == 2
    assert 0.02 <= pace.per_step < 0.4


def test_every_generation_is_timed(site: Site, config: GenerateConfig) -> None:
    drawing = Drawing([config, config.model_copy(update={"steps": 5})], site.queue.device)
    states = list(drawing.follow(0.05))
    assert states[-1].is_over
    assert [pace.steps for pace in drawing.paces] == [4, 8]
    assert all(pace.per_step > 0 for pace in drawing.paces)


def test_an_error_is_shown_in_words_and_escaped(site: Site, config: GenerateConfig) -> None:
    drawing = Drawing([config.model_copy(update={"model": "<b>absent"})], site.queue.device)
    drawing.start()
    wait_for(lambda: drawing.status.is_over)
    assert "no such folder and no such shipped model" in drawing.status.error
    shown = bar(drawing.status)
    assert text.NOT_GENERATED in shown
    assert "<b>absent" not in shown


def test_the_settings_inside_a_png_fill_the_form(site: Site, config: GenerateConfig) -> None:
    drawing = Drawing([config.model_copy(update={"seed": 11, "count": 1, "guidance": 2.5})], site.queue.device)
    drawing.start()
    wait_for(lambda: drawing.status.is_over)
    [file] = drawing.status.saved
    with gr.Blocks():
        tab = GenerateTab(site)
    shown = tab._reuse(str(file))
    values = dict(zip(tab.form.components, shown, strict=False))
    weight = shown[[*tab.form.components.values(), *tab.picker.rest].index(tab.picker.weights[0])]
    assert (values["prompt"], values["seed"], values["guidance"], values["steps"]) == ("a red cube", 11, 2.5, 3)
    assert (values["model"], values["adapter"]["value"], weight) == (config.model, "", 1.0)


def test_a_file_without_settings_is_refused_in_words(site: Site, photos: list[Path]) -> None:
    with gr.Blocks():
        tab = GenerateTab(site)
    with pytest.raises(DataError, match=r"^three\.png: carries no parameters"):
        tab._reuse(str(photos[2]))
