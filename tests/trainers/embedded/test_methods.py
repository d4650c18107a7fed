"""The methods take steps, lower their loss, and go on exactly after an interruption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lrdiff.errors import ConfigError
from lrdiff.rng import stream
from tests.trainers.embedded.conftest import TINY_PROBE, TINY_UNET, TINY_VAE
from trainers import checkpoint, hooks
from trainers.config import OptimConfig, PrecisionConfig
from trainers.embedded.probe import ProbeConfig, TrainProbe, degrade
from trainers.embedded.shards import Shards
from trainers.embedded.toys_unet import ToysUnet, ToysUnetConfig, draw_times, training_caption, unknown_word
from trainers.embedded.toys_vae import ToysVae, ToysVaeConfig
from trainers.engine import Engine
from trainers.loop import Hook, State, fit
from trainers.method import Method
from trainers.rundir import create


def steps(method: Method[Any], count: int, watchers: tuple[Hook, ...] = (), restore: Any = None) -> State:
    optim = OptimConfig(steps=count, lr=1e-3, warmup=1, schedule="constant")
    engine = Engine(PrecisionConfig(device="cpu"))
    return fit(method, optim, engine=engine, seed=3, hooks=watchers, restore=restore)


def build(method: Callable[[Any], Method[Any]], config: Any) -> Method[Any]:
    torch.manual_seed(0)
    return method(config)


def test_autoencoder_steps(scenes: Shards) -> None:
    method = build(ToysVae, ToysVaeConfig(scenes=scenes.path, **TINY_VAE))
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    state = steps(method, 3)
    assert set(state.metrics) >= {"loss", "pixel", "edges", "kl", "psnr"}
    assert all(not torch.equal(p, before[name]) for name, p in method.named_parameters())
    assert method.evaluate(stream(0, "evaluate"))["psnr_scenes"] > 5


def test_an_autoencoder_of_other_channels_is_refused(scenes: Shards, tmp_path: Path) -> None:
    build(ToysVae, ToysVaeConfig(scenes=scenes.path, **TINY_VAE)).vae.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="channels"):
        ToysVae(ToysVaeConfig(scenes=scenes.path, start=tmp_path))


def test_autoencoder_batches_hold_no_held_out_scene(scenes: Shards) -> None:
    method = ToysVae(ToysVaeConfig(scenes=scenes.path, scene_share=1.0, **TINY_VAE))
    batch = method.batch(0, stream(0, "batch"))
    assert batch["images"].shape == (2, 3, 32, 32)
    assert batch["images"].abs().max() <= 1


def test_denoiser_steps_and_averages(latents: Path) -> None:
    method = build(ToysUnet, ToysUnetConfig(latents=latents, **TINY_UNET))
    assert isinstance(method, ToysUnet)
    start = {name: value.clone() for name, value in method.averages.items()}
    state = steps(method, 3)
    assert torch.isfinite(torch.tensor(state.metrics["loss"]))
    moved = [name for name, p in method.named_parameters() if not torch.equal(p, start[name])]
    assert any(name.startswith("unet.") for name in moved)
    assert any(name.startswith("text_encoder.") for name in moved)
    for name, parameter in method.named_parameters():
        if name in moved and name.endswith("conv_in.weight"):
            between = (method.averages[name] - start[name]).norm() / (parameter - start[name]).norm()
            assert 0.1 < float(between.detach()) < 1.0


def test_the_first_steps_see_small_pictures(latents: Path) -> None:
    more = {"small_steps": 2, "small_batch_size": 3}
    method = build(ToysUnet, ToysUnetConfig(latents=latents, **{**TINY_UNET, **more}))
    shapes = [tuple(method.batch(index, stream(0, "batch", index))["latents"].shape) for index in (0, 1, 2)]
    assert shapes == [(3, 4, 8, 8), (3, 4, 8, 8), (2, 4, 16, 16)]
    assert torch.isfinite(torch.tensor(steps(method, 3).metrics["loss"]))


def test_averages_follow_the_dtype_and_device(latents: Path) -> None:
    method = ToysUnet(ToysUnetConfig(latents=latents, **TINY_UNET)).double()
    assert {value.dtype for value in method.averages.values()} == {torch.float64}


@pytest.mark.parametrize(("high_noise", "share"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
def test_times_cover_the_schedule_and_lean_to_noise(high_noise: float, share: float) -> None:
    times = torch.cat([draw_times(32, 1000, high_noise, stream(0, "times", i)) for i in range(100)])
    assert int(times.max()) >= 990
    assert int(times.max()) < 1000
    assert float((times >= 500).float().mean()) == pytest.approx(share, abs=0.03)
    assert int(times.min()) < (10 if high_noise < 1 else 510)


def test_the_whole_caption_reaches_the_embedding_of_the_time(latents: Path) -> None:
    method = build(ToysUnet, ToysUnetConfig(latents=latents, **TINY_UNET))
    assert isinstance(method, ToysUnet)
    steps(method, 2)
    ids = method.tokenizer(["a red mug", "a blue mug"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        pooled = method.unet.add_embedding(method.text_encoder(ids).last_hidden_state)
    assert pooled.shape[0] == 2
    assert not torch.allclose(pooled[0], pooled[1])


def test_captions_are_sometimes_empty_and_sometimes_hold_unknown_words(latents: Path) -> None:
    scene = ToysUnet(ToysUnetConfig(latents=latents, **TINY_UNET)).scenes[0]
    texts = [training_caption(scene, stream(0, "text", i), unconditional=0.5, unknown_words=1.0) for i in range(60)]
    empty = sum(text == "" for text in texts)
    assert 15 < empty < 45
    plain = (training_caption(scene, stream(0, "text", i), unconditional=0.0, unknown_words=0.0) for i in range(60))
    known = set(" ".join(plain).split())
    assert all(set(text.split()) - known for text in texts if text)
    assert all(2 <= len(unknown_word(stream(0, "word", i))) <= 6 for i in range(20))


def test_probe_steps(noise: Path) -> None:
    config = ProbeConfig(scenes=noise / "scenes", subjects=noise / "subjects", **TINY_PROBE)
    method = build(TrainProbe, config)
    assert isinstance(method, TrainProbe)
    state = steps(method, 3)
    assert set(state.metrics) >= {"loss", "accuracy", "identity"}
    assert not set(method.trained_on.tolist()) & set(method.held_out.tolist())
    method.eval()
    assert 0 <= method.evaluate(stream(0, "evaluate"))["accuracy_mean"] <= 1


def test_degraded_images_stay_images() -> None:
    images = torch.rand(6, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    changed = degrade(images, stream(0, "degrade"))
    assert changed.shape == images.shape
    assert float(changed.abs().max()) <= 1
    assert torch.equal(changed, degrade(images, stream(0, "degrade")))


@pytest.mark.parametrize("kind", ["vae", "unet", "probe"])
def test_resumed_training_equals_an_unbroken_one(
    kind: str, scenes: Shards, latents: Path, noise: Path, tmp_path: Path
) -> None:
    settings: dict[str, tuple[Callable[[Any], Method[Any]], Any]] = {
        "vae": (ToysVae, ToysVaeConfig(scenes=scenes.path, **TINY_VAE)),
        "unet": (ToysUnet, ToysUnetConfig(latents=latents, **TINY_UNET)),
        "probe": (TrainProbe, ProbeConfig(scenes=noise / "scenes", subjects=noise / "subjects", **TINY_PROBE)),
    }
    method, config = settings[kind]
    whole = build(method, config)
    steps(whole, 4)
    run = create(tmp_path / "run", kind, {"seed": 3})
    steps(build(method, config), 2, (hooks.every(2, hooks.save_checkpoint(run, 1)),))
    resumed = build(method, config)
    state = steps(resumed, 4, restore=lambda state: checkpoint.restore(run, state))
    assert state.step == 4
    first, second = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    first, second = whole.state(), resumed.state()
    assert set(first) == set(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
