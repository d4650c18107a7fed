"""The method: gradients arrive, the penalty and the stop act, and bad input ends the run with a clear message."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from pydantic import ValidationError
from torch import Tensor

from lrdiff.alignprop.ratings import train as train_ratings
from lrdiff.alignprop.rewards import SIMPLE
from lrdiff.alignprop.specs import ARGUMENTS, MEASURED
from lrdiff.alignprop.windows import MODES
from lrdiff.artifact import Artifact
from lrdiff.backbones.layers import layer_groups
from lrdiff.errors import ConfigError, NonFiniteError
from lrdiff.images import save_png
from lrdiff.inject import inject
from lrdiff.rng import stream
from tests.lrdiff.alignprop.clip_folder import build_tiny_clip
from tests.lrdiff.backbones.families import FAMILIES
from trainers.alignprop.config import AlignPropRun, AlignPropSettings
from trainers.alignprop.method import AlignProp
from trainers.alignprop.stop import Watchdog
from trainers.engine import Engine
from trainers.loop import fit
from trainers.run import execute
from trainers.rundir import RunDir, create

NEEDS_WEIGHTS = ("clip", "hps", "pickscore", "aesthetic")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("a red cube\na blue ball on sand\na green ring\n")
    return path


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("families")
    return {name: FAMILIES[name](path / name) for name in ("sd3", "flux-dev", "pixart-sigma")}


def settings(model: Path, prompts: Path, **own: Any) -> dict[str, Any]:
    method = {"prompts": str(prompts), "held_out": str(prompts), "sampling_steps": 3, "held_out_count": 2}
    optim = {"steps": own.pop("steps", 3), "lr": own.pop("lr", 1e-2)}
    watch = {"checkpoint_every": 1, "evaluate_every": 1, "preview_every": 0}
    return {
        "model": str(model), "data": {"batch_size": 2}, "method": method | own, "optim": optim, "watch": watch,
        "precision": {"device": "cpu"},
    }  # fmt: skip


def made(model: Path, prompts: Path, **own: Any) -> AlignProp:
    config = AlignPropRun.model_validate(settings(model, prompts, **own))
    return AlignProp(config, "alignprop", Engine(config.precision))


def run(path: Path, model: Path, prompts: Path, **own: Any) -> RunDir:
    config = AlignPropRun.model_validate(settings(model, prompts, **own))
    return create(path, "alignprop", config.model_dump(mode="json"))


def gradients(method: AlignProp, index: int = 0) -> list[Tensor]:
    method.train()
    loss, _ = method(method.batch(index, stream(0, "b")), stream(0, "f"))
    parameters = [p for group in method.param_groups() for p in group.params]
    return list(torch.autograd.grad(loss, parameters))


def randomise(method: AlignProp) -> None:
    """Leave the start, where half of a LoRA's gradient is zero."""
    rng = stream(0, "w")
    for group in method.param_groups():
        for parameter in group.params:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=rng)


def shipped(folder: Path) -> list[str]:
    """Return every reward that needs no weights of the user, with an argument where it takes one."""
    picture = folder / "00.png"
    for number in range(3):
        save_png(torch.full((3, 16, 16), number / 2 - 0.5), folder / f"{number:02d}.png")
    (folder / "scores.csv").write_text("file,score\n00.png,1\n01.png,2\n02.png,4\n")
    train_ratings(folder / "scores.csv", "probe-a").save(folder / "head.safetensors")
    own = {
        "likeness": f"={picture}", "palette": "=#ff0000,#0000ff", "prompt-match": "=probe-a",
        "ratings": f"={folder / 'head.safetensors'}",
    }  # fmt: skip
    return [name + own.get(name, "") for name in ARGUMENTS if name not in (*NEEDS_WEIGHTS, *MEASURED)]


def test_the_gradient_of_every_shipped_reward_reaches_every_weight(
    tiny_model: Path, prompts: Path, tmp_path: Path
) -> None:
    rewards = shipped(tmp_path)
    assert len(rewards) == len(ARGUMENTS) - len(NEEDS_WEIGHTS) - len(MEASURED)
    method = made(tiny_model, prompts, reward=rewards, straight_through=True)
    randomise(method)
    terms = method.objective.terms
    for term in terms:
        method.objective.terms = [term]
        found = gradients(method)
        assert all(bool(torch.isfinite(g).all()) and float(g.abs().max()) > 0 for g in found), term.name


