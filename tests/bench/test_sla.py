"""The benchmark of quality measures every kind of attention and goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench import sla_quality, sla_wan
from tests.lrdiff.backbones.families import build_pixart


def test_quality_is_measured_once_for_every_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build_pixart(tmp_path / "dit")
    words = [
        "--model", str(model), "--folder", str(tmp_path / "kept"), "--pictures", "4", "--steps", "1", "--captions", "2",
        "--sampling", "2", "--block", "16", "--sparsities", "0.5", "--seeds", "0",
        "--kinds", "sparse only", "linear only", "marginal",
        "--results", str(tmp_path / "sla_quality.json"), "--device", "cpu",
    ]  # fmt: skip
    assert sla_quality.main(words) == 0
    kept = json.loads((tmp_path / "kept" / "kept.json").read_text())
    assert set(kept) == {"full", "linear only/1/0", "sparse only/0.5/0", "marginal/0.5/0"}
    before = {name: case["pictures before"] for name, case in kept.items() if name != "full"}
    assert min(before.values()) > 0
    assert before["sparse only/0.5/0"] == before["marginal/0.5/0"], "a projection starts at zero"
    assert before["linear only/1/0"] != before["sparse only/0.5/0"]
    assert all(kept[name]["velocity after"] != kept[name]["velocity before"] for name in before)
    assert len(sla_quality.rows(kept)) == 4
    assert capsys.readouterr().out.count("velocity after") == 3
    assert sla_quality.main(words) == 0
    assert capsys.readouterr().out == ""


def test_a_step_of_wan_is_timed_with_and_without(capsys: pytest.CaptureFixture[str]) -> None:
    assert sla_wan.main(["--tiny", "--repeats", "1", "--scopes", "marginal", "all", "--topk", "0.2"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["sparse-linear, marginal", "sparse-linear, all"]
    assert all(float(value) > 0 for line in lines for value in line[1:5])
