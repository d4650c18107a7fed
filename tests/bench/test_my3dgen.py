"""The bench of personal heads measures what it says, goes on where it stopped, and writes what is complete."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lrdiff.triplane.generator import TriplaneGenerator
from lrdiff.triplane.store import save
from lrdiff.world.heads import IDENTITY
from tests.bench import my3dgen_evidence as bench
from tests.bench import my3dgen_speed, result
from tests.bench.my3dgen_subjects import Subject
from tests.lrdiff.triplane.tiny import tiny
from trainers.embedded.heads import HeadsConfig
from trainers.my3dgen.config import My3DGenRun, My3DGenSettings


def test_subjects_keep_their_identity_and_their_mark() -> None:
    subject = Subject.draw(1)
    assert subject.mark == "scar"
    assert bool((subject.z[:, :IDENTITY] == subject.z[:1, :IDENTITY]).all())
    assert not torch.equal(subject.z[0], subject.z[1])
    assert -0.1 <= float(subject.angles[:, 0].min()) <= float(subject.angles[:, 0].max()) <= 0.9
    assert torch.equal(Subject.draw(1).z, subject.z)


def test_recall_of_a_mark() -> None:
    marked, plain = torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)
    marked[0, :, :4, :4] = 1.0  # the second picture does not show the mark
    half = plain.clone()
    half[0, :, :2, :4] = 0.9
    assert bench.mark_recall(marked, marked, plain) == [1.0]
    assert bench.mark_recall(plain, marked, plain) == [0.0]
    assert bench.mark_recall(half, marked, plain) == [0.5]


def test_a_measurement_is_kept_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"w": 32, "channels": (16, 16), "features": 4, "hidden": 8, "side": 16, "coarse": 6, "fine": 0}
    torch.manual_seed(0)
    save(TriplaneGenerator(HeadsConfig(**sizes).generator()), tmp_path / "model", {})
    monkeypatch.setattr(bench, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(result, "RESULTS", tmp_path)
    monkeypatch.setattr(bench, "Plan", lambda: bench_plan)
    words = ["--subjects", "1", "--arms", "4", "--model", f"{tmp_path}/model", "--threads", "1"]
    assert bench.main([*words, "--minutes", "0"]) == 1, "nothing may begin"
    assert bench.main(words) == 0
    kept = {path: path.read_bytes() for path in (tmp_path / "cache").iterdir()}
    assert len(kept) == 4
    assert bench.main([*words, "--minutes", "0"]) == 0, "everything is there"
    assert {path: path.read_bytes() for path in (tmp_path / "cache").iterdir()} == kept
    found = json.loads((tmp_path / "my3dgen_evidence.json").read_text())
    ways = found["columns"][1:]
    assert ways == list(bench.ARMS)[:4]
    inversion, lora, full, _ = ({row[0]: row[1 + n] for row in found["rows"]} for n in range(len(ways)))
    assert set(inversion) == {*bench.FIGURES.values(), "trained numbers", "kB"}
    assert all(value is not None for value in inversion.values()), "every figure is measured"
    assert inversion["other heads as before, dB"] == 99.0 > lora["other heads as before, dB"]
    assert inversion["trained numbers"] == 0 < lora["trained numbers"] < full["trained numbers"]
    assert 0 <= lora["seen side, mark found"] <= 1
    assert lora["photos, dB"] > inversion["photos, dB"]
    assert all(-1 <= lora[f"{what}, SSIM"] <= 1 for what in ("photos", "seen side", "unseen side", "other expressions"))
    assert found["details"]["symmetry"]["symmetric"]["subjects"] == 1


def test_what_is_measured_is_what_a_user_gets() -> None:
    run, plan = My3DGenRun(method=My3DGenSettings()), bench.Plan()
    assert (run.method.anchor_steps, run.method.anchor_side) == (plan.anchor_steps, plan.anchor_side)
    assert (run.optim.steps, run.optim.lr, run.optim.warmup) == (plan.steps, plan.lr, bench.WARMUP)
    assert run.data.batch_size == plan.batch


bench_plan = bench.Plan(anchor_steps=3, anchor_side=8, steps=6)


def test_speed_is_measured_on_a_generator_that_stays_as_it_was() -> None:
    generator = tiny().requires_grad_(False)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    views = my3dgen_speed.speed(generator, "cpu", repeats=1)
    step, peak = my3dgen_speed.tuning(generator, "cpu", repeats=1)
    assert min(views.values()) > 0
    assert views.keys() == {"kept", "made"}
    assert step > 0
    assert peak is None, "only a GPU has a peak of its own"
    after = generator.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
