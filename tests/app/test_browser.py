"""The first path in a real Chromium: drop pictures, train, watch, generate, download the file as it was written."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from app import main, text
from app.jobs import Queue
from app.site import Site
from lrdiff.metadata import read_parameters

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
    return Site(Queue(tmp_path / "runs", interval=0.1), tmp_path / "outputs", tmp_path / "none", tmp_path / "none")


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
    expect(page.locator("#previews img").first).to_be_visible()
    run, record = site.queue.runs()[0]
    assert record["state"] == "finished"
    assert {path.read_bytes() for path in (run.path / "images").iterdir()} == {path.read_bytes() for path in photos}

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


def test_a_phone_shows_every_page_without_sideways_scrolling(browser_page: Page) -> None:
    browser_page.set_viewport_size({"width": 360, "height": 740})
    for name in (text.TAB_TRAIN, text.TAB_RUNS, text.TAB_GENERATE):
        tab(browser_page, name)
        browser_page.wait_for_timeout(300)
        assert browser_page.evaluate("document.documentElement.scrollWidth") <= 360, name
