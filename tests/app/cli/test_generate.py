"""`lrdiff generate` and `lrdiff parameters` with a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from app.commands.generate import _show
from lrdiff.generate import Progress
from lrdiff.metadata import read_parameters
from tests.app.cli.conftest import Lrdiff


@pytest.fixture
def quick(tiny: Path) -> list[str]:
    """Flags of a generation that takes a moment."""
    return ["--model", str(tiny), "--steps", "2", "--out", "images"]


def test_images_are_named_on_stdout_and_carry_their_parameters(
    quick: list[str], finished: Path, lrdiff: Lrdiff
) -> None:
    code, out, err = lrdiff(
        "generate", *quick, "--adapter", f"{finished}:0.5", "--prompt", "a cube", "--prompt", "a ball", "--count", 2
    )
    assert code == 0, err
    paths = [Path(line) for line in out.splitlines()]
    assert len(paths) == 4
    assert all(path.is_file() for path in paths)
    assert "4 images in " in err
    code, out, _ = lrdiff("parameters", paths[3])
    record = json.loads(out)
    assert (code, record["prompt"], record["seed"], record["adapters"][0]["weight"]) == (0, "a ball", 1, 0.5)
    code, out, _ = lrdiff("parameters", "--text", paths[3])
    assert out.startswith("a ball\nSteps: 2, ")


def test_the_same_command_gives_the_same_bytes(quick: list[str], lrdiff: Lrdiff) -> None:
    found = []
    for _ in range(2):
        _, out, _ = lrdiff("generate", *quick, "--prompt", "a cube", "--seed", 3)
        found.append(Path(out.strip()).read_bytes())
    assert found[0] == found[1]


def test_an_image_is_made_again_from_itself(quick: list[str], lrdiff: Lrdiff) -> None:
    _, out, _ = lrdiff("generate", *quick, "--prompt", "a cube", "--guidance", 3)
    first = Path(out.strip())
    code, out, err = lrdiff("generate", "--config", first, "--out", "again")
    assert code == 0, err
    assert Path(out.strip()).read_bytes() == first.read_bytes()


def test_one_image_of_several_is_made_again_alone(quick: list[str], lrdiff: Lrdiff) -> None:
    """Its values may differ by rounding: a batch of another size may be added up in another order."""
    _, out, _ = lrdiff("generate", *quick, "--prompt", "a cube", "--count", 2, "--guidance", 3)
    one, second = (Path(line) for line in out.splitlines())
    code, out, err = lrdiff("generate", "--config", second, "--out", "again")
    assert code == 0, err
    again = Path(out.strip())
    assert read_parameters(again) == read_parameters(second)
    assert _furthest(again, second) <= 1
    assert _furthest(one, second) > 1


def _furthest(one: Path, other: Path) -> int:
    """Return the largest difference of two pictures' values, in steps of 255."""
    with Image.open(one) as first, Image.open(other) as second:
        return max(high for _, high in ImageChops.difference(first, second).getextrema())


def test_grids_over_scale_and_seed(quick: list[str], finished: Path, lrdiff: Lrdiff) -> None:
    words = ["--adapter", finished, "--scale", "0", "1", "--count", 2, "--grid"]
    code, out, err = lrdiff("generate", *quick, *words)
    assert code == 0, err
    assert len(out.splitlines()) == 5
    assert out.splitlines()[-1].endswith("-grid.png")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a cube"], "unexpected word 'a cube'; a prompt follows --prompt"),
        (["--promt", "a cube"], "unknown flag --promt; did you mean --prompt?"),
        (["--steps", "0"], "flags: steps: Must be greater than 0 (got 0)"),
        (["--seed", "1.5"], "flags: seed: Must be a whole number"),
        (["--sampler", "magic"], "flags: sampler: Must be 'ddim'"),
        (["--eta", "0.5"], "eta 0.5 has no effect with sampler dpm++2m"),
        (["--prompt"], "flags: prompt: "),
        (["--model", "nothing"], "no such folder and no such shipped model"),
        (["--config", "nowhere.png"], "nowhere.png: cannot be read as an image"),
        (["--config", "nowhere.txt"], "nowhere.txt is neither a .toml nor a .json file"),
        (["--adapter", "nowhere.safetensors:1"], "nowhere.safetensors"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refused_with_one_message(words: list[str], message: str, lrdiff: Lrdiff) -> None:
    code, out, err = lrdiff("generate", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_progress_is_one_line_that_ends_with_the_last_image(capsys: pytest.CaptureFixture[str]) -> None:
    for saved, step in (((), 1), ((), 2), ((Path("a.png"),), 2)):
        _show(Progress(1, saved, step, 2, (), None))
    lines = capsys.readouterr().err.split("\n")
    assert [len(lines), lines[1]] == [2, ""]
    assert [part.strip() for part in lines[0].split("\r")[1:]] == [
        "images 0/1  step 1/2 of this batch",
        "images 0/1  step 2/2 of this batch",
        "images 1/1  step 2/2 of this batch",
    ]


def test_an_unwritable_folder_is_refused(tiny: Path, lrdiff: Lrdiff) -> None:
    Path("file").write_text("")
    code, _, err = lrdiff("generate", "--model", tiny, "--out", "file/images")
    assert code == 2
    assert "file/images" in err
    assert "Traceback" not in err


def test_parameters_of_what_has_none(photos: Path, lrdiff: Lrdiff) -> None:
    code, _, err = lrdiff("parameters", photos / "0.png")
    assert (code, "carries no parameters" in err) == (2, True)
    code, _, err = lrdiff("parameters")
    assert (code, "takes one image, not 0" in err) == (2, True)
