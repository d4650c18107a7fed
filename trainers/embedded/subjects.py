"""The shipped subjects as folders of pictures: what a person would bring, and what is kept back to judge by."""

from __future__ import annotations

from pathlib import Path

from lrdiff.files import write_bytes, write_json
from lrdiff.images import save_png
from lrdiff.world.captions import PLACE_PHRASES
from lrdiff.world.subjects import SHIPPED, Subject, subject_scene
from lrdiff.world.toys import PLACES, render

SIZE = 256
TRAIN, HELD_OUT = 6, 4


def write_subjects(folder: Path, seed: int = 0) -> list[Path]:
    """Write `NAME/train/*.png` with captions, `NAME/held-out/*.png` and `NAME/subject.json` for every shipped subject.

    Args:
        folder: Where the subjects' folders go.
        seed: Of places, cameras and lights.

    Returns:
        All files, in order.
    """
    found: list[Path] = []
    for number, (name, subject) in enumerate(SHIPPED.items()):
        found += _write(folder / name, subject, seed, number)
    return found


def _write(folder: Path, subject: Subject, seed: int, number: int) -> list[Path]:
    count = TRAIN + HELD_OUT
    scenes = [subject_scene(subject, seed, number * count + index) for index in range(count)]
    images = render(scenes, size=SIZE).images
    paths = []
    for index, image in enumerate(images):
        part = "train" if index < TRAIN else "held-out"
        path = folder / part / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(image, path)
        paths.append(path)
        if part == "train":
            where = PLACE_PHRASES[PLACES[scenes[index].place]][0]
            caption = path.with_suffix(".txt")
            write_bytes(caption, f"a photo of sks {subject.noun} {where}\n".encode())
            paths.append(caption)
    write_json(folder / "subject.json", {"noun": subject.noun, "seed": seed, "first_picture": number * count})
    return [*paths, folder / "subject.json"]
