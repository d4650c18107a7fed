"""Checkpoints: exact, complete or absent, as many as asked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lrdiff.errors import RunError
from tests.disk import full_disk
from tests.trainers.line import Line, LineSettings, record_metrics, train
from trainers import checkpoint
from trainers.hooks import every, save_checkpoint
from trainers.loop import State
from trainers.rundir import RunDir


def noisy() -> Line:
    return Line(LineSettings(dropout=0.3, noise=0.2))


def stop_at(step: int):
    def hook(state: State) -> None:
        state.stop = "enough" if state.step == step else ""

    return hook


def moments(state: State) -> list[torch.Tensor]:
    return [
        torch.as_tensor(v) for m in state.optimizer.state.values() for v in (m["step"], m["exp_avg"], m["exp_avg_sq"])
    ]


@pytest.mark.parametrize("cut", [1, 4, 7])
@pytest.mark.parametrize("parts", [1, 3])
def test_resuming_equals_never_having_stopped(run_dir: RunDir, cut: int, parts: int) -> None:
    whole_log: list[dict[str, float]] = []
    whole = noisy()
    whole_state = train(whole, (record_metrics(whole_log),), steps=8, accumulate=parts, warmup=2, weight_decay=0.1)

    log: list[dict[str, float]] = []
    save = every(1, save_checkpoint(run_dir, 9))
    options = {"steps": 8, "accumulate": parts, "warmup": 2, "weight_decay": 0.1}
    train(noisy(), (stop_at(cut), record_metrics(log), save), **options)
    torch.manual_seed(99)
    second = noisy()
    state = train(second, (record_metrics(log),), restore=lambda state: checkpoint.restore(run_dir, state), **options)

    assert log == whole_log, "metrics are equal bit by bit"
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, second.get_parameter(name))
    assert torch.equal(whole.average, second.average)
    assert len(moments(state)) == 6
    assert all(torch.equal(a, b) for a, b in zip(moments(whole_state), moments(state), strict=True))


def test_only_the_newest_stay(run_dir: RunDir) -> None:
    train(Line(), (every(1, save_checkpoint(run_dir, 2)),), steps=5)
    assert run_dir.checkpoint_steps() == [4, 5]
    assert sorted(entry.name for entry in run_dir.checkpoints.iterdir()) == ["000004", "000005"]


def test_steps_beyond_six_digits_are_ordered_by_number(run_dir: RunDir) -> None:
    for step in (999_999, 1_000_000):
        state = train(Line(), steps=1)
        state.step = step
        checkpoint.save(run_dir, state, 5)
    assert run_dir.checkpoint_steps() == [999_999, 1_000_000]


def test_content_is_plain_safetensors_and_json(run_dir: RunDir) -> None:
    train(Line(), (every(2, save_checkpoint(run_dir, 1)),), steps=2)
    folder = run_dir.checkpoint(2)
    assert sorted(entry.name for entry in folder.iterdir()) == [
        "optimizer.safetensors", "state.json", "weights.safetensors",
    ]  # fmt: skip
    assert sorted(load_file(folder / "weights.safetensors")) == ["own.average", "param.00.00000", "param.01.00000"]
    assert len(load_file(folder / "optimizer.safetensors")) == 6


def test_a_checkpoint_before_the_first_step_resumes_at_zero(run_dir: RunDir) -> None:
    train(Line(), (stop_at(0), save_checkpoint(run_dir, 1)))
    assert run_dir.checkpoint_steps() == [0]
    whole, second = Line(), Line()
    train(whole)
    train(second, restore=lambda state: checkpoint.restore(run_dir, state))
    assert torch.equal(whole.slope, second.slope)


def test_saving_the_same_step_again_leaves_the_first(run_dir: RunDir) -> None:
    state = train(Line(), (every(2, save_checkpoint(run_dir, 1)),), steps=2)
    before = (run_dir.checkpoint(2) / "state.json").stat().st_mtime_ns
    checkpoint.save(run_dir, state, 1)
    assert (run_dir.checkpoint(2) / "state.json").stat().st_mtime_ns == before


@pytest.fixture
def saved(run_dir: RunDir) -> State:
    """Return the state after four steps, with checkpoints of steps 2 and 4."""
    return train(Line(), (every(2, save_checkpoint(run_dir, 2)),), steps=4)


def contents(run_dir: RunDir) -> dict[str, bytes]:
    return {str(p.relative_to(run_dir.path)): p.read_bytes() for p in run_dir.checkpoints.rglob("*") if p.is_file()}


def test_a_full_disk_leaves_older_checkpoints_untouched(run_dir: RunDir, saved: State) -> None:
    before = contents(run_dir)
    saved.step = 6
    with full_disk(200), pytest.raises(RunError, match=r"000006: checkpoint not written .*older ones are kept"):
        checkpoint.save(run_dir, saved, 2)
    assert contents(run_dir) == before


def test_an_unwritable_place_leaves_older_checkpoints_untouched(run_dir: RunDir, saved: State) -> None:
    kept = run_dir.checkpoints.rename(run_dir.path / "elsewhere")
    run_dir.checkpoints.write_text("in the way")
    saved.step = 6
    with pytest.raises(RunError, match="checkpoint not written"):
        checkpoint.save(run_dir, saved, 2)
    assert sorted(entry.name for entry in kept.iterdir()) == ["000002", "000004"]


def test_what_a_killed_save_left_is_ignored_and_removed(run_dir: RunDir, saved: State) -> None:
    half = run_dir.checkpoints / ".000006.tmp"
    shutil.copytree(run_dir.checkpoint(4), half)
    (half / "state.json").unlink()
    given_up = run_dir.checkpoints / ".000000.old"
    given_up.mkdir()
    assert run_dir.checkpoint_steps() == [2, 4]
    saved.step = 8
    checkpoint.save(run_dir, saved, 2)
    assert sorted(entry.name for entry in run_dir.checkpoints.iterdir()) == ["000004", "000008"]


def restore_into(method: Line, run_dir: RunDir) -> State:
    return train(method, restore=lambda state: checkpoint.restore(run_dir, state), steps=4)


def test_no_checkpoint_is_said(run_dir: RunDir) -> None:
    with pytest.raises(RunError, match="no checkpoint"):
        restore_into(Line(), run_dir)


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["absent", "empty", "truncated", "foreign"])
def test_a_damaged_checkpoint_is_named(run_dir: RunDir, saved: State, name: str, damage: str) -> None:
    path = run_dir.checkpoint(4) / name
    data = path.read_bytes()
    path.unlink()
    if damage != "absent":
        path.write_bytes({"empty": b"", "truncated": data[: len(data) // 2], "foreign": b"[1, 2]"}[damage])
    with pytest.raises(RunError, match=r"000004: cannot be read .*older one"):
        restore_into(Line(), run_dir)
    shutil.rmtree(run_dir.checkpoint(4))
    assert restore_into(Line(), run_dir).step == 4, "the advice works"


def test_other_parameters_are_refused(run_dir: RunDir, saved: State) -> None:
    method = Line()
    method.slope = torch.nn.Parameter(torch.zeros(4))
    with pytest.raises(RunError, match="other parameters"):
        restore_into(method, run_dir)


def test_a_changed_configuration_is_refused_with_the_difference(run_dir: RunDir, saved: State) -> None:
    config = run_dir.read()["config"]
    run_dir.update(config=config | {"optim": {"lr": 0.01}, "seed": 7})
    with pytest.raises(RunError, match=r"optim\.lr was 0\.05, is 0\.01; seed was 0, is 7"):
        restore_into(Line(), run_dir)
    run_dir.update(config=config)
    assert restore_into(Line(), run_dir).step == 4


def test_a_run_directory_can_be_moved(run_dir: RunDir, saved: State, tmp_path: Path) -> None:
    moved = RunDir(run_dir.path.rename(tmp_path / "moved"))
    assert restore_into(Line(), moved).step == 4
