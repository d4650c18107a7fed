"""Every tab can be read and used: contrast by WCAG AA, a name for every control, everything reached by Tab."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from app import main, text
from app.jobs import Queue
from app.site import Site
from tests.app.test_browser import CHROMIUM, FLAGS
from trainers.registry import run_config_class
from trainers.rundir import create

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium"),
]
TABS = (
    text.TAB_TRAIN,
    text.TAB_RUNS,
    text.TAB_GENERATE,
    text.TAB_HEADS,
    text.TAB_REWARDS,
    text.TAB_ATTENTION,
    text.TAB_VERIFY,
    text.TAB_MODELS,
)

LOW_CONTRAST = """
() => {
  const parse = color => {
    const found = color.match(/[\\d.]+/g).map(Number);
    return {rgb: found.slice(0, 3), alpha: found.length > 3 ? found[3] : 1};
  };
  const over = (top, below) => top.rgb.map((value, i) => value * top.alpha + below[i] * (1 - top.alpha));
  const light = rgb => {
    const [r, g, b] = rgb.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    if (!element) return [255, 255, 255];
    const style = getComputedStyle(element);
    return over(parse(style.backgroundColor), behind(element.parentElement));
  };
  const found = [];
  for (const element of document.querySelectorAll('body *')) {
    const words = [...element.childNodes].filter(n => n.nodeType === 3).map(n => n.textContent.trim()).join('');
    const typed = element.matches('input:not([type=radio], [type=checkbox]), textarea') ? element.value : '';
    const shown = words || typed;
    if (!shown || !element.checkVisibility({checkOpacity: true, checkVisibilityCSS: true})) continue;
    // What is switched off is exempt, and so are drawings of text inside plots, whose background is the block's.
    if (element.closest('button:disabled, [aria-disabled=true], input:disabled')) continue;
    const style = getComputedStyle(element), back = behind(element);
    const box = element.getBoundingClientRect();
    if (box.width < 2 || box.height < 2) continue;
    const color = element.namespaceURI.includes('svg') ? style.fill : style.color;
    if (!color.startsWith('rgb')) continue;
    const front = over(parse(color), back);
    const [high, low] = [light(front), light(back)].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) found.push(`${shown.slice(0, 40)}: ${ratio.toFixed(2)} ${color} on ${back}`);
  }
  return found;
}
"""

WITHOUT_NAME = """
() => {
  const controls = 'button, a[href], input, select, textarea, [role=button], [role=radio], [role=tab], [tabindex="0"]';
  const found = [];
  for (const element of document.querySelectorAll(controls)) {
    if (!element.checkVisibility({checkOpacity: true, checkVisibilityCSS: true})) continue;
    const by = (element.getAttribute('aria-labelledby') || '').split(' ').map(id => document.getElementById(id));
    const labels = [...(element.labels || []), element.closest('label'), ...by].filter(Boolean);
    const name = [element.getAttribute('aria-label'), element.getAttribute('title'), element.getAttribute('alt'),
      ...labels.map(label => label.textContent), element.matches('input, textarea, select') ? '' : element.textContent,
      element.querySelector('img[alt]')?.alt].join(' ').trim();
    if (!name) found.push(element.outerHTML.slice(0, 160));
  }
  return found;
}
"""

REACHABLE = """
() => [...document.querySelectorAll('button, a[href], input, select, textarea, [role=radio]')]
  .filter(e => e.checkVisibility({checkOpacity: true, checkVisibilityCSS: true}) && !e.disabled)
  // Groups take one Tab and go on with arrows; the second row of tabs is gradio's ruler.
  .filter(e => e.tabIndex < 0 && !e.closest('[role=radiogroup], [role=tablist], .visually-hidden'))
  .map(e => e.outerHTML.slice(0, 160))
"""

STRETCHED = """
() => [...document.querySelectorAll('input[type=range], input[type=number]')]
  .filter(e => e.checkVisibility() && e.closest('.block')?.getBoundingClientRect().height > 170)
  .map(e => `${e.ariaLabel}: ${Math.round(e.closest('.block').getBoundingClientRect().height)} px`)
