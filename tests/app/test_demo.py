"""The whole path on the shipped model: train two adapters, draw with all, judge."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from app.demo import CONTEXTS, COUNT, find_subject, run_demo
from lrdiff.errors import DataError


def test_the_demo_leaves_figures_images_and_a_sheet(tmp_path: Path) -> None:
    folder = run_demo(steps=2, out=tmp_path)
    record = json.loads((folder / "demo.json").read_text())
    assert [row["name"] for row in record["rows"]] == ["base model", "tensor-lora", "LoRA r=4"]
    assert [row["parameters"] > 0 for row in record["rows"]] == [False, True, True]
    assert all(-1.0 <= row["likeness"] <= 1.0 for row in record["rows"])
    assert len({row["likeness"] for row in record["rows"]}) == 3
    assert 0.0 < record["likeness_of_real_images"] <= 1.0
    for row in record["rows"]:
        assert len(list(Path(row["images"]).glob("*.png"))) == len(CONTEXTS) * COUNT
    for method in ("tensor-lora", "lora"):
        assert json.loads((folder / method / "run.json").read_text())["state"] == "finished"
    assert Image.open(folder / "demo.png").width > len(CONTEXTS) * COUNT * 128


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write there"):
        run_demo(steps=1, out=tmp_path / "file" / "runs")


def test_an_unknown_subject_is_refused_with_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"no subject 'dragon'.*horned-mug"):
        find_subject("dragon")


def test_ctrl_c_ends_the_demo_and_not_only_its_first_training(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "app", "demo", "--out", str(tmp_path)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stderr is not None
        said = []
        for line in demo.stderr:
            said.append(line)
            if line.startswith("step "):
                demo.send_signal(signal.SIGINT)
                break
        said += demo.stderr.readlines()
    assert demo.returncode == 2, said
    assert "so the demo ends" in said[-1]
    (folder,) = tmp_path.glob("demo-*")
    assert json.loads((folder / "tensor-lora" / "run.json").read_text())["state"] == "stopped"
    assert not (folder / "lora").exists()
