"""The Attention page draws maps, hands its blocks to a fine-tune, and compares pictures and times."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from app import main, text, text_attention
from app.form import FormError
from app.jobs import Queue
from app.site import Site
from app.tabs.attention import AttentionTab
from app.tabs.train import TrainTab
from lrdiff import backbones
from lrdiff.artifact import Artifact, Header
from lrdiff.metadata import read_parameters
from lrdiff.sla import saved
from lrdiff.sla.models import processors, put_in
from lrdiff.sla.settings import SlaSettings
from tests.app.conftest import wait_for
from tests.app.test_browser import CHROMIUM, FLAGS
from tests.lrdiff.backbones.families import build_pixart

RESULTS = Path(__file__).parents[1] / "bench" / "results" / "sla_attention_cpu.json"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny transformer whose layers have 64 tokens."""
    return build_pixart(tmp_path_factory.mktemp("pixart") / "dit")


@pytest.fixture
def site(tmp_path: Path, model: Path) -> Site:
    """Return a site with a fine-tune of the model among the installed adapters."""
    backbone = backbones.load(model)
    settings = SlaSettings(topk=0.25, block_q=16, block_k=16)
    layers = put_in(backbone.denoiser, settings)
    for _, processor in processors(backbone.denoiser):
        processor.proj.weight.data.fill_(0.5)
    header = Header("sla", saved.ADAPTER, saved.config(settings, layers), "dit", backbone.fingerprint, "transformer")
    (tmp_path / "adapters").mkdir()
    Artifact(saved.tensors(backbone.denoiser), header).save(tmp_path / "adapters" / "sparse.safetensors")
    root = tmp_path / "runs"
    root.mkdir()
    return Site(Queue(root), tmp_path / "outputs", tmp_path / "none", adapters=tmp_path / "adapters")


@pytest.fixture
def tabs(site: Site) -> tuple[TrainTab, AttentionTab]:
    with gr.Blocks():
        train = TrainTab(site)
        return train, AttentionTab(site, train.settings)


def values_of(tab: Any, **changes: Any) -> dict[Any, Any]:
    """Return what the components of the page hold, with changes by path of the setting."""
    values = {part: part.value for part in tab.inputs}
    return values | {tab.form.components[path]: value for path, value in changes.items()}


def drawn(tab: AttentionTab, model: Path, **changes: Any) -> list[Any]:
    return list(tab.draw_map(values_of(tab, model=str(model), steps=2, device="cpu", **changes)))[-1]


def test_a_map_shows_every_head_with_its_shares(tabs: tuple[TrainTab, AttentionTab], model: Path) -> None:
    shown, layers, known = drawn(tabs[1], model)
    assert shown.count("<figure>") == shown.count("alt='Block map of head") == 6
    for words in ("critical 25.0%", "marginal 50.0%", "negligible 25.0%", "64 tokens in 4 by 4 blocks"):
        assert words in shown
    assert [name for _, name in layers["choices"]] == ["", *known["tokens"]]
    assert set(known["tokens"].values()) == {64}
    second = list(known["tokens"])[1]
    assert second in drawn(tabs[1], model, layer=second)[0]


def test_what_is_wrong_with_a_map_is_told(tabs: tuple[TrainTab, AttentionTab], model: Path) -> None:
    shown, *rest = drawn(tabs[1], model, layer="<i>none")
    assert text_attention.NOT_DRAWN in shown
    assert "no attention layer &lt;i&gt;none" in shown
    assert all(update == gr.skip() for update in rest)
    assert "Nothing is sparse in this layer" in drawn(tabs[1], model, block_k=64)[0]
    problems = tabs[1].check(values_of(tabs[1], size=9000, topk=2.0))
    assert set(problems) == {"topk"}
    assert set(tabs[1].check(values_of(tabs[1], size=9000))) == {"size"}


def test_a_map_waits_for_the_device(tabs: tuple[TrainTab, AttentionTab], model: Path) -> None:
    lock = tabs[1].site.queue.device.acquire("sla-mug-001")
    assert lock is not None
    seen: list[list[Any]] = []
    values = values_of(tabs[1], model=str(model), steps=2, device="cpu")
    thread = threading.Thread(target=lambda: seen.extend(tabs[1].draw_map(values)))
    thread.start()
    wait_for(lambda: seen)
    assert "sla-mug-001" in seen[0][0]
    lock.close()
    thread.join(60)
    assert "<figure>" in seen[-1][0]


