"""From photos of a head to its 3D page in a real Chromium: train, orbit, slide between photos, take the files along."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
import torch
from playwright.sync_api import Page, expect

from app import text, text_heads
from app.site import Site
from app.tabs import heads as heads_page
from lrdiff.artifact import Artifact
from lrdiff.images import save_png
from lrdiff.world.heads import IDENTITY, LATENT, heads
from lrdiff.world.heads_render import orbit
from tests.app.test_browser import SLOW, browser_page, pytestmark, site, url  # noqa: F401


@pytest.fixture
def faces(tmp_path: Path) -> list[Path]:
    """Return three photos of one person and one of another."""
    z = torch.randn(4, LATENT, generator=torch.Generator().manual_seed(3))
    z[:3, :IDENTITY] = z[0, :IDENTITY]
    seen = orbit(heads(z), torch.tensor([-0.5, 0.1, 0.6, 0.0]), torch.zeros(4), 96, smooth=1)
    paths = [tmp_path / f"face-{number}.png" for number in range(4)]
    for path, image in zip(paths, seen.image, strict=True):
        save_png(image, path)
    return paths


def fill(page: Page, label: str, value: str) -> None:
    field = page.get_by_label(label, exact=True).locator("visible=true").first
    field.fill(value)
    field.press("Enter")


def slide(page: Page, label: str, value: str) -> None:
    """Move a slider as a hand does, which ends with letting go."""
    handle = page.get_by_role("slider", name=label)
    handle.fill(value)
    handle.dispatch_event("pointerup")


def test_from_photos_to_a_head_in_the_browser(
    browser_page: Page,  # noqa: F811
    site: Site,  # noqa: F811
    faces: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heads_page, "FRAMES", 4)
    monkeypatch.setattr(heads_page, "RESOLUTION", 40)
    page = browser_page
    page.locator("#method input").click()
    page.get_by_role("option", name="my3dgen", exact=True).click()
    page.locator("#files input[type=file]").set_input_files(faces)
    expect(page.locator(".count")).to_have_text("4 pictures ready")
    expect(page.get_by_text(text.METHOD_HINTS["my3dgen"])).to_be_visible()
    page.get_by_role("button", name=text.ADVANCED).click()
    for label, value in (("Steps", "2"), ("Anchor steps", "2"), ("Anchor side", "8"), ("Patch", "8")):
        fill(page, label, value)
    page.locator("#start").click()
    site.queue.start()
    expect(page.locator(".run .badge")).to_have_text(text.STATES["finished"], timeout=SLOW)
    [(run, record)] = site.queue.runs()
    assert run.path.name == "my3dgen-photos-001"
    assert [line for line in record["preflight"] if "two people: face-3.png" in line]
    page.get_by_role("button", name=text.SETTINGS).click()
    expect(page.get_by_text("two people: face-3.png")).to_be_visible()

    expect(page.locator("#use")).to_have_text(text_heads.USE)
    page.locator("#use").click()
    expect(page.locator("#person input")).to_have_value(run.path.name)
    picture = page.locator("#head-picture img")
    expect(picture).to_be_visible()
    first = str(picture.get_attribute("src"))
    fill(page, text_heads.TO, "2")
    slide(page, text_heads.SHARE, "1")
    expect(picture).not_to_have_attribute("src", first)

    page.locator("#turn-head").click()
    video = page.locator("video")
    expect(video).to_be_visible(timeout=SLOW)
    [film] = site.outputs.glob("*.mp4")
    with av.open(str(film)) as file:
        assert sum(1 for _ in file.decode(video=0)) == 4
    page.locator("#mesh-head").click()
    files = page.locator("#made-heads")
    expect(files.locator("a[download='head-001.glb']")).to_be_visible(timeout=SLOW)
    [mesh] = site.outputs.glob("*.glb")
    for name, original in (("head-001.glb", mesh), ("adapter.safetensors", run.path / "adapter.safetensors")):
        with page.expect_download() as got:
            files.locator(f"a[download='{name}']").click()
        got.value.save_as(tmp_path / name)
        assert (tmp_path / name).read_bytes() == original.read_bytes()
    assert Artifact.load(tmp_path / "adapter.safetensors").header.method == "my3dgen"
