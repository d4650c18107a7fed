"""`python -m tests.bench.page_pictures [RUNS]`: the README's first path on the page, followed with clock and camera.

Serves a page on an empty folder, opens it in the Chromium of the machine, presses what the README says, and writes what
stands below. With a folder of runs it shows the newest of them instead of training one, and writes no times.

    assets/pictures/page-TAB.png                 light, 1280 px wide; page-phone.png: the Train tab, dark, 360 px
    tests/bench/results/page_first_path.json     how long each step took
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from app import main as page_module
from app import text, text_verify
from app.jobs import Queue
from app.site import Site
from lrdiff.assets import ASSETS
from lrdiff.files import write_bytes
from tests.bench.result import write

SETTLE = 4000
"""Milliseconds until charts are drawn."""
PATIENCE = 1_800_000
"""Milliseconds after which a training is taken for stuck."""
HOME = """root => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (node.data.includes(root)) node.data = node.data.replaceAll(root, '~/lrdiff');
  }
}"""
"""Whoever reads the README has the folder elsewhere."""


def save(page: Page, name: str, folders: tuple[Path, ...]) -> Path:
    """Write what the page shows with 128 colours, which is a fifth of the bytes and looks the same."""
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(SETTLE)
    for folder in folders:
        page.evaluate(HOME, str(folder))
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    path = ASSETS / "pictures" / f"page-{name.lower()}.png"
    write_bytes(path, buffer.getvalue())
    print(f"{path} {path.stat().st_size // 1000} kB", flush=True)
    return path


def follow(page: Page, url: str, folders: tuple[Path, ...], is_trained: bool) -> dict[str, float]:
    """Do what the README says, word by word, and return the seconds of each step."""
    seconds: dict[str, float] = {}

    def clock(step: str, began: float) -> float:
        seconds[step] = time.monotonic() - began
        return time.monotonic()

    began = time.monotonic()
    page.goto(url)
    page.wait_for_selector("#start")
    clock("the page is there", began)
    page.wait_for_timeout(SETTLE)
    save(page, text.TAB_TRAIN, folders)
    began = time.monotonic()
    if is_trained:
        page.get_by_role("tab", name=text.TAB_RUNS, exact=True).click()
    else:
        page.locator("#start").click()
    page.locator(".run.finished").wait_for(timeout=PATIENCE)
    clock(f"{text.START}: the run has finished", began)
    save(page, text.TAB_RUNS, folders)
    began = time.monotonic()
    page.locator("#use").click()
    page.wait_for_function("document.querySelector('#adapter input').value.startsWith('tensor-lora')")
    page.locator("#generate").click()
    page.locator("#results img").first.wait_for(timeout=PATIENCE)
    clock(f"{text.USE}, {text.GENERATE}: the image is there", began)
    save(page, text.TAB_GENERATE, folders)
    began = time.monotonic()
    page.locator("#verify-it").click()
    page.locator("#verdict :is(.badge, .problems)").wait_for(timeout=PATIENCE)
    began = clock(f"{text.VERIFY_IT}: the answer is there", began)
    page.locator("#example-mark").click()
    page.wait_for_function("document.querySelector('#mark input').value.startsWith('On')")
    before = page.locator("#results img").first.get_attribute("src")
    page.locator("#generate").click()
    page.wait_for_function(f"document.querySelector('#results img')?.src !== {json.dumps(before)}", timeout=PATIENCE)
    page.locator("#results img").first.wait_for(timeout=PATIENCE)
    page.locator("#verify-it").click()
    page.locator("#verdict .badge").wait_for(timeout=PATIENCE)
    clock(f"{text_verify.EXAMPLE}, {text.GENERATE}, {text.VERIFY_IT}: the answer is there", began)
    save(page, text.TAB_VERIFY, folders)
    return seconds


def others(page: Page, folders: tuple[Path, ...]) -> None:
    """Take the tabs that the first path does not pass, each once it shows something of its own."""
    for tab, button, there in (
        (text.TAB_HEADS, "", "#head-picture img"),
        (text.TAB_REWARDS, "", ""),
        (text.TAB_ATTENTION, "#draw-map", "#map img"),
        (text.TAB_MODELS, "", ""),
    ):
        page.get_by_role("tab", name=tab, exact=True).click()
        page.wait_for_timeout(SETTLE)
        if button:
            page.locator(button).click()
        if there:
            page.locator(there).first.wait_for(timeout=PATIENCE)
        save(page, tab, folders)


def main(arguments: Sequence[str]) -> int:
    """Follow the path, take all pictures, write the times."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory(prefix="lrdiff-pictures-") as folder, sync_playwright() as playwright:
        here = Path(folder).resolve()
        os.environ["GRADIO_TEMP_DIR"] = str(here / "cache")
        keys = {"registry": str(here / "keys.sqlite"), "key_file": here / "keys.key"}
        if arguments:
            shutil.copytree(arguments[0], here / "runs")
        site = Site(
            Queue(here / "runs"), here / "outputs", adapters=here / "adapters", decoders=here / "decoders", **keys
        )
        served = page_module.build(site=site)
        url = page_module.launch(served, site, "127.0.0.1", 0)
        site.queue.start()
        if not arguments:
            page_module.get_ready(site)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        wide = browser.new_page(viewport={"width": 1280, "height": 900})
        wide.set_default_timeout(120_000)
        seconds = follow(wide, url, (here, ASSETS.parent), bool(arguments))
        others(wide, (here, ASSETS.parent))
        phone = browser.new_page(viewport={"width": 360, "height": 740})
        phone.set_default_timeout(120_000)
        phone.goto(f"{url}?__theme=dark")
        phone.wait_for_selector("#start")
        save(phone, "phone", (here, ASSETS.parent))
        browser.close()
        site.queue.close()
        served.close(verbose=False)
    if arguments:
        return 0
    busy = f" {os.getloadavg()[0]:.1f} processes wanted a core at the end." if hasattr(os, "getloadavg") else ""
    rows = [[step, round(value, 1)] for step, value in seconds.items()]
    note = f"One walk in Chromium on a fresh folder.{busy}"
    path = write("page_first_path", "python -m tests.bench.page_pictures", ["step", "seconds"], rows, note)
    sys.stdout.write(f"{seconds}\n{path}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