def test_a_fine_tune_takes_blocks_from_here_and_pictures_from_the_train_page(
    tabs: tuple[TrainTab, AttentionTab], model: Path, photos: list[Path]
) -> None:
    train, attention = tabs
    values = values_of(attention, model=str(model), scope="all", skip=0.1)
    values |= {part: part.value for part in train.inputs}
    values |= {train.pictures.files: [str(path) for path in photos], train.pictures.captions: []}
    values |= {attention.known: None}
    with pytest.raises(FormError, match=r"Draw the map of .* first"):
        attention.check_training(values)
    values[attention.known] = drawn(attention, model)[2]
    with pytest.raises(FormError, match=r"Nothing would be sparse: .* at most 64 tokens"):
        attention.check_training({**values, attention.component("block_k"): 64})
    attention.check_training(values)
    record = train.submit({**values, **attention.handed(values)}).read()
    own = record["config"]["method"]
    assert (record["method"], record["state"], record["config"]["model"]) == ("sla", "queued", str(model))
    assert [own[name] for name in ("topk", "skip", "scope", "block_q", "block_k")] == [0.25, 0.1, "all", 16, 16]
    assert len(list(Path(record["config"]["data"]["images"]).iterdir())) == 3


def test_both_pictures_come_with_their_times(tabs: tuple[TrainTab, AttentionTab], model: Path) -> None:
    tab = tabs[1]
    fitting = tab.offer(str(model), "")
    assert [name for name, _ in fitting["choices"]] == ["sparse"]
    assert tab.offer("nowhere", fitting["value"])["value"] == ""
    values = values_of(tab, model=str(model), steps=4, device="cpu", seed=5)
    values[tab.adapter] = fitting["value"]
    request = gr.Request(session_hash="visitor")
    *_, (said, both, files, place) = tab.draw_both(values, request)
    assert "Full attention" in said
    assert "s per image" in said
    assert (both["visible"], place) == (True, 50)
    full, sparse = map(Path, files)
    assert full.parent == tab.site.outputs
    records = [read_parameters(path) for path in (full, sparse)]
    assert [[item["method"] for item in record["adapters"]] for record in records] == [[], ["sla"]]
    assert {(record["prompt"], record["seed"]) for record in records} == {("a photo of a red cube", 5)}
    assert Image.open(full).tobytes() != Image.open(sparse).tobytes()


def test_without_a_fine_tune_or_a_second_step_nothing_is_compared(
    tabs: tuple[TrainTab, AttentionTab], model: Path
) -> None:
    tab, request = tabs[1], gr.Request(session_hash="visitor")
    [[said, *_]] = tab.draw_both(values_of(tab, model=str(model)), request)
    assert text_attention.CHOOSE in said
    chosen: dict[Any, Any] = {tab.adapter: tab.offer(str(model), "")["value"]}
    [[said, *_]] = tab.draw_both(values_of(tab, model=str(model), steps=1) | chosen, request)
    assert text_attention.TWO_STEPS in said


def test_where_it_overtakes_is_what_was_measured() -> None:
    rows = json.loads(RESULTS.read_text())["rows"]
    faster = {int(str(row[0]).replace(",", "")): float(row[3]) > 1 for row in rows}
    low, high = text_attention.CROSSOVER
    assert not any(better for tokens, better in faster.items() if tokens <= low)
    assert all(better for tokens, better in faster.items() if tokens >= high)
    assert {low, high} <= faster.keys()


def test_the_train_page_points_here() -> None:
    assert text.TAB_ATTENTION in text.METHOD_HINTS["sla"]


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
def test_the_path_in_a_browser(
    site: Site, model: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Map, comparison with the line moved by keys, and a fine-tune that is refused first and then queued."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    served = main.build(site=site)
    url = main.launch(served, site, "127.0.0.1", 0)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = browser.new_page(viewport={"width": 360, "height": 740})
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        page.goto(url)
        page.locator("#files input[type=file]").set_input_files(photos)
        expect(page.locator(".count")).to_have_text("3 pictures ready")
        page.get_by_role("tab", name=text.TAB_ATTENTION, exact=True).click()
        field = page.locator("#map-model input")
        field.fill(str(model))
        field.press("Enter")
        expect(page.locator("#sla-adapter input")).to_have_value("sparse")
        page.locator("#start-sla").click()
        expect(page.locator("#sla-problems")).to_contain_text("Draw the map of")
        page.locator("#draw-map").click()
        expect(page.locator("#map .heads img")).to_have_count(6)
        assert page.evaluate("document.documentElement.scrollWidth") == 360

        page.locator("#compare-sla").click()
        expect(page.locator("#sla-status")).to_contain_text("s per image")
        line = "document.querySelectorAll('#sla-slider img')[1].style.clipPath"
        page.wait_for_function(f"{line} === 'inset(0px 0px 0px 50%)'")
        page.get_by_role("slider", name=text_attention.DIVIDE).focus()
        for key, place in (("ArrowRight", 51), ("End", 100), ("Home", 0)):
            page.keyboard.press(key)
            page.wait_for_function(f"{line} === 'inset(0px 0px 0px {place}%)'")

        page.locator("#start-sla").click()
        expect(page.locator(".run .badge")).to_have_text(text.STATES["queued"])
        browser.close()
    served.close(verbose=False)
    [(_, record)] = site.queue.runs()
    assert (record["method"], record["config"]["model"]) == ("sla", str(model))