def test_the_gradient_of_a_clip_reward_reaches_every_weight(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    method = made(tiny_model, prompts, reward=[f"pickscore={build_tiny_clip(tmp_path / 'clip')}"])
    randomise(method)
    assert all(float(g.abs().max()) > 0 for g in gradients(method))


@pytest.mark.parametrize("mode", MODES)
def test_recomputing_changes_no_gradient(tiny_model: Path, prompts: Path, mode: str) -> None:
    found = []
    for recompute, blocks in ((False, False), (True, False), (True, True)):
        k = {} if mode in ("lv", "random-per-step") else {"k": 2}
        method = made(tiny_model, prompts, mode=mode, recompute=recompute, recompute_blocks=blocks, penalty=0.1, **k)
        randomise(method)
        found.append(gradients(method))
    for other in found[1:]:
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(found[0], other, strict=True))
    assert any(float(g.abs().max()) > 0 for g in found[0])


def test_recomputing_keeps_less_of_denoiser_and_decoder(tiny_model: Path, prompts: Path) -> None:
    """Bytes that autograd keeps of a whole picture, the way to the reward included."""

    def kept(**own: bool) -> int:
        method = made(tiny_model, prompts, reward=["brightness"], mode="last-k", k=3, **own)
        weights = {
            p.untyped_storage().data_ptr() for p in [*method.denoiser.parameters(), *method.backbone.vae.parameters()]
        }
        seen: dict[int, torch.UntypedStorage] = {}

        def note(tensor: Tensor) -> Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        batch = method.batch(0, stream(0, "b"))
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            method(batch, stream(0, "f"))
        return sum(storage.nbytes() for key, storage in seen.items() if key not in weights)

    assert kept(recompute=True) < 0.2 * kept(recompute=False)


@pytest.mark.parametrize("family", ["sd3", "flux-dev", "pixart-sigma"])
@pytest.mark.parametrize("mode", ["last-k", "spaced", "lv"])
def test_other_families_learn_too(families: dict[str, Path], prompts: Path, family: str, mode: str) -> None:
    """Euler on flow schedules, and transformers whose output holds a variance too."""
    own = {} if mode == "lv" else {"k": 1}
    method = made(families[family], prompts, reward=["brightness"], mode=mode, **own)
    assert (method.backbone.schedule.prediction == "flow") == (family != "pixart-sigma")
    randomise(method)
    found = gradients(method)
    assert all(bool(torch.isfinite(g).all()) for g in found)
    assert sum(float(g.abs().max()) > 0 for g in found) > 0.8 * len(found)
    before = method.evaluate(stream(0, "e"))["held_out_brightness"]
    fit(method, method.config.optim, engine=method.engine, seed=0)
    method.eval()
    assert method.evaluate(stream(0, "e"))["held_out_brightness"] > before


def test_the_penalty_is_zero_at_the_start_and_holds_the_model_back(tiny_model: Path, prompts: Path) -> None:
    early: dict[str, Any] = {"mode": "sparse", "k": 2}  # the step that is looked at below carries gradient
    method = made(tiny_model, prompts, penalty=1.0, reward=["brightness"], **early)
    batch = method.batch(0, stream(0, "b"))
    assert float(method(batch, stream(0, "f"))[1]["penalty"]) == 0.0
    randomise(method)
    loss, metrics = method(batch, stream(0, "f"))
    assert float(metrics["penalty"]) > 1e-4
    assert float(loss.detach()) == pytest.approx(float(metrics["penalty"] - metrics["reward_brightness"]), rel=1e-5)
    moved = []
    for penalty in (0.0, 100.0):
        method = made(tiny_model, prompts, penalty=penalty, reward=["brightness"], steps=5, **early)
        fit(method, method.config.optim, engine=method.engine, seed=0)
        batch = method.batch(0, stream(0, "b"))
        with torch.no_grad():
            out = method._guided(batch["noise"], method.times[1], batch)
            with method._without_adapter():
                moved.append(float((out - method._guided(batch["noise"], method.times[1], batch)).norm()))
    assert moved[1] < 0.7 * moved[0]


def test_training_raises_the_reward_on_held_out_prompts(tiny_model: Path, prompts: Path) -> None:
    for reward, less in (("brightness", False), ("brightness:-1", True)):
        method = made(tiny_model, prompts, reward=[reward], mode="last-k", k=1, steps=6)
        before = method.evaluate(stream(0, "e"))["held_out_brightness"]
        fit(method, method.config.optim, engine=method.engine, seed=0)
        method.eval()
        after = method.evaluate(stream(0, "e"))["held_out_brightness"]
        assert (after < before) == less
        assert abs(after - before) > 1e-3


