"""`lrdiff train`: the whole path with a tiny model, and everything it refuses."""

from __future__ import annotations

import json
import logging
import os
import signal
import tomllib
from pathlib import Path

import pytest
import torch

from app.cli import main
from tests.app.cli.conftest import Lrdiff
from trainers.rundir import open_run


def test_a_run_says_where_its_result_is_and_how_to_use_it(finished: Path, tiny: Path, lrdiff: Lrdiff) -> None:
    code, _, err = lrdiff("train", "lora", "--config", finished / "run.json", "--out", "again")
    assert code == 0, err
    assert "result:     again/adapter.safetensors (" in err
    line = next(line for line in err.splitlines() if line.startswith("to use it:")).removeprefix("to use it:  ")
    assert line == f"lrdiff generate --model {tiny} --adapter again:1 --prompt 'a photo of sks' --count 4 --out outputs"
    assert "step 4/4" in err
    assert "Traceback" not in err


def test_a_run_repeated_from_its_record_has_the_same_config_and_result(finished: Path, lrdiff: Lrdiff) -> None:
    assert lrdiff("train", "lora", "--config", finished, "--out", "again")[0] == 0
    first, second = open_run(finished).read(), open_run(Path("again")).read()
    assert first["config"] == second["config"]
    assert first["artifact"]["sha256"] == second["artifact"]["sha256"]


def test_flags_go_over_the_file(photos: Path, short: list[str], lrdiff: Lrdiff) -> None:
    Path("a.toml").write_text(f'seed = 5\n[data]\nimages = "{photos}"\nflip = true\n[optim]\nlr = 0.5\nwarmup = 3\n')
    words = ["--config", "a.toml", "--optim.lr", "0.25", "--data.no-flip", "--out", "run", *short]
    assert lrdiff("train", "lora", *words)[0] == 0
    config = open_run(Path("run")).read()["config"]
    assert (config["seed"], config["optim"]["lr"], config["optim"]["warmup"]) == (5, 0.25, 3)
    assert config["data"]["flip"] is False


def test_the_default_folder_is_named_after_method_and_images(photos: Path, short: list[str], lrdiff: Lrdiff) -> None:
    relative = os.path.relpath(photos)
    for _ in range(2):
        assert lrdiff("train", "lora", "--data.images", relative, *short)[0] == 0
    assert sorted(path.name for path in Path("runs").glob("[!.]*")) == ["lora-my-mug-001", "lora-my-mug-002"]
    # Resuming from elsewhere needs the folder in full.
    assert open_run(Path("runs/lora-my-mug-001")).read()["config"]["data"]["images"] == str(photos)


def test_a_dry_run_prints_settings_and_plan_and_writes_nothing(
    photos: Path, short: list[str], lrdiff: Lrdiff, tmp_path: Path
) -> None:
    code, out, err = lrdiff("train", "lora", "--data.images", photos, "--method.r", 2, "--dry-run", *short)
    assert code == 0, err
    settings = tomllib.loads(out)
    assert (settings["method"]["r"], settings["optim"]["steps"]) == (2, 4)
    assert "parameters on" in err
    assert "would be written to: runs/lora-my-mug-001" in err
    assert list(tmp_path.iterdir()) == []
    Path("a.toml").write_text(out)
    assert lrdiff("train", "lora", "--config", "a.toml", "--out", "run")[0] == 0
    assert open_run(Path("run")).read()["config"]["method"]["r"] == 2


def test_ctrl_c_stops_saves_and_can_be_resumed(photos: Path, short: list[str], lrdiff: Lrdiff) -> None:
    interrupt = CtrlC("step 2/")
    logging.getLogger("trainers").addHandler(interrupt)
    try:
        code, _, err = lrdiff("train", "lora", "--data.images", photos, "--out", "run", *short)
    finally:
        logging.getLogger("trainers").removeHandler(interrupt)
    assert code == 0, err
    assert "to go on:   lrdiff train --resume run" in err
    assert open_run(Path("run")).read()["state"] == "stopped"
    code, _, err = lrdiff("train", "--resume", "run")
    assert code == 0, err
    record = open_run(Path("run")).read()
    assert (record["state"], record["step"]) == ("finished", 4)


