"""Published pickles give up their tensors and run nothing."""

from __future__ import annotations

import builtins
import dataclasses
import io
import os
import pickle
import struct
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrdiff.errors import DataError, ModelError
from lrdiff.triplane import TriplaneGenerator, eg3d_config
from lrdiff.triplane.cameras import frontal
from lrdiff.triplane.pickles import read_pickle
from lrdiff.triplane.published import import_pickle, match
from lrdiff.triplane.store import load, save
from tests.lrdiff.triplane.pickling import SOURCE, foreign_modules, write
from tests.lrdiff.triplane.tiny import TINY, tiny

FOREIGN = ("dnnlib", "torch_utils", "training")


def test_a_pickle_of_the_same_structure_round_trips(tmp_path: Path) -> None:
    generator = tiny()
    path = write(tmp_path / "net.pkl", generator, depth_resolution=5, ray_start=2.0, ray_end="auto", white_back=True)
    assert SOURCE.encode() in path.read_bytes()
    config = import_pickle(path, tmp_path / "out", {"tiny": TINY})
    render = dataclasses.replace(TINY.render, coarse=5, near=2.0, white=True, side=6)
    assert config == dataclasses.replace(TINY, render=render)
    back = load(tmp_path / "out")
    assert back.config == config
    assert back.state_dict().keys() == generator.state_dict().keys()
    assert all(torch.equal(back.state_dict()[name], value) for name, value in generator.state_dict().items())
    assert not any(name.partition(".")[0] in FOREIGN for name in sys.modules)
    z, camera = torch.randn(1, 8), frontal(TINY)
    same = TriplaneGenerator(config)
    same.load_state_dict(generator.state_dict())
    assert torch.equal(back(z, camera).image, same(z, camera).image)


def test_the_512_key_tree_comes_out_of_a_pickle_whole(tmp_path: Path) -> None:
    config = eg3d_config("ffhq512")
    # Every tensor is one number seen through strides of 0, so that the file stays small.
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in TriplaneGenerator(config).state_dict().items()}
        generator = TriplaneGenerator(config)
    generator.load_state_dict({name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}, assign=True)
    path = write(tmp_path / "net.pkl", generator)
    assert path.stat().st_size < 200_000
    with pytest.raises(DataError, match="beyond its storage"):
        read_pickle(path)
    for parameter in [*generator.parameters(), *generator.buffers()]:
        parameter.data = torch.zeros(parameter.shape)
    pickled = read_pickle(write(tmp_path / "whole.pkl", generator))
    assert len(pickled.tensors) == 176
    assert sum(v.numel() for k, v in pickled.tensors.items() if k in dict(generator.named_parameters())) == 30_662_136
    (tmp_path / "whole.pkl").unlink()  # 126 MB
    found = match(path, pickled)
    assert found == dataclasses.replace(config, render=dataclasses.replace(config.render, side=6))


def test_gains_and_settings_of_the_file_win(tmp_path: Path) -> None:
    generator = tiny()
    generator.backbone.mapping.embed.weight_gain = 0.125
    config = match(Path("net.pkl"), read_pickle(write(tmp_path / "net.pkl", generator)), {"tiny": TINY})
    assert config.gains == {"backbone.mapping.embed": (0.125, 1.0)}
    pickled = read_pickle(tmp_path / "net.pkl")
    assert pickled.settings["_init_kwargs"] == {"channel_base": 32768, "mapping_kwargs": {"num_layers": 2}}
    assert "reg" not in pickled.settings["rendering_kwargs"], "a numpy number counts as absent"


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_both_names_of_numpys_module_are_tolerated(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Number:
        def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
            return fake.scalar, (np.dtype("f8"), struct.pack("<d", 0.25))

    def scalar(*_: Any) -> None:
        raise AssertionError("only its name is written")

    fake: Any = types.ModuleType("numpy.core.multiarray")
    scalar.__module__, scalar.__qualname__, fake.scalar = fake.__name__, "scalar", scalar
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, fake.__name__, fake)
        number = Number() if module == fake.__name__ else np.float64(0.25)  # numpy 2 writes its own new name
        path = write(tmp_path / "net.pkl", tiny(), c_scale=number)
    assert module.encode() in path.read_bytes()
    assert match(path, read_pickle(path), {"tiny": TINY}).condition_scale == 1.0


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.args


def hostile(flag: Path) -> dict[str, Any]:
    """Return objects that leave a file behind when they are unpickled carelessly."""
    command, code = f"touch {flag}", f"__import__('pathlib').Path({str(flag)!r}).touch()"
    inner = io.BytesIO()
    torch.save({"x": Calls(os.system, command)}, inner)
    return {
        "os.system": Calls(os.system, command),
        "eval": Calls(builtins.eval, code),
        "exec": Calls(builtins.exec, code),
        "import": Calls(builtins.__import__, "antigravity"),
        "open": Calls(builtins.open, str(flag), "w"),
        "getattr": Calls(getattr, "x", "upper"),
        "subprocess": Calls(subprocess.check_call, ["touch", str(flag)]),
        "torch.hub": Calls(torch.hub.load, str(flag.parent), "x"),
        "torch.load": Calls(torch.load, str(flag)),
        "storage": Calls(torch.storage._load_from_bytes, inner.getvalue()),
    }