def test_a_collapse_ends_the_run_with_the_adapter_before(
    tiny_model: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = made(tiny_model, prompts, min_diversity=0.5)
    randomise(method)
    method.evaluate(stream(0, "e"))
    good = method.artifact().tensors
    assert method.done() == ""
    monkeypatch.setattr(method, "_draw", lambda texts, name: torch.full((len(texts), 3, 32, 32), 0.5))
    for group in method.param_groups():
        for parameter in group.params:
            parameter.data = parameter.data + 1.0
    method.evaluate(stream(0, "e"))
    assert "differ by 0.0000, less than method.min_diversity" in method.done()
    kept = method.artifact().tensors
    assert all(torch.equal(kept[name], good[name]) for name in good)


def test_a_monitor_that_turns_is_seen_from_its_best() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    watchdog = Watchdog([parameter], 0.0, max_drop=0.5)
    for number, (monitor, stopped) in enumerate(((0.0, False), (1.0, False), (0.6, False), (0.4, True))):
        parameter.data.fill_(number)
        watchdog.see(1.0, monitor)
        assert bool(watchdog.reason()) == stopped
    assert "fell from 1.0000, its best, to 0.4000" in watchdog.reason()
    again = Watchdog([parameter], 0.0, max_drop=0.5)
    again.load_state(watchdog.state())
    for one in (watchdog, again):
        with one.kept():
            assert float(parameter.detach()) == 2.0, "the last good evaluation's"
        assert float(parameter.detach()) == 3.0


def test_a_falling_monitor_ends_a_run_as_finished(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    made_run = run(tmp_path / "run", tiny_model, prompts, reward=["brightness"], monitor="jpeg", max_drop=50.0, steps=2)
    assert execute(made_run) == "finished"
    assert made_run.read()["outcome"] != ""
    falling = run(
        tmp_path / "falling", tiny_model, prompts, reward=["brightness:-1"], monitor="brightness", max_drop=1e-7,
        steps=9, mode="last-k", k=1,
    )  # fmt: skip
    assert execute(falling) == "finished"
    assert "the monitor fell from" in (falling.path / "log.txt").read_text() + str(falling.read()["outcome"])
    assert max(row["step"] for row in falling.metrics()) == 1
    tensors = Artifact.load(falling.artifact_path).tensors
    assert all(not value.any() for name, value in tensors.items() if "lora_B" in name), "the start was the last good"


def test_processes_train_on_different_prompts(tiny_model: Path, prompts: Path) -> None:
    """The loop numbers micro-batches over all processes, so neighbours are what two processes get."""
    method = made(tiny_model, prompts)
    batches = [method.batch(index, stream(0, "batch", index)) for index in range(3)]
    assert sorted(text for batch in batches for text in batch["prompts"]) == sorted(method.prompts * 2)
    assert not torch.equal(batches[0]["noise"], batches[1]["noise"])


@pytest.mark.parametrize("kind", ["dora", "loha", "lokr", "tensor-lora"])
def test_any_adapter_can_be_trained(tiny_model: Path, prompts: Path, kind: str) -> None:
    method = made(tiny_model, prompts, adapter=kind, r=2)
    fit(method, method.config.optim, engine=method.engine, seed=0)
    assert method.artifact().header.adapter == method.adapter.adapter
    assert any(float(g.abs().max()) > 0 for g in gradients(method))


def test_rank_4_on_sd15_has_0_797_million_parameters() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        config = AlignPropSettings().adapter_settings().peft(list(layer_groups(unet)["attention"]))
        assert inject(unet, config, "default").parameters == 797_184


@pytest.mark.parametrize(
    ("own", "problem"),
    [
        ({"k": 4}, "k=4 is more than sampling_steps=3"),
        ({"reward": []}, "at least 1 item"),
        ({"reward": ["niceness"]}, "reward 'niceness' is unknown"),
        ({"reward": ["contrast", "contrast:2"]}, "names a reward twice"),
        ({"bound": "relu"}, "target has 0 numbers for 1 rewards"),
        ({"bound": "relu", "target": [1.0, 2.0]}, "target has 2 numbers for 1 rewards"),
        ({"target": [1.0]}, "bound=none leaves target without effect"),
        ({"bound": "relu", "target": [1.0], "reward": ["contrast:-1"]}, "bound with a negative weight"),
        ({"normalise": 1}, "one picture has no spread"),
        ({"repeats": 3}, "mode=last-k leaves repeats without effect"),
        ({"mode": "lv", "k": 3}, "mode=lv leaves k without effect"),
        ({"mode": "spaced", "early_stop": 3}, "early_stop=3 leaves no step"),
        ({"mode": "spaced", "k": 2, "early_stop": 2}, "k=2 is more than sampling_steps=3 without early_stop=2"),
        ({"guidance": 1, "detach_negative": True}, "guidance=1 leaves detach_negative without effect"),
        ({"max_drop": 0.1}, "monitor='' leaves max_drop without effect"),
        ({"monitor": "contrast:2"}, "takes no weight"),
        ({"reward": ["jpeg"]}, r"reward jpeg has no gradient.*method\.monitor"),
        ({"adapter": "oft", "r": 2}, "adapter=oft leaves r without effect"),
        ({"adapter": "oft", "targets": "attention+ff+conv"}, "targets"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tiny_model: Path, prompts: Path, own: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValidationError, match=problem):
        AlignPropRun.model_validate(settings(tiny_model, prompts, **own))


def test_a_stop_without_evaluation_is_refused(tiny_model: Path, prompts: Path) -> None:
    given = settings(tiny_model, prompts, min_diversity=0.5)
    given["watch"]["evaluate_every"] = 0
    with pytest.raises(ValidationError, match=r"watch\.evaluate_every=0 leaves method\.min_diversity without effect"):
        AlignPropRun.model_validate(given)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "holds no prompt"), (b"\n \n", "holds no prompt"), (b"\xff\xfe\x00a", "cannot be read as UTF-8 text")],
)
@pytest.mark.parametrize("setting", ["prompts", "held_out"])
def test_a_bad_list_of_prompts_ends_the_run_as_failed(
    tiny_model: Path, prompts: Path, tmp_path: Path, content: bytes, problem: str, setting: str
) -> None:
    (tmp_path / "bad.txt").write_bytes(content)
    lists = {"prompts": prompts, "held_out": prompts} | {setting: tmp_path / "bad.txt"}
    bad = run(tmp_path / "run", tiny_model, lists["prompts"], held_out=str(lists["held_out"]))
    with pytest.raises(ConfigError, match=rf"method\.{setting}: .*bad\.txt {problem}"):
        execute(bad)
    assert bad.read()["state"] == "failed"
    assert problem in bad.read()["outcome"]


def test_a_prompt_that_a_probe_cannot_read_is_told(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.txt").write_text("hello there\n")
    method = made(tiny_model, tmp_path / "odd.txt", reward=["prompt-match=probe-a"])
    with pytest.raises(Exception, match="'hello there' names nothing that a probe reads"):
        gradients(method)


def test_a_reward_that_breaks_leaves_the_last_good_checkpoint(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"count": 0}

    def breaking(images: Tensor) -> Tensor:
        calls["count"] += images.requires_grad
        return images.mean((1, 2, 3)) * (float("nan") if calls["count"] > 4 else 1.0)

    monkeypatch.setitem(SIMPLE, "brightness", breaking)
    broken = run(tmp_path / "run", tiny_model, prompts, reward=["brightness"], steps=9)
    with pytest.raises(NonFiniteError, match="reward brightness returned"):
        execute(broken)
    record = broken.read()
    assert record["state"] == "failed"
    assert "reward brightness" in record["outcome"]
    assert broken.checkpoint_steps(), "the last good checkpoint is kept"
    assert not broken.artifact_path.exists()


def test_weights_of_the_reward_that_overflow_half_precision_stop_the_run(tiny_model: Path, prompts: Path) -> None:
    """fp16's largest number is 65504: gradients beyond it must end the run, not step."""
    given = settings(tiny_model, prompts, reward=["brightness:1e9"])
    given["precision"]["dtype"] = "fp16"
    config = AlignPropRun.model_validate(given)
    engine = Engine(config.precision)
    method = AlignProp(config, "alignprop", engine)
    before = [p.detach().clone() for group in method.param_groups() for p in group.params]
    with pytest.raises(NonFiniteError, match=r"gradient of step 1 is not finite|loss of step 1"):
        fit(method, config.optim, engine=engine, seed=0)
    after: Sequence[Tensor] = [p for group in method.param_groups() for p in group.params]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
