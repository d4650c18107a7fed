"""Verification on the page: original bytes, a verdict in words, keys made and revoked, never "detected" by mistake."""

from __future__ import annotations

import html
import re
from pathlib import Path

import gradio as gr
import pytest
import torch
from PIL import Image
from torch import Tensor

from app import text_verify, verdict_view, verifying
from app.jobs import Queue
from app.site import Site
from app.tabs.verify import VerifyTab
from lrdiff.errors import ConfigError, DataError, ModelError
from lrdiff.images import to_image
from lrdiff.watermark.extractor import Extractor
from tests.lrdiff.watermark.conftest import build_extractor, pictures

BITS = "011010011001011001101001"


@pytest.fixture(scope="module")
def network() -> Extractor:
    return build_extractor()


@pytest.fixture
def site(tmp_path: Path, network: Extractor) -> Site:
    folder = tmp_path / "extractor"
    folder.mkdir()
    network.save(folder / "model.safetensors")
    return Site(
        Queue(tmp_path / "runs"),
        tmp_path / "outputs",
        extractor=folder,
        registry=str(tmp_path / "keys.sqlite"),
        key_file=tmp_path / "keys.key",
    )


@pytest.fixture
def tab(site: Site) -> VerifyTab:
    with gr.Blocks():
        return VerifyTab(site)


def marked(network: Extractor, bits: str, seed: int = 3) -> Tensor:
    """Return a picture [3, 32, 32] that was changed until the extractor reads the bits in it."""
    signs = torch.tensor([1.0 if bit == "1" else -1.0 for bit in bits])
    change = torch.zeros(1, 3, 32, 32, requires_grad=True)
    image = pictures(1, seed, 32)
    optim = torch.optim.Adam([change], lr=0.03)
    for _ in range(4000):
        logits = network((image + change).clamp(-1, 1))
        if float((signs * logits).detach().min()) > 1.0:
            break
        loss = torch.nn.functional.softplus(2 - signs * logits).mean()
        optim.zero_grad()
        loss.backward()
        optim.step()
    else:
        raise AssertionError(f"no picture with the bits {bits} was found")
    return (image + change).clamp(-1, 1)[0].detach()


def test_a_marked_picture_is_detected_and_others_are_not(tab: VerifyTab, network: Extractor, tmp_path: Path) -> None:
    # Not a drawn key: not every message can be written into a picture of 32 x 32 for so small a network.
    book = verifying.registry(tab.site, create=True)
    key = book.create(owner="studio", extractor_sha256=network.sha256(), bits=BITS, length=24)
    with_mark, without = tmp_path / "marked.png", tmp_path / "plain.png"
    to_image(marked(network, key.bits)).save(with_mark)
    to_image(pictures(1, 3, 32)[0]).save(without)

    found = verifying.verify(tab.site, with_mark, key.id)
    assert (found.verdict.verdict, found.key, found.owner) == ("detected", key.id, "studio")
    assert sum(found.agree) == found.verdict.matches == 24
    shown = tab.judge(str(with_mark), "", "1e-6", False)
    assert f"The picture carries the bits of key {key.id} of studio." in shown
    assert shown.count("class='yes'") == 24
    plain = tab.judge(str(without), key.id, "1e-6", False)
    assert "This mark was not found" in plain
    assert "without AI" in plain
    # A search is named where none was made, and only there.
    assert text_verify.PERHAPS in plain
    assert text_verify.PERHAPS not in shown
    searched = tab.judge(str(without), key.id, "1e-6", True)
    assert "Detected</span>" not in searched
    assert text_verify.PERHAPS not in searched

    tab._revoke(key.id, "leaked")
    assert verifying.verify(tab.site, with_mark, key.id).verdict.verdict == "inconclusive"
    assert "There is no key to look for yet" in tab.judge(str(with_mark), "", "1e-6", False)


def test_what_cannot_be_judged_is_told_and_never_detected(tab: VerifyTab, tmp_path: Path) -> None:
    picture, broken = tmp_path / "a.png", tmp_path / "b.png"
    Image.new("RGB", (64, 64)).save(picture)
    broken.write_bytes(b"no picture")
    assert "There is no key to look for yet" in tab.judge(str(picture), "", "1e-6", False)
    assert not (tmp_path / "keys.sqlite").exists()
    tab._make("studio")
    assert "Choose a picture first" in tab.judge(None, "", "1e-6", False)
    for rate in ("", "often", "0", "1", "nan", "-1"):
        assert "Give a number between 0 and 1" in tab.judge(str(picture), "", rate, False), rate
    said = html.unescape(tab.judge(str(broken), "", "1e-6", False))
    assert "cannot be read" in said
    assert str(tmp_path) not in said
    assert "Detected" not in said
    assert "Inconclusive" in tab.judge(str(picture), "", "1e-6", False)  # flat


def test_without_an_extractor_that_is_said(site: Site, tmp_path: Path, photos: list[Path]) -> None:
    bare = Site(site.queue, site.outputs, extractor=tmp_path / "none", registry=site.registry, key_file=site.key_file)
    with pytest.raises(ModelError):
        verifying.verify(bare, photos[0])


def test_keys_are_made_for_somebody_and_revoked_for_a_reason(tab: VerifyTab) -> None:
    with pytest.raises(gr.Error, match="Say whose key it is"):
        tab._make(" ")
    with pytest.raises(gr.Error, match="say why"):
        tab._revoke(None, "")
    tab._make("<b>studio")
    shown = tab.offer()[2]
    assert "&lt;b&gt;studio" in shown
    assert not re.search("[01]{24}", shown)


def test_the_example_is_offered_while_no_key_counts(site: Site, tab: VerifyTab) -> None:
    assert tab.offer()[-1]["visible"]
    tab._make("studio")
    assert not tab.offer()[-1]["visible"]
    [key] = verifying.keys(site)
    verifying.registry(site).revoke(key.id, "lost")
    assert tab.offer()[-1]["visible"]
    # The example's mark was made for the shipped extractor; here is another one.
    with pytest.raises(ModelError, match="made for extractor"):
        verifying.example(site)


def test_a_large_file_and_a_foreign_key_are_refused(site: Site, tmp_path: Path, tab: VerifyTab) -> None:
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(verifying.MAX_BYTES + 1)
    with pytest.raises(DataError, match="larger than 50 MB"):
        verifying.verify(site, large)
    book = verifying.registry(site, create=True)
    other = book.create(owner="other", extractor_sha256="0" * 64, length=24)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="another extractor"):
        verifying.verify(site, tmp_path / "a.png", other.id)


@pytest.mark.parametrize(
    ("p", "words"),
    [(1.0, "most"), (0.5, "every second"), (0.1, "1 of 10"), (1.23e-6, "1 of 810,000"), (1e-20, "1 of 10^20")],
)
def test_odds_are_said_as_people_say_them(p: float, words: str) -> None:
    assert verdict_view.odds(p) == words
