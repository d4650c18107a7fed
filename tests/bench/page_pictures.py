"""`python -m tests.bench.page_pictures [RUNS]`: pictures of every tab for the README, small enough to ship.

Opens the page on a folder of runs (`runs` when left out) in the Chromium of the machine and writes
assets/pictures/page-TAB.png, light at 1280 px, and page-phone.png, the Train tab dark at 360 px.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from app import main as page_module
from app import text
from app.jobs import Queue
from app.site import Site
from lrdiff.assets import ASSETS
from lrdiff.files import write_bytes

TABS = (text.TAB_TRAIN, text.TAB_RUNS, text.TAB_GENERATE, text.TAB_VERIFY, text.TAB_MODELS)
SETTLE = 4000
"""Milliseconds until charts are drawn."""


def save(page: Page, name: str) -> Path:
    """Write what the page shows with 128 colours, which is a fifth of the bytes and looks the same."""
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    path = ASSETS / "pictures" / f"page-{name.lower()}.png"
    write_bytes(path, buffer.getvalue())
    return path


def main(runs: Path) -> int:
    """Take all pictures."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory(prefix="lrdiff-pictures-") as folder, sync_playwright() as playwright:
        here = Path(folder)
        site = Site(Queue(runs), here / "outputs", registry=str(here / "keys.sqlite"), key_file=here / "keys.key")
        served = page_module.build(site=site)
        url = page_module.launch(served, site, "127.0.0.1", 0)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for width, scheme in ((1280, "light"), (360, "dark")):
            view = browser.new_page(viewport={"width": width, "height": 860 if width > 640 else 740})
            view.set_default_timeout(120_000)
            view.goto(url + ("?__theme=dark" if scheme == "dark" else ""))
            view.wait_for_selector("#start")
            for tab in TABS if width > 640 else TABS[:1]:
                view.get_by_role("tab", name=tab, exact=True).click()
                view.wait_for_timeout(SETTLE)
                path = save(view, tab if width > 640 else "phone")
                sys.stdout.write(f"{path} {path.stat().st_size // 1000} kB\n")
        browser.close()
        served.close(verbose=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs")))