"""
"""Fields of one line that a style of ours, meant for something else, blew up."""


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str]]:
    """Return a browser and the address of a page with a run in every end state."""
    root = tmp_path_factory.mktemp("site")
    site = Site(
        Queue(root / "runs"),
        root / "outputs",
        registry=str(root / "keys.sqlite"),
        key_file=root / "keys.key",
    )
    for number, state in enumerate(("queued", "finished", "failed", "stopped", "interrupted")):
        _make_run(site.queue.root / f"run-{number}", state)
    _make_run(site.queue.root / "reward", "stopped", "alignprop")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(root / "cache"))
        page = main.build(site=site)
        url = main.launch(page, site, "127.0.0.1", 0)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
            yield browser, url
            browser.close()
        page.close(verbose=False)


def _make_run(path: Path, state: str, method: str = "tensor-lora") -> None:
    data = {"prompt": "a photo of sks mug"} if method == "tensor-lora" else {}
    config = run_config_class(method).model_validate({"method": {}, "data": data})
    run = create(path, method, config.model_dump(mode="json"))
    figures = {"grad_norm": 0.1, "reward_brightness": 0.5, "held_out_brightness": 0.4, "diversity": 0.2}
    for step in range(1, 20):
        run.append_metrics({"step": step, "loss": 1 / step, **figures, "seconds_per_step": 0.5, "time": 1.0})
    run.log_path.write_text("INFO it went on\nERROR the disk is full\n")
    (run.previews / "000010").mkdir(parents=True)
    Image.new("RGB", (64, 64), "teal").save(run.previews / "000010" / "0.png")
    run.update(state=state, outcome="the disk is full", preflight=["16 million parameters"], step=19)


def _look(page: Page, url: str, dark: bool) -> None:
    page.set_default_timeout(60_000)
    page.goto(url + ("?__theme=dark" if dark else ""))
    page.wait_for_selector("#start")


def _open_everything(page: Page) -> None:
    page.evaluate("""document.querySelectorAll('button.label-wrap:not(.open)').forEach(fold => {
        if (fold.checkVisibility()) fold.click();
    })""")
    page.wait_for_timeout(1000)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_tab_has_contrast_names_and_a_way_by_keyboard(opened: tuple[Any, str], dark: bool) -> None:
    browser, url = opened
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    _look(page, url, dark)
    problems: list[str] = []
    for name in TABS:
        page.get_by_role("tab", name=name, exact=True).click()
        _open_everything(page)
        if name == text.TAB_ATTENTION:
            page.locator("#draw-map").click()
            page.locator("#map .heads img").first.wait_for()
        if name == text.TAB_RUNS:
            page.wait_for_selector(".cm-line")  # its part of gradio comes late
        scripts = {"contrast": LOW_CONTRAST, "no name": WITHOUT_NAME, "no key": REACHABLE, "stretched": STRETCHED}
        for title, script in scripts.items():
            problems += [f"{name}, {title}: {found}" for found in page.evaluate(script)]
    page.close()
    assert problems == []


def test_the_first_path_needs_no_mouse(opened: tuple[Any, str]) -> None:
    """From the top of the page, Tab alone comes to the button that starts; arrows move through tabs and runs."""
    browser, url = opened
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    _look(page, url, False)
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id || document.activeElement.closest('[id]')?.id") == "start":
            break
    else:
        raise AssertionError("60 times Tab do not come to Start training")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "where the keyboard is must be seen"
    page.get_by_role("tab", name=text.TAB_RUNS, exact=True).focus()
    page.keyboard.press("Enter")
    first = page.locator("#runs [role=radio]").first
    chosen = "[...document.querySelectorAll('#runs [role=radio]')].findIndex(run => run.ariaChecked === 'true')"
    first.wait_for()
    page.locator("#runs [role=radio]").nth(2).click()
    page.wait_for_function(f"{chosen} === 2 && document.activeElement.ariaChecked === 'true'")
    page.keyboard.press("ArrowDown")
    page.wait_for_function(f"{chosen} === 3 && document.activeElement.ariaChecked === 'true'")
    page.close()
