"""The shipped photos of a person: what the recipe writes, and of one person."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from lrdiff.assets import ASSETS
from lrdiff.images import read_image, to_tensor
from lrdiff.probe import load_probe
from trainers.embedded.people import PEOPLE, PHOTOS, write_people
from trainers.my3dgen.photos import read_cameras, read_photos


def test_people_are_written_as_they_are_shipped(tmp_path: Path) -> None:
    files, shipped = write_people(tmp_path), ASSETS / "people"
    assert sorted(files) == sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert [path.relative_to(tmp_path) for path in sorted(files)] == [
        path.relative_to(shipped) for path in sorted(shipped.rglob("*")) if path.is_file()
    ]
    for path in files:
        other = shipped / path.relative_to(tmp_path)
        if path.suffix == ".png":  # processors differ in the last bits
            apart = to_tensor(read_image(path)) - to_tensor(read_image(other))
            assert float(apart.abs().mean()) < 1 / 255
        else:
            one, two = (json.loads(file.read_text()) for file in (path, other))
            assert one.keys() == two.keys()
            torch.testing.assert_close(*(torch.tensor(list(cameras.values())) for cameras in (one, two)))


def test_the_photos_show_one_person() -> None:
    for name in PEOPLE:
        folder = ASSETS / "people" / name
        photos, names, notes = read_photos(folder / "photos", 128)
        assert (len(photos), notes, len(read_cameras(folder / "cameras.json", names))) == (PHOTOS, [], PHOTOS)
        features = load_probe("heads-probe-a").identity(photos)
        assert float((features @ features.T).mean()) > 0.8
