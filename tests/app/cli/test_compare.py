"""`lrdiff compare` and `lrdiff train --adapter`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from app.adapter_comparison import Row, configure, diversity, plot, read_spec, summary, table
from app.commands.compare import with_adapter
from lrdiff.errors import ConfigError
from lrdiff.probe import load_probe
from tests.app.cli.conftest import Lrdiff


def test_adapters_are_trained_and_measured_alike(lrdiff: Lrdiff, tiny: Path, tmp_path: Path) -> None:
    flags = [
        "--steps",
        1,
        "--places",
        2,
        "--count",
        1,
        "--sampling-steps",
        1,
        "--model",
        tiny,
        "--out",
        tmp_path / "out",
    ]
    code, out, err = lrdiff("compare", "--adapter", "lora:r=1,alpha=1", "lokr", *flags)
    assert code == 0, err
    (folder,) = (tmp_path / "out").iterdir()
    record = json.loads((folder / "comparison.json").read_text())
    assert [row["adapter"] for row in record["rows"]] == ["lora:r=1,alpha=1", "lokr"]
    assert (record["steps"], record["seeds"], record["subjects"]) == (1, [0], ["horned-mug"])
    for row in record["rows"]:
        assert row["parameters"] > 0
        assert -1 <= row["subject_fidelity"] <= 1
        assert row["prompt_fidelity"] in (0.0, 0.5, 1.0)
        assert row["held_out_loss"] > 0
    assert out == (folder / "comparison.txt").read_text()
    assert len(out.partition("\n\n")[0].splitlines()) == 3
    with Image.open(folder / "comparison.png") as picture:
        assert picture.width > 600
    runs = sorted(path.name for path in (folder / "runs").iterdir())
    assert runs == ["lokr-horned-mug-0", "lora-r1-alpha1-horned-mug-0"]

    # As after kill -9 in the second run: the first is not trained again, the second begins anew beside what is left.
    complete = record["rows"]
    (folder / "comparison.json").write_text(json.dumps({**record, "rows": complete[:1]}))
    killed, done = (folder / "runs" / name / "run.json" for name in runs)
    killed.write_text(json.dumps({**json.loads(killed.read_text()), "state": "interrupted"}))
    before = done.stat().st_mtime_ns, killed.read_text()
    code, out, err = lrdiff("compare", "--resume", folder)
    assert code == 0, err
    again = json.loads((folder / "comparison.json").read_text())["rows"]
    assert [{**row, "seconds_per_step": 0} for row in again] == [{**row, "seconds_per_step": 0} for row in complete]
    assert (done.stat().st_mtime_ns, killed.read_text()) == before
    assert sorted(path.name for path in (folder / "runs").iterdir()) == [runs[0], f"{runs[0]}-again", runs[1]]
    assert out == (folder / "comparison.txt").read_text()


def test_only_a_comparison_goes_on_and_with_its_own_settings(lrdiff: Lrdiff, tmp_path: Path) -> None:
    code, _, err = lrdiff("compare", "--resume", tmp_path)
    assert (code, "no record of a comparison" in err) == (2, True)
    (tmp_path / "comparison.json").write_text('{"rows": []}')
    code, _, err = lrdiff("compare", "--resume", tmp_path)
    assert (code, "older lrdiff" in err) == (2, True)
    code, _, err = lrdiff("compare", "--resume", tmp_path, "--steps", 3)
    assert (code, "leave out --steps" in err) == (2, True)


def row(adapter: str, fidelity: float, seed: int = 0) -> Row:
    return Row(adapter, "mug", seed, 100, 2000, 0.5, fidelity, 0.75, 0.2, 0.4)


def test_table_and_plot_are_of_means_over_the_runs() -> None:
    rows = [row("a", 0.2), row("a", 0.4, 1), row("b", 0.5)]
    first, second = summary(rows)
    assert (first["adapter"], second["adapter"]) == ("b", "a"), "the best first"
    assert second["subject_fidelity"] == pytest.approx(0.3)
    assert second["spread"] == pytest.approx(0.1414, abs=1e-4)
    assert (first["runs"], second["runs"]) == (1, 2)
    assert table(rows).splitlines()[2].split() == [
        "a",
        "100",
        "2.0",
        "0.500",
        "0.300",
        "0.141",
        "0.750",
        "0.200",
        "0.4000",
        "2",
    ]
    assert plot(rows).startswith(b"\x89PNG")


def test_diversity_of_equal_images_is_none() -> None:
    probe = load_probe("probe-b")
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert diversity(probe, images[:1].expand(3, -1, -1, -1)) == pytest.approx(0.0, abs=1e-5)
    assert diversity(probe, images) > 1e-3
    assert diversity(probe, images[:1]) == 0.0


def test_settings_of_adapters_reach_their_runs() -> None:
    spec = read_spec("oft:block_size=8,optim.lr=0.001")
    config = configure(spec, "toys", Path("mug"), "a photo of sks mug", 7, 3)
    assert (config.method.block_size, config.optim.lr, config.optim.steps, config.seed) == (8, 0.001, 7, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--adapter", "nope"], "no adapter 'nope'; known: tensor-lora, lora, dora"),
        (["--adapter", "watermark"], "no adapter 'watermark'"),
        (["--adapter", "lora:r"], "'r' is not SETTING=VALUE"),
        (["--adapter", "lora:rank=2"], r"--adapter lora:rank=2: method\.rank: There is no such setting"),
        (["--adapter", "lora:optim.steps=2"], r"optim\.steps must be the same for all"),
        (["--adapter", "lora", "lora"], "names one of them twice"),
        (["--subject", "nobody"], "no subject 'nobody'"),
        (["--places", "999"], "there are .* places"),
        (["--steps", "0"], "steps: Must be greater than 0"),
    ],
)
def test_bad_requests_are_one_message_before_anything_is_trained(
    lrdiff: Lrdiff, tmp_path: Path, words: list[str], message: str
) -> None:
    code, out, err = lrdiff("compare", *words, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert re.search(message, err)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_the_adapter_chooses_the_method(lrdiff: Lrdiff, photos: Path, short: list[str], tmp_path: Path) -> None:
    code, _, err = lrdiff(
        "train", "lora", "--adapter", "lokr", "--data.images", photos, "--out", tmp_path / "r", *short
    )
    assert code == 0, err
    assert json.loads((tmp_path / "r" / "run.json").read_text())["method"] == "lokr"
    assert with_adapter(["--adapter=oft", "--seed", "1"]) == ["oft", "--seed", "1"]
    assert with_adapter(["lora", "--seed", "1"]) == ["lora", "--seed", "1"]
    for words, message in {"--adapter nope": "no adapter 'nope'", "watermark --adapter lora": "not watermark"}.items():
        with pytest.raises(ConfigError, match=message):
            with_adapter(words.split())
