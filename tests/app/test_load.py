"""A short version of `tests.bench.page_load`: visitors who look on get answers while images are made."""

from __future__ import annotations

from pathlib import Path

import pytest

from app import main
from app.jobs import Queue
from app.site import Site
from tests.bench.page_load import KINDS, measure


def test_many_visitors_are_answered_without_errors(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    site = Site(Queue(tmp_path / "runs"), tmp_path / "outputs")
    page = main.build(site=site)
    url = main.launch(page, site, "127.0.0.1", 0)
    wish = {"model": str(tiny_model), "steps": 2, "device": "cpu"}
    load = measure(url, seconds=6, visitors=10, generators=1, wish=wish)
    page.close(verbose=False)
    assert load.errors == []
    assert len(load.seconds(KINDS[0])) >= 10
    assert load.images == len(list(site.outputs.glob("*.png"))) or load.images >= 1
