"""The benchmark of quality measures every kind of attention and goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench import sla_mixture, sla_quality, sla_wan
from tests.lrdiff.backbones.families import build_pixart

KINDS = ("linear-only_1", "sparse-only_0.5", "marginal_0.5", "mixed-marginal_0.5")


def test_quality_is_measured_once_for_every_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build_pixart(tmp_path / "dit")
    words = [
        "--model", str(model), "--folder", str(tmp_path / "kept"), "--pictures", "4", "--steps", "1", "--captions", "2",
        "--sampling", "2", "--block", "16", "--grid", "0.5:2", "--drawn", "0.5",
        "--kinds", "sparse only", "linear only", "marginal", "mixed marginal",
        "--results", str(tmp_path), "--device", "cpu", "--dtype", "fp32",
    ]  # fmt: skip
    assert sla_quality.main(words) == 0
    kept = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "kept" / "1-steps").glob("*.json")}
    names = {f"{kind}_{seed}" for kind in KINDS for seed in (0, 1)}
    assert set(kept) == {"full", *names}
    before = {name: kept[name]["velocity before"] for name in names}
    assert min(before.values()) > 0
    assert before["sparse-only_0.5_0"] == before["marginal_0.5_0"], "a projection starts at zero"
    assert len({before[name] for name in names if name.endswith("_0")}) == 3, "the others do not"
    assert all(kept[name]["velocity after"] != before[name] for name in names)
    assert {name for name in names if {"pictures before", "pictures after"} <= kept[name].keys()} == {
        name for name in names if name.endswith("_0")
    }
    assert len(sla_quality.rows(kept)) == 5
    assert capsys.readouterr().out.count("velocity after") == 8
    assert sla_quality.main(words) == 0
    assert capsys.readouterr().out == ""


def test_ways_of_combining_both_branches_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build_pixart(tmp_path / "dit")
    words = ["--model", str(model), "--folder", str(tmp_path / "kept"), "--count", "4", "--topk", "0.5"]
    assert sla_mixture.main([*words, "--results", str(tmp_path)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows] == [["0.500", scope] for scope in ("marginal", "noncritical", "all")]
    for row in rows:
        kept, estimated, _, start, layer, head, least, most = map(float, row[2:])
        assert 0 < kept < 1
        assert 0 < estimated < 1
        assert max(start, layer, head) <= 1
        assert least <= most


def test_a_step_of_wan_is_timed_with_and_without(capsys: pytest.CaptureFixture[str]) -> None:
    assert sla_wan.main(["--tiny", "--repeats", "1", "--scopes", "marginal", "all", "--topk", "0.2"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["sparse-linear, marginal", "sparse-linear, all"]
    assert all(float(value) > 0 for line in lines for value in line[1:5])
