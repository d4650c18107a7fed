"""The 3D page shows heads at random and people, turns them and cuts them out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import av
import gradio as gr
import pytest
import torch

from app.jobs import Queue
from app.site import Site
from app.tabs import heads as page
from app.tabs.heads import HeadsTab
from lrdiff.artifact import Artifact, Header
from lrdiff.triplane.cameras import frontal
from lrdiff.triplane.lora import LoraConfig, Personal
from lrdiff.triplane.personal import ADAPTER, ANCHORS, CAMERAS, COMPONENT
from lrdiff.triplane.store import fingerprint, save, save_directions
from tests.lrdiff.triplane.tiny import MINI, tiny


@pytest.fixture
def tab(tmp_path: Path) -> HeadsTab:
    """Return the page with a small generator, and somebody's adapter of three photos among the installed ones."""
    torch.manual_seed(0)
    generator = tiny(config=MINI)
    save(generator, tmp_path / "model", {"made": "by a test"})
    save_directions(tmp_path / "model", {"smile": generator.mapping(torch.randn(1, 24))[0, 0].detach()})
    personal = Personal(generator, LoraConfig())
    anchors = {ANCHORS: generator.mapping(torch.randn(3, 24))[:, :1].detach(), CAMERAS: frontal(MINI, 3)}
    config = {"r": 1, "alpha": 1.0, "form": "published", "styles": True, "extras": True}
    header = Header("my3dgen", ADAPTER, config, "heads", fingerprint(tmp_path / "model"), component=COMPONENT)
    (tmp_path / "adapters").mkdir()
    Artifact(personal.state() | anchors, header).save(tmp_path / "adapters" / "anna.safetensors")
    site = Site(Queue(tmp_path / "runs"), tmp_path / "outputs", adapters=tmp_path / "adapters")
    with gr.Blocks():
        return HeadsTab(site, tmp_path / "model")


def asked(**changes: Any) -> list[Any]:
    values = {"person": "", "seed": 0, "photo": 0, "to": 0, "share": 0.0, "edit": "", "amount": 1.0} | changes
    return list(values.values())


def test_it_offers_who_fits_and_what_can_be_changed(tab: HeadsTab) -> None:
    absent, people, changes, turn, _ = tab.offer()
    assert (absent["visible"], turn["interactive"]) == (False, True)
    assert [name for name, _ in people["choices"][1:]] == ["anna"]
    assert [name for _, name in changes["choices"][1:]] == ["smile"]
    assert tab.first(*asked()) == tab.draw(*asked()), "something is seen before anything is pressed"
    shutil.rmtree(tab.model)
    assert tab.first(*asked()) == gr.skip()
    absent, _, _, turn, _ = tab.offer()
    assert (absent["visible"], turn["interactive"]) == (True, False)


def test_every_choice_shows_another_head(tab: HeadsTab) -> None:
    anna = tab.offer()[1]["choices"][1][1]
    random = [{}, {"seed": 1}, {"edit": "smile", "amount": 2.0}]
    own = [{}, {"photo": 1}, {"to": 1, "share": 0.5}, {"edit": "smile", "amount": 0.3}]
    wanted = [*random, *({"person": anna, **choice} for choice in own)]
    assert len({tab.draw(*asked(**choice)) for choice in wanted}) == len(wanted)


def test_turn_and_mesh_become_files_to_take_along(tab: HeadsTab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "FRAMES", 3)
    monkeypatch.setattr(page, "RESOLUTION", 16)
    monkeypatch.setattr(page, "LEVEL", 5.0)
    anna = tab.offer()[1]["choices"][1][1]
    video, files = tab.film(*asked(person=anna))
    with av.open(video) as file:
        assert sum(1 for _ in file.decode(video=0)) == 3
    assert files == [video, anna]
    again, files = tab.film(*asked())
    assert files == [again]
    assert again != video
    mesh, _ = tab.cut(*asked())
    assert Path(mesh).read_bytes()[:4] == b"glTF"


def test_what_is_wrong_is_told(tab: HeadsTab) -> None:
    from app.told import told

    anna = tab.offer()[1]["choices"][1][1]
    with pytest.raises(gr.Error, match="photo: 7 is not among the 3 photos"):
        told(tab.draw)(*asked(person=anna, photo=7))
