"""`lrdiff triplane` from the command line."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from app import cli
from lrdiff.artifact import Artifact, Header
from lrdiff.images import read_image, save_png, to_tensor
from lrdiff.triplane import TriplaneGenerator, eg3d_config
from lrdiff.triplane.cameras import frontal
from lrdiff.triplane.lora import LoraConfig, Personal
from lrdiff.triplane.personal import ADAPTER, ANCHORS, CAMERAS, COMPONENT
from lrdiff.triplane.store import fingerprint, load, save, save_directions
from tests.lrdiff.triplane.pickling import write
from tests.lrdiff.triplane.tiny import MINI, tiny


class Calls:
    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.args


def test_import_writes_a_folder_and_says_whose_weights_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = eg3d_config("ffhq512")
    with torch.device("meta"):
        generator = TriplaneGenerator(config)
    generator.load_state_dict({k: torch.zeros(v.shape) for k, v in generator.state_dict().items()}, assign=True)
    path, out = write(tmp_path / "net.pkl", generator, depth_resolution=24), tmp_path / "generator"
    assert cli.main(["triplane", "import", str(path), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}\n"
    assert "512 px, rendered at 6 px with 24 + 48 depths" in said.err
    assert "official EG3D weights: research/evaluation only; supplied by the user" in said.err
    found = load(out)
    assert found.config.render.coarse == 24
    assert sum(p.numel() for p in found.parameters()) == 30_662_136
    assert cli.main(["triplane", "import", str(path), "--out", str(out)]) == 2
    assert "not empty" in capsys.readouterr().err
    for large in (path, out / "generator.safetensors"):
        large.unlink()


def test_wrong_use_ends_with_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flag, path = tmp_path / "ran", tmp_path / "net.pkl"
    path.write_bytes(pickle.dumps(Calls(os.system, f"touch {flag}"), protocol=4))
    for words, message in (
        (["triplane"], "lrdiff triplane what? import"),
        (["triplane", "nope"], "lrdiff triplane what? import"),
        (["triplane", "import"], "takes one .pkl file, not 0"),
        (["triplane", "import", str(tmp_path / "absent.pkl")], "absent.pkl: cannot be read"),
        (["triplane", "import", str(path), "--out", str(tmp_path / "x")], "system, which no EG3D file needs"),
    ):
        assert cli.main(words) == 2
        assert message in capsys.readouterr().err
    assert not flag.exists()
    assert cli.main(["triplane", "--help"]) == 0
    assert cli.main(["triplane", "import", "--help"]) == 0
    assert "Nothing in it is executed" in " ".join(capsys.readouterr().out.split())


def test_render_turns_a_random_head_and_a_person(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = tiny(config=MINI)
    save(generator, tmp_path / "model", {"made": "by a test"})
    out = tmp_path / "turn.gif"
    words = ["triplane", "render", str(tmp_path / "model"), "--frames", "3", "--out", str(out)]
    assert cli.main(words) == 0
    assert capsys.readouterr().out == f"{out}\n"
    plain = out.read_bytes()
    personal = Personal(generator, LoraConfig())
    with torch.no_grad():
        for _, parameter in personal.named_parameters():
            parameter += 0.1
    anchors = {ANCHORS: generator.mapping(torch.randn(2, 24))[:, :1], CAMERAS: frontal(MINI, 2)}
    config = {"r": 1, "alpha": 1.0, "form": "published", "styles": True, "extras": True}
    header = Header("my3dgen", ADAPTER, config, "model", fingerprint(tmp_path / "model"), component=COMPONENT)
    adapter = tmp_path / "person.safetensors"
    Artifact(personal.state() | anchors, header).save(adapter)
    assert cli.main([*words, "--adapter", str(adapter), "--photo", "1"]) == 0
    assert out.read_bytes() != plain
    capsys.readouterr()
    for more, message in (
        (["--adapter", str(adapter), "--photo", "2"], "photo: 2 is not among the 2 photos"),
        (["--photo", "1"], "photo: has no effect without adapter"),
    ):
        assert cli.main([*words, *more]) == 2
        assert message in capsys.readouterr().err
    assert cli.main([*words[:-1], str(tmp_path / "a.avi")]) == 2
    assert ".gif, .webp or .mp4" in capsys.readouterr().err


@pytest.fixture
def person(tmp_path: Path) -> tuple[str, str]:
    """Return a generator with directions, and the adapter of somebody with three photos."""
    torch.manual_seed(0)
    generator = tiny(config=MINI)
    folder = tmp_path / "model"
    save(generator, folder, {"made": "by a test"})
    save_directions(folder, {"smile": generator.mapping(torch.randn(1, 24))[0, 0].detach()})
    personal = Personal(generator, LoraConfig())
    anchors = {ANCHORS: generator.mapping(torch.randn(3, 24))[:, :1].detach(), CAMERAS: frontal(MINI, 3)}
    config = {"r": 1, "alpha": 1.0, "form": "published", "styles": True, "extras": True}
    header = Header("my3dgen", ADAPTER, config, "model", fingerprint(folder), component=COMPONENT)
    Artifact(personal.state() | anchors, header).save(tmp_path / "person.safetensors")
    return str(folder), str(tmp_path / "person.safetensors")


def test_render_shows_depth_normals_mixtures_edits_and_changes(
    person: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, adapter = person
    out = tmp_path / "turn.gif"
    words = ["triplane", "render", folder, "--frames", "2", "--out", str(out)]
    random = [[], ["--seed", "1"], ["--show", "depth"], ["--show", "normals"], ["--edit", "smile=2"]]
    own = [[], ["--photo", "1"], ["--to", "1"], ["--mix", "0"], ["--mix", "1"], ["--edit", "smile=0.2"]]
    seen = set()
    for more in [*random, *(["--adapter", adapter, *choice] for choice in own)]:
        assert cli.main([*words, *more]) == 0, more
        seen.add(out.read_bytes())
    assert len(seen) == len(random) + len(own), "every option shows something else"
    capsys.readouterr()
    assert cli.main([*words, "--adapter", adapter, "--edit", "smile=100"]) == 0
    assert "ends at the edge of what the photos span" in capsys.readouterr().err
    for more, message in (
        (["--mix", "0"], "mix: has no effect without adapter"),
        (["--to", "1"], "to: has no effect without adapter"),
        (["--edit", "smile"], "'smile' is not NAME=AMOUNT"),
        (["--edit", "frown=1"], "has no direction 'frown'; known: smile"),
        (["--adapter", adapter, "--to", "3"], "to: 3 is not among the 3 photos"),
        (["--adapter", folder], "holds no adapter.safetensors"),
    ):
        assert cli.main([*words, *more]) == 2
        assert message in capsys.readouterr().err


def test_restore_fills_in_and_enlarges(
    person: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, adapter = person
    picture, small, mask, out = (tmp_path / f"{name}.png" for name in ("photo", "small", "mask", "out"))
    photo = torch.rand(3, 32, 32) * 2 - 1
    good = torch.ones(3, 32, 32)
    good[:, 8:16] = -1
    for image, path in (
        (photo, picture),
        (photo[:, ::4, ::4], small),
        (good, mask),
        (0 * good + 1, tmp_path / "all.png"),
    ):
        save_png(image, path)
    words = ["triplane", "restore", folder, "--adapter", adapter, "--steps", "2", "--out", str(out)]
    assert cli.main([*words, "--picture", str(picture), "--mask", str(mask)]) == 0
    filled, before = (to_tensor(read_image(path)) for path in (out, picture))
    changed = (filled - before).abs().amax(0) > 0
    assert bool(changed[8:16].any())
    assert not bool(changed[:8].any())
    assert not bool(changed[16:].any())
    assert cli.main([*words, "--picture", str(small)]) == 0
    assert to_tensor(read_image(out)).shape == (3, 32, 32)
    capsys.readouterr()
    for more, message in (
        (["--picture", str(picture)], "is no smaller than the generator's 32"),
        (["--picture", str(picture), "--mask", str(tmp_path / "all.png")], "mask: is all white or all black"),
        ([], "needs --adapter and --picture"),
        (["--picture", str(tmp_path / "absent.png")], "absent.png"),
    ):
        assert cli.main([*words, *more]) == 2
        assert message in capsys.readouterr().err


def test_mesh_writes_a_glb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    save(tiny(config=MINI), tmp_path / "model", {"made": "by a test"})
    out = tmp_path / "head.glb"
    words = ["triplane", "mesh", str(tmp_path / "model"), "--resolution", "16", "--out", str(out)]
    assert cli.main([*words, "--level", "5"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}\n"
    assert "triangles" in said.err
    assert out.read_bytes()[:4] == b"glTF"
    assert cli.main([*words, "--level", "1e6"]) == 2
    assert "level: 1e+06 is not between the extremes" in capsys.readouterr().err