class CtrlC(logging.Handler):
    """Presses Ctrl-C once, when the log says something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def emit(self, record: logging.LogRecord) -> None:
        if self.text and self.text in record.getMessage():
            self.text = ""
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "train what?"),
        (["tensor-lorra"], "unknown method 'tensor-lorra'; known methods: tensor-lora"),
        (["--optim.lr", "1"], "the method comes first"),
        (["--resume"], "--resume: needs a value"),
        (["lora"], "data.images: no pictures to learn from; give a folder with --data.images DIR"),
        (["lora", "photos"], "unexpected word 'photos'"),
        (["lora", "--data.images", "nowhere"], "nowhere does not exist"),
        (["lora", "--data.images", "."], "nothing that is a picture"),
        (["lora", "--optim.lr", "-1"], "flags: optim.lr: Must be greater than 0 (got -1"),
        (["lora", "--optim.steps", "x"], "flags: optim.steps: Must be a whole number"),
        (["lora", "--optim.schedule", "cubic"], "flags: optim.schedule: Must be 'constant', 'linear'"),
        (["lora", "--method.transform-rank", "3"], "unknown flag --method.transform-rank"),
        (["lora", "--config", "nowhere.toml"], "nowhere.toml cannot be read"),
        (["--resume", "nowhere"], "nowhere: no run.json, so this is not a run directory"),
        (["--resume", "nowhere", "--dry-run"], "leave out --dry-run"),
        (["lora", "--resume", "x", "--optim.lr", "1", "--out", "y"], "leave out --optim.lr, --out"),
        (["--resume", "nowhere", "word"], "unexpected word 'word' beside --resume"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refused_with_one_message_and_nothing_written(
    words: list[str], message: str, lrdiff: Lrdiff, tmp_path: Path
) -> None:
    code, out, err = lrdiff("train", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_none_is_refused_before_a_run_is_made(photos: Path, lrdiff: Lrdiff, tmp_path: Path) -> None:
    for model, message in (("nothing", "no such folder and no such shipped model"), (photos, "no model_index.json")):
        code, _, err = lrdiff("train", "lora", "--data.images", photos, "--model", model)
        assert code == 2
        assert message in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, so asking for one is no mistake")
def test_an_absent_device_is_refused_before_a_run_is_made(photos: Path, lrdiff: Lrdiff, tmp_path: Path) -> None:
    code, _, err = lrdiff("train", "lora", "--data.images", photos, "--precision.device", "cuda")
    assert (code, "device 'cuda' is absent" in err) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_a_file_with_problems_is_refused(photos: Path, lrdiff: Lrdiff, tmp_path: Path) -> None:
    Path("a.toml").write_text(f'[data]\nimages = "{photos}"\n[optim]\nlr = -1\nlrr = 3\n')
    code, _, err = lrdiff("train", "lora", "--config", "a.toml")
    assert code == 2
    assert [line.split(": ")[:2] for line in err.splitlines()] == [["a.toml", "optim.lr"], ["a.toml", "optim.lrr"]]
    assert [path.name for path in tmp_path.iterdir()] == ["a.toml"]


def test_the_record_of_another_method_is_refused(finished: Path, lrdiff: Lrdiff) -> None:
    code, _, err = lrdiff("train", "tensor-lora", "--config", finished / "run.json")
    assert (code, "is a run of lora, not of tensor-lora" in err) == (2, True)
    code, _, err = lrdiff("train", "tensor-lora", "--resume", finished)
    assert (code, "is a run of lora, not of tensor-lora" in err) == (2, True)


def test_a_finished_run_is_not_resumed(finished: Path, lrdiff: Lrdiff) -> None:
    code, _, err = lrdiff("train", "--resume", finished)
    assert (code, "has finished" in err) == (2, True)


def test_a_folder_with_something_in_it_is_left_alone(photos: Path, short: list[str], lrdiff: Lrdiff) -> None:
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    code, _, err = lrdiff("train", "lora", "--data.images", photos, "--out", "mine", *short)
    assert (code, "already exists and is not empty" in err) == (2, True)
    assert [path.name for path in Path("mine").iterdir()] == ["letter.txt"]


def test_an_unwritable_folder_is_refused(photos: Path, short: list[str], lrdiff: Lrdiff) -> None:
    Path("file").write_text("")
    code, _, err = lrdiff("train", "lora", "--data.images", photos, "--out", "file/run", *short)
    assert (code, "cannot be written" in err) == (2, True)


def test_a_damaged_picture_is_named_and_the_run_is_marked_failed(
    photos: Path, short: list[str], lrdiff: Lrdiff
) -> None:
    Path("pictures").mkdir()
    (Path("pictures") / "good.png").write_bytes((photos / "0.png").read_bytes())
    (Path("pictures") / "bad.png").write_bytes(b"no picture")
    code, _, err = lrdiff("train", "lora", "--data.images", "pictures", "--out", "run", *short)
    assert code == 2
    assert "bad.png" in err
    assert "Traceback" not in err
    assert json.loads(Path("run/run.json").read_text())["state"] == "failed"
    assert (Path("pictures") / "bad.png").read_bytes() == b"no picture"


def test_one_picture_is_allowed_with_a_warning(photos: Path, short: list[str], lrdiff: Lrdiff) -> None:
    Path("pictures").mkdir()
    (Path("pictures") / "only.png").write_bytes((photos / "0.png").read_bytes())
    code, _, err = lrdiff("train", "lora", "--data.images", "pictures", "--out", "run", *short)
    assert code == 0, err
    assert "warning: only one training image" in err


def test_the_log_is_as_it_was_afterwards(finished: Path) -> None:
    before = (logging.getLogger().level, list(logging.getLogger().handlers))
    assert main(["train", "--resume", str(finished)]) == 2
    assert (logging.getLogger().level, list(logging.getLogger().handlers)) == before
