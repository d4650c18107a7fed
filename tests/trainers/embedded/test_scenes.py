"""Sets of pictures on disk: complete shards, resumable, refused when they are another set."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lrdiff.errors import DataError
from lrdiff.world.scene import Scene
from lrdiff.world.toys import render, sample_scenes
from trainers.embedded.scenes import VIEWS, SceneSet, render_set
from trainers.embedded.shards import Shards


def test_pictures_and_records_belong_together(scenes: Shards) -> None:
    assert scenes.count == 36
    records = scenes.records()
    expected = sample_scenes(1, range(36))
    assert [Scene.from_dict(record) for record in records] == expected
    chosen = torch.tensor([3, 25])
    again = render([expected[3], expected[25]]).images
    assert float((scenes.images(chosen) - again).abs().max()) <= 1 / 127.5


def test_only_missing_shards_are_rendered(tmp_path: Path) -> None:
    wanted = SceneSet("scenes", 4, 4, 2)
    render_set(tmp_path, wanted)
    kept, lost = tmp_path / "0000.npy", tmp_path / "0001.npy"
    bytes_before, time_before = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    assert render_set(tmp_path, wanted).count == 4
    assert lost.read_bytes() == bytes_before
    assert kept.stat().st_mtime_ns == time_before


def test_another_set_is_refused(tmp_path: Path) -> None:
    render_set(tmp_path, SceneSet("scenes", 4, 1, 1))
    with pytest.raises(DataError, match="another set"):
        render_set(tmp_path, SceneSet("scenes", 5, 1, 1))


def test_subjects_come_with_all_their_views() -> None:
    part = SceneSet("subjects", 1, 2 * VIEWS, VIEWS).part(1)
    assert [record["subject"] for _, record in part] == [1] * VIEWS
    looks = {scene.objects[0].look for scene, _ in part}
    assert len(looks) == 1
    assert len({scene.camera for scene, _ in part}) == VIEWS


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rendered scenes"):
        Shards.open(tmp_path)