@pytest.mark.parametrize("kind", list(hostile(Path("x"))))
@pytest.mark.parametrize("place", ["instead", "beside", "in the settings"])
def test_hostile_pickles_run_nothing_and_are_refused(kind: str, place: str, tmp_path: Path) -> None:
    flag = tmp_path / "ran"
    bad = hostile(flag)[kind]
    path = tmp_path / "net.pkl"
    if place == "instead":
        path.write_bytes(pickle.dumps(bad, protocol=4))
    elif place == "beside":
        write(path, tiny(), extra={"D": bad})
    else:
        write(path, tiny(), depth_resolution=bad)
    before = set(sys.modules)
    with pytest.raises(DataError, match=r"net\.pkl"):
        import_pickle(path, tmp_path / "out", {"tiny": TINY})
    assert not flag.exists()
    assert not (tmp_path / "out").exists()
    assert "antigravity" not in set(sys.modules) - before


def test_hostile_pickles_do_run_when_read_carelessly(tmp_path: Path) -> None:
    """Without this, the test above would pass with harmless files too."""
    flag = tmp_path / "ran"
    pickle.loads(pickle.dumps(hostile(flag)["eval"], protocol=4))
    assert flag.exists()


def test_a_pickle_cannot_change_the_functions_that_read_it(tmp_path: Path) -> None:
    # GLOBAL, then BUILD with (None, {"value": "x"}): the opcodes that set attributes of whatever was named.
    path = tmp_path / "net.pkl"
    for name in ("torch_utils.persistence\n_reconstruct_persistent_obj", "torch.storage\n_load_from_bytes"):
        path.write_bytes(b"\x80\x04c" + name.encode() + b"\nN}X\x05\x00\x00\x00valueX\x01\x00\x00\x00xs\x86b.")
        with pytest.raises(DataError, match="changes the functions"):
            read_pickle(path)
    assert read_pickle(write(path, tiny())).tensors


def test_dotted_names_reach_nothing(tmp_path: Path) -> None:
    path = tmp_path / "net.pkl"
    path.write_bytes(b"\x80\x04\x8c\x17torch_utils.persistence\x8c\x0bos.system()\x93.")
    with pytest.raises(DataError, match="no EG3D network"):
        read_pickle(path)


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "list", "persistent id", "no generator", "cycle"])
def test_what_is_no_generator_is_refused(damage: str, tmp_path: Path) -> None:
    path = write(tmp_path / "net.pkl", tiny())
    data = path.read_bytes()
    if damage == "cycle":
        with foreign_modules() as modules:
            module = modules["training.triplane"].OSGDecoder()
            module.__dict__["_modules"] = {"again": module}
            easy = modules["dnnlib.util"].EasyDict
            reconstruct = modules["torch_utils.persistence"]._reconstruct_persistent_obj
            meta = easy(class_name="TriPlaneGenerator", state={"_modules": {"x": module}})
            data = pickle.dumps({"G_ema": Calls(reconstruct, meta)}, protocol=4)
    made = {
        "empty": b"",
        "text": b"hello, I am not a pickle",
        "truncated": data[: len(data) // 2],
        "list": pickle.dumps([1, 2]),
        "persistent id": b"\x80\x04X\x01\x00\x00\x00xQ.",
        "no generator": pickle.dumps({"G_ema": {"a": 1}}),
        "cycle": data,
    }[damage]
    path.write_bytes(made)
    with pytest.raises(DataError, match=r"net\.pkl"):
        read_pickle(path)


def test_other_networks_are_refused_with_the_first_difference(tmp_path: Path) -> None:
    path = write(tmp_path / "net.pkl", tiny())
    other = dataclasses.replace(TINY, channels=(12, 10, 7))
    with pytest.raises(DataError, match=r"next is other, where \d+ differ, the first being backbone\.synthesis\.b16"):
        match(path, read_pickle(path), {"other": other})
    with pytest.raises(DataError, match="cannot be read"):
        read_pickle(tmp_path / "absent.pkl")


def test_folders_are_checked(tmp_path: Path) -> None:
    save(tiny(), tmp_path / "out", {"made": "by a test"})
    with pytest.raises(ModelError, match="not empty"):
        save(tiny(), tmp_path / "out", {})
    data = (tmp_path / "out" / "generator.safetensors").read_bytes()
    (tmp_path / "out" / "generator.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="not a generator's folder"):
        load(tmp_path / "out")
    with pytest.raises(ModelError, match="lrdiff triplane import"):
        load(tmp_path / "absent")
