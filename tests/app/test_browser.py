"""The first path in a real Chromium: drop pictures, train, watch, generate, download the file as it was written."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from app import main, text, text_auth
from app.accounts import add_user, open_accounts
from app.jobs import Queue
from app.site import Site
from app.verifying import registry
from lrdiff.assets import MODELS
from lrdiff.images import to_image
from lrdiff.metadata import read_parameters
from tests.app.test_verify_page import BITS, marked
from tests.lrdiff.watermark.conftest import build_extractor
from trainers.rundir import create, process_identity

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking")
SLOW = 240_000
"""Milliseconds after which a training or a generation of the tiny model is taken for stuck."""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium"),
]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    return Site(
        Queue(tmp_path / "runs", interval=0.1),
        tmp_path / "outputs",
        subjects=tmp_path / "none",
        adapters=tmp_path / "none",
        decoders=tmp_path / "decoders",
        extractor=tmp_path / "extractor",
        registry=str(tmp_path / "keys.sqlite"),
        key_file=tmp_path / "keys.key",
    )


@pytest.fixture
def url(site: Site) -> Iterator[str]:
    page = main.build(site=site)
    yield main.launch(page, site, "127.0.0.1", 0)
    site.queue.close()
    page.close(verbose=False)


@pytest.fixture
def browser_page(url: str) -> Iterator[Page]:
    """Return the opened page; a request to anywhere else fails the test."""
    outside: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        page.on("request", lambda request: outside.append(request.url) if not request.url.startswith(local) else None)
        local = (url, "data:", "blob:")
        page.goto(url)
        page.wait_for_selector("#start")
        yield page
        browser.close()
    assert outside == []


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def choose_model(page: Page, model: Path) -> None:
    field = page.locator("#model input")
    field.fill(str(model))
    field.press("Enter")


def test_the_first_path(browser_page: Page, site: Site, photos: list[Path], tiny_model: Path) -> None:
    page = browser_page
    broken = photos[0].with_name("broken.png")
    broken.write_bytes(b"no picture")
    page.locator("#files input[type=file]").set_input_files([*photos, broken])
    expect(page.locator(".count")).to_have_text("3 pictures ready, 1 cannot be used")
    expect(page.locator(".thumbs .bad")).to_contain_text("broken.png")

    # Nothing starts while something is wrong, and each problem is named where it is.
    choose_model(page, tiny_model)
    page.get_by_label("Steps", exact=True).first.fill("0")
    page.locator("#start").click()
    expect(page.locator(".problems")).to_contain_text("Remove or replace these files first: broken.png")
    expect(page.locator(".problems")).to_contain_text("Steps: Must be greater than 0")
    assert site.queue.runs() == []

    page.locator("#files").get_by_label("Clear").first.click()
    page.locator("#files input[type=file]").set_input_files(photos)
    expect(page.locator(".count")).to_have_text("3 pictures ready")
    page.get_by_label("Steps", exact=True).first.fill("3")
    page.locator("#start").click()

    badge = page.locator(".run .badge")
    expect(badge).to_have_text(text.STATES["queued"])
    site.queue.start()
    expect(badge).to_have_text(re.compile(f"{text.STATES['running']}|{text.STATES['finished']}"), timeout=SLOW)
    page.reload()
    tab(page, text.TAB_RUNS)
    expect(badge).to_have_text(text.STATES["finished"], timeout=SLOW)
    expect(page.locator(".run .steps")).to_have_text("step 3 of 3")
    expect(page.locator("#previews .strip img").first).to_be_visible()
    plot = page.locator("#chart canvas, #chart svg.marks").first
    plot.wait_for()
    assert (plot.bounding_box() or {"height": 0})["height"] > 150
    run, record = site.queue.runs()[0]
    assert record["state"] == "finished"
    assert {path.read_bytes() for path in (run.path / "images").iterdir()} == {path.read_bytes() for path in photos}

    with page.expect_popup() as opened:
        page.locator("#report").click()
    expect(opened.value.locator("h1")).to_contain_text("finished")
    opened.value.close()

    page.locator("#use").click()
    expect(page.locator("#adapter input")).to_have_value(run.path.name)
    page.get_by_label("Steps", exact=True).last.fill("2")
    page.locator("#generate").click()
    image = page.locator("#results img").first
    image.wait_for(timeout=SLOW)
    expect(page.locator("#status")).to_contain_text("1 image in")
    [written] = site.outputs.glob("*.png")
    shown = page.request.get(str(image.get_attribute("src"))).body()
    assert shown == written.read_bytes()
    parameters = read_parameters(shown)
    assert parameters["prompt"] == "a photo of sks"
    assert parameters["adapters"][0]["sha256"] == record["artifact"]["sha256"]

    # Its settings and pictures come back to the Train page.
    tab(page, text.TAB_RUNS)
    page.locator("#repeat").click()
    expect(page.locator(".count")).to_have_text("3 pictures ready")
    expect(page.get_by_label("Steps", exact=True).first).to_have_value("3")


def test_an_image_is_downloaded_and_verified(browser_page: Page, site: Site, tmp_path: Path, tiny_model: Path) -> None:
    """One button takes the image that was just made to its verdict; a downloaded file comes to the same."""
    page, verdict = browser_page, browser_page.locator("#verdict")
    tab(page, text.TAB_VERIFY)
    expect(page.locator("#absent")).to_contain_text("Nothing can be read here yet")
    expect(page.locator("#verify")).to_be_disabled()
    network = build_extractor()
    site.extractor.mkdir()
    network.save(site.extractor / "model.safetensors")
    registry(site, create=True).create(owner="studio", extractor_sha256=network.sha256(), bits=BITS, length=24)

    tab(page, text.TAB_GENERATE)
    for label, value in (("Base model", str(tiny_model)), ("Steps", "2")):
        field = page.get_by_label(label, exact=True).last
        field.fill(value)
        field.press("Enter")
    page.locator("#generate").click()
    image = page.locator("#results img").first
    image.wait_for(timeout=SLOW)
    page.locator("#verify-it").click()
    expect(verdict).to_contain_text("This mark was not found", timeout=SLOW)
    [written] = site.outputs.glob("*.png")
    digest = hashlib.sha256(written.read_bytes()).hexdigest()
    assert digest in (verdict.text_content() or "")

    downloaded = tmp_path / "downloaded.png"
    downloaded.write_bytes(page.request.get(str(image.get_attribute("src"))).body())
    carrier = tmp_path / "marked.png"
    to_image(marked(network, BITS)).save(carrier)
    for file, answer in ((carrier, "Detected"), (downloaded, "Not detected")):
        page.locator("#suspect").get_by_label("Clear").first.click()
        page.locator("#suspect input[type=file]").set_input_files(file)
        expect(page.locator("#suspect")).to_contain_text(file.stem)
        page.locator("#verify").click()
        expect(verdict.locator(".badge")).to_have_text(answer, timeout=SLOW)
    assert digest in (verdict.text_content() or "")


def test_the_example_mark_goes_around(browser_page: Page, site: Site, tmp_path: Path) -> None:
    """With the shipped extractor: drawn with the mark, downloaded, uploaded, detected; without it, not detected."""
    page, verdict = browser_page, browser_page.locator("#verdict")
    site.extractor.symlink_to(MODELS / "extractor")
    tab(page, text.TAB_VERIFY)
    page.locator("#example-mark").click()
    expect(page.locator("#mark input")).to_have_value(re.compile(r"^On: key \w+ \(toys\)$"))
    page.locator("#generate-prompt textarea").fill("a red ball on grass")
    steps = page.get_by_label("Steps", exact=True).last
    steps.fill("8")
    steps.press("Enter")
    page.locator("#generate").click()
    image = page.locator("#results img").first
    image.wait_for(timeout=SLOW)
    downloaded = tmp_path / "downloaded.png"
    first = str(image.get_attribute("src"))
    downloaded.write_bytes(page.request.get(first).body())
    assert [file.read_bytes() for file in site.outputs.glob("*.png")] == [downloaded.read_bytes()]

    tab(page, text.TAB_VERIFY)
    expect(page.locator("#example-mark")).to_be_hidden()
    page.locator("#suspect input[type=file]").set_input_files(downloaded)
    expect(page.locator("#suspect")).to_contain_text("downloaded")
    page.locator("#verify").click()
    expect(verdict.locator(".badge")).to_have_text("Detected", timeout=SLOW)
    expect(verdict).to_contain_text("everybody knows this key")

    tab(page, text.TAB_GENERATE)
    page.locator("#mark input").click()
    page.get_by_role("option", name=text.MARK_OFF, exact=True).click()
    page.locator("#generate").click()
    expect(page.locator("#results img").first).not_to_have_attribute("src", first, timeout=SLOW)
    page.locator("#verify-it").click()
    expect(verdict.locator(".badge")).to_have_text("Not detected", timeout=SLOW)


def test_a_run_is_stopped_resumed_and_deleted(
    browser_page: Page, site: Site, photos: list[Path], settings: Callable[..., dict[str, Any]]
) -> None:
    page, badge = browser_page, browser_page.locator(".run .badge")
    run = site.queue.submit("tensor-lora", settings(4000), {path.name: path for path in photos}, "mug")
    site.queue.start()
    tab(page, text.TAB_RUNS)
    expect(badge).to_have_text(text.STATES["running"], timeout=SLOW)
    page.locator("#stop").click()
    expect(badge).to_have_text(text.STATES["stopped"], timeout=SLOW)
    page.locator("#resume").click()
    expect(badge).to_have_text(text.STATES["running"], timeout=SLOW)
    page.reload()
    tab(page, text.TAB_RUNS)
    page.locator("#stop").click()
    expect(badge).to_have_text(text.STATES["stopped"], timeout=SLOW)
    page.locator("#delete").click()
    expect(page.locator("#confirm").first).to_contain_text(f"Move {run.path.name} to the trash?")
    page.locator("#delete-yes").click()
    expect(page.locator(".run.empty")).to_be_visible()
    assert [item.name for item in site.queue.trash()] == [run.path.name]
    page.locator("#trash .label-wrap").click()
    expect(page.locator("#trashed input")).to_have_value(re.compile(f"^{run.path.name} · "))
    page.get_by_role("button", name=text.RESTORE).click()
    expect(badge).to_have_text(text.STATES["stopped"], timeout=SLOW)
    assert site.queue.trash() == []


def test_charts_of_a_run_under_way_get_every_line(
    browser_page: Page, site: Site, settings: Callable[..., dict[str, Any]]
) -> None:
    page, lines = browser_page, browser_page.locator("#chart .mark-line path")
    run = create(site.queue.root / "mug", "tensor-lora", settings(100))
    run.update(state="running", process=process_identity())
    run.append_metrics({"step": 0, "loss_fixed": 0.5, "loss_validation": 0.6})
    tab(page, text.TAB_RUNS)
    expect(page.locator(".run .badge")).to_have_text(text.STATES["running"])
    for step in (10, 20, 30):
        run.append_metrics({"step": step, "loss": 0.7 - step / 300, "grad_norm": 0.1, "reward": step / 10})
    run.append_metrics({"step": 30, "loss_fixed": 0.4, "loss_validation": 0.55})
    expect(lines).to_have_count(3)
    for name in text.SERIES.values():
        expect(page.locator("#chart")).to_contain_text(name)
    other = page.locator("#metrics .mark-line path")
    expect(other).to_have_count(1)
    before = other.get_attribute("d")
    page.locator("#metric input").click()
    page.get_by_role("option", name="reward").click()
    expect(other).not_to_have_attribute("d", str(before))
    expect(other).to_have_attribute("d", re.compile("L"))


def test_a_visitor_logs_in_and_out(site: Site, tmp_path: Path) -> None:
    add_user(tmp_path / "users.json", "anna", "correct horse battery")
    page = main.build(site=site, has_users=True)
    url = main.launch(page, site, "127.0.0.1", 0, open_accounts(tmp_path / "users.json", None))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        view = browser.new_page()
        view.set_default_timeout(60_000)
        view.goto(url)
        view.get_by_label("Name").fill("anna")
        view.get_by_label("Password").fill("wrong")
        view.keyboard.press("Enter")
        assert "do not fit" in view.get_by_role("alert").inner_text()
        view.get_by_label("Password").fill("correct horse battery")
        view.keyboard.press("Enter")
        view.wait_for_selector("#start")
        view.get_by_role("button", name=text_auth.LOG_OUT).click()
        expect(view.get_by_label("Password")).to_be_visible()
        view.goto(url)
        expect(view.get_by_label("Password")).to_be_visible()
        browser.close()
    page.close(verbose=False)


def test_a_phone_shows_every_page_without_sideways_scrolling(browser_page: Page) -> None:
    browser_page.set_viewport_size({"width": 360, "height": 740})
    names = (text.TAB_TRAIN, text.TAB_RUNS, text.TAB_GENERATE, text.TAB_REWARDS, text.TAB_VERIFY, text.TAB_MODELS)
    for name in names:
        tab(browser_page, name)
        browser_page.wait_for_timeout(300)
        assert browser_page.evaluate("document.documentElement.scrollWidth") <= 360, name
