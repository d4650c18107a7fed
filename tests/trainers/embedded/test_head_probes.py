"""The identity networks of heads: who is drawn, what is learned, what is left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lrdiff.probe import load_probe
from lrdiff.rng import stream
from lrdiff.world.heads import IDENTITY, MARKS
from tests.bench.heads_identity import verification
from tests.trainers.embedded.conftest import micro_budget
from trainers.config import OptimConfig, PrecisionConfig
from trainers.embedded import manifest
from trainers.embedded.head_probes import HeadProbeConfig, TrainHeadProbe, disturbed, people, write_people
from trainers.embedded.make import make
from trainers.engine import Engine
from trainers.loop import fit


def test_pictures_of_one_person_share_identity_and_mark_and_nothing_else() -> None:
    persons, angles = people(40, 3, stream(0, "people"))
    by_person = persons.identity.reshape(40, 3, IDENTITY)
    assert torch.equal(by_person[:, 0], by_person[:, 2])
    assert not torch.equal(by_person[0], by_person[1])
    marks = persons.marks().reshape(40, 3, len(MARKS))
    assert torch.equal(marks[:, 0], marks[:, 1])
    assert set(marks[:, 0].sum(1).tolist()) == {0.0, 1.0}, "some have one mark, some none"
    assert bool(marks.sum((0, 1)).gt(0).all()), "every mark occurs"
    assert len(set(persons.smile[:3, 0].tolist())) == 3
    assert len(set(angles[:3, 0].tolist())) == 3


def test_making_leaves_a_probe_that_loads_and_a_line_in_the_manifest(tmp_path: Path) -> None:
    make("heads-probe-b", budget=micro_budget(), assets=tmp_path / "assets", cache=tmp_path / "cache")
    probe = load_probe("heads-probe-b", tmp_path / "assets" / "models")
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    torch.testing.assert_close(probe.identity(pictures).norm(dim=1), torch.ones(2))
    assert probe.attributes(pictures) == {}
    assert manifest.read(tmp_path / "assets")["heads-probe-b"]["seed"] == 47
    assert manifest.problems(tmp_path / "assets") == []


def test_it_learns_to_find_the_other_picture_of_a_person(tmp_path: Path) -> None:
    write_people(tmp_path / "people.npy", 12, 2, 0)
    assert np.load(tmp_path / "people.npy").shape == (24, 3, 64, 64)
    torch.manual_seed(0)
    config = HeadProbeConfig(pictures=tmp_path / "people.npy", views=2, widths=(8, 16, 24), people=12)
    trainer = TrainHeadProbe(config)
    first, _ = trainer(trainer.batch(0, stream(0, "batch")), stream(0, "forward"))
    fit(trainer, OptimConfig(steps=25, lr=3e-3, warmup=3), engine=Engine(PrecisionConfig(device="cpu")), seed=0)
    last, metrics = trainer(trainer.batch(0, stream(0, "batch")), stream(0, "forward"))
    assert float(last.detach()) < 0.7 * float(first.detach())
    assert float(metrics["found"]) > 0.5
    images = trainer.batch(0, stream(0, "batch"))["images"]
    assert torch.equal(images, trainer.batch(0, stream(0, "batch"))["images"])
    assert not torch.equal(disturbed(images, stream(1, "other")), images)


def test_verification_counts_pairs() -> None:
    a, b, c = torch.eye(3)
    owner = torch.tensor([0, 0, 1, 1])
    assert verification(torch.stack([a, a, b, b]), owner) == [0.0, 1.0, 1.0, 0.0]
    rate, accepted, own, _ = verification(torch.stack([a, b, a, c]), owner)
    assert rate > 0.4
    assert accepted == 0.0
    assert own == 0.0
