"""Base models: the Stable Diffusion family, its guards, fingerprints, finding models."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn

from lrdiff import backbones
from lrdiff.backbones import embedded
from lrdiff.backbones.base import fingerprint, weight_files
from lrdiff.backbones.unet import UNetBackbone
from lrdiff.errors import BackendError, LrdiffError, ModelError, ShapeError, TargetError
from lrdiff.rng import stream
from lrdiff.sampling import ddim
from tests.tiny import build_tiny_model


@pytest.fixture(scope="module")
def backbone(tiny_model_dir: Path) -> UNetBackbone:
    loaded = backbones.load(tiny_model_dir)
    assert isinstance(loaded, UNetBackbone)
    return loaded


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """Return a copy of the model to damage."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "broken"))


def edit(path: Path, **changes: Any) -> None:
    value = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(value))


def images(count: int = 2, side: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=stream(0, "images")) * 2 - 1


def test_a_loaded_model_describes_itself_and_is_frozen(backbone: UNetBackbone, tiny_model_dir: Path) -> None:
    assert (backbone.name, backbone.path) == ("tiny", tiny_model_dir)
    assert (backbone.resolution, backbone.latent_shape, backbone.latent_factor) == (32, (4, 16, 16), 2)
    assert (backbone.schedule.prediction, backbone.schedule.steps_offset) == ("epsilon", 1)
    assert (backbone.device.type, backbone.dtype) == ("cpu", torch.float32)
    for module in (backbone.denoiser, backbone.vae, backbone.text_encoder):
        assert isinstance(module, nn.Module)
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())


def test_sampling_equals_the_diffusers_pipeline(backbone: UNetBackbone) -> None:
    pipeline = backbone.pipeline()
    assert isinstance(pipeline, StableDiffusionPipeline)
    assert pipeline.unet is backbone.denoiser
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(2, *backbone.latent_shape, generator=stream(0, "noise"))
    prompts, negative = ["a photo of a red cube", "the sks ball"], "grass"
    wanted = pipeline(
        prompts,
        negative_prompt=[negative] * 2,
        latents=noise,
        num_inference_steps=5,
        guidance_scale=4.0,
        output_type="pt",
    ).images
    schedule = backbone.schedule
    with torch.no_grad():
        cond, uncond = backbone.condition(prompts), backbone.condition([negative] * 2)
        latents = ddim(backbone.predict, noise, cond, uncond, schedule, schedule.timesteps(5), 4.0)
        got = backbone.decode(latents)
    torch.testing.assert_close((got / 2 + 0.5).clamp(0, 1), wanted, rtol=1e-4, atol=1e-4)


def test_encoding_scales_the_latents_and_draws_from_the_moments(backbone: UNetBackbone) -> None:
    with torch.no_grad():
        mean, std = backbone.encode_moments(images())
        raw = backbone.vae.encode(images(), return_dict=False)[0]
        first, again = backbone.encode(images(), stream(1, "e")), backbone.encode(images(), stream(1, "e"))
    assert mean.shape == std.shape == (2, 4, 16, 16)
    torch.testing.assert_close(mean, raw.mean * 0.5)
    torch.testing.assert_close(std, raw.std * 0.5)
    assert torch.equal(first, again)
    noise = torch.randn(mean.shape, generator=stream(1, "e"))
    torch.testing.assert_close(first, mean + std * noise)


def test_decoding_keeps_the_gradient_of_out_of_range_pixels(backbone: UNetBackbone) -> None:
    latents = (torch.randn(1, 4, 16, 16, generator=stream(0, "l")) * 20).requires_grad_()
    decoded = backbone.decode(latents)
    assert decoded.shape == (1, 3, 32, 32)
    assert decoded.dtype == torch.float32
    (gradient,) = torch.autograd.grad(decoded.sum(), latents)
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient.abs().sum()) > 0


def test_other_sizes_than_the_native_one_work(backbone: UNetBackbone) -> None:
    with torch.no_grad():
        mean, _ = backbone.encode_moments(images()[:, :, :24, :30])
        out = backbone.predict(mean, torch.tensor(7), backbone.condition(["a", "b"]))
    assert mean.shape == (2, 4, 12, 15)
    assert out.shape == mean.shape


def test_prompts_that_are_too_long_are_logged_once_and_recorded(
    backbone: UNetBackbone, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = "a red cube on the sand " * 4 + "sks"
    with caplog.at_level(logging.WARNING), torch.no_grad():
        short = backbone.condition(["a red cube"])
        assert not caplog.records
        long = backbone.condition([prompt, prompt])
        backbone.condition([prompt])
    assert short["context"].shape == (1, 16, 32)
    assert len(caplog.records) == 1
    assert "reads 14 tokens of a prompt; this prompt has 25" in caplog.text
    assert backbone.truncated[prompt].endswith("sand sks")
    kept = prompt.split()[:14]
    with torch.no_grad():
        torch.testing.assert_close(long["context"][:1], backbone.condition([" ".join(kept)])["context"])


def test_target_groups_grow_and_do_not_change_when_a_layer_is_wrapped(tiny_model_dir: Path) -> None:
    backbone = backbones.load(tiny_model_dir)
    attention = backbone.target_layers("attention")
    ff = backbone.target_layers("attention+ff")
    conv = backbone.target_layers("attention+ff+conv")
    assert {name.split(".attn")[1].split(".", 1)[1] for name in attention} == {"to_q", "to_k", "to_v", "to_out.0"}
    # one attention block down, one in the middle, two up; each self- and cross-attention of four layers
    assert (len(attention), len(ff)) == (32, 40)
    assert set(attention) < set(ff) < set(conv)
    for name in conv:
        assert isinstance(backbone.denoiser.get_submodule(name), nn.Linear | nn.Conv2d)
    assert "conv_in" not in conv
    assert "down_blocks.0.downsamplers.0.conv" in conv
    parent, _, leaf = attention[0].rpartition(".")
    layer = backbone.denoiser.get_submodule(attention[0])
    setattr(backbone.denoiser.get_submodule(parent), leaf, nn.Sequential(layer))
    assert backbone.target_layers("attention") == attention
    with pytest.raises(TargetError, match="known groups"):
        backbone.target_layers("everything")  # pyright: ignore[reportArgumentType]


def test_release_keeps_predict_and_decode(tiny_model_dir: Path) -> None:
    backbone = backbones.load(tiny_model_dir)
    with torch.no_grad():
        cond = backbone.condition(["a cube"])
        x = torch.randn(1, *backbone.latent_shape, generator=stream(0, "x"))
        before = backbone.predict(x, torch.tensor([3]), cond), backbone.decode(x)
        backbone.release_encoders()
        after = backbone.predict(x, torch.tensor([3]), cond), backbone.decode(x)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    for use in (
        lambda: backbone.condition(["a"]),
        lambda: backbone.encode_moments(images()),
        lambda: backbone.encode(images(), stream(0, "e")),
        backbone.pipeline,
    ):
        with pytest.raises(ModelError, match="released"):
            use()


def test_half_precision_is_the_whole_model_and_outputs_follow_the_caller(tiny_model_dir: Path) -> None:
    backbone = backbones.load(tiny_model_dir, dtype=torch.bfloat16)
    assert isinstance(backbone, UNetBackbone)
    for module in (backbone.denoiser, backbone.vae, backbone.text_encoder):
        assert isinstance(module, nn.Module)
        assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    x = torch.randn(1, *backbone.latent_shape, generator=stream(0, "x"))
    with torch.no_grad():
        out = backbone.predict(x, torch.tensor([5]), backbone.condition(["a ball"]))
        mean, _ = backbone.encode_moments(images())
        assert {out.dtype, mean.dtype, backbone.decode(x).dtype} == {torch.float32}
        exact = backbones.load(tiny_model_dir)
        wanted = exact.predict(x, torch.tensor([5]), exact.condition(["a ball"]))
    assert float((out - wanted).norm() / wanted.norm()) < 0.05
    assert backbone.to(dtype=torch.float32).dtype == torch.float32


def test_wrong_shapes_are_named(backbone: UNetBackbone) -> None:
    x = torch.zeros(2, *backbone.latent_shape)
    for call, words in (
        (lambda: backbone.encode_moments(torch.zeros(3, 32, 32)), r"\[B, 3, H, W\]"),
        (lambda: backbone.encode_moments(torch.zeros(1, 3, 33, 32)), "32x33: both sides must be multiples of 2"),
        (lambda: backbone.decode(torch.zeros(1, 3, 16, 16)), r"\[B, 4, h, w\]"),
        (lambda: backbone.predict(x, torch.tensor([1]), backbone.condition(["a"])), "2 latents need conditioning"),
    ):
        with pytest.raises(ShapeError, match=words):
            call()


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_the_prediction_type_is_read_from_the_scheduler(tmp_path: Path, prediction: str) -> None:
    backbone = backbones.load(build_tiny_model(tmp_path / "m", prediction_type=prediction))
    assert backbone.schedule.prediction == prediction


# ---- fingerprints


def test_fingerprint_ignores_sharding_and_sees_every_weight(backbone: UNetBackbone, folder: Path) -> None:
    unet = folder / "unet"
    weights = unet / "diffusion_pytorch_model.safetensors"
    assert backbones.load(folder).fingerprint == backbone.fingerprint
    model = UNet2DConditionModel.from_pretrained(unet)
    weights.unlink()
    model.save_pretrained(unet, max_shard_size="300KB")
    assert len(weight_files(unet)[0]) > 1
    assert backbones.load(folder).fingerprint == backbone.fingerprint
    shard = weight_files(unet)[0][-1]
    tensors = load_file(shard)
    last = sorted(tensors)[-1]
    tensors[last].view(-1)[-1] += 1e-3
    save_file(tensors, shard, metadata={"format": "pt"})
    assert backbones.load(folder).fingerprint != backbone.fingerprint


def test_fingerprint_sees_the_config(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(3)}, file)
    one = fingerprint({"_class_name": "U", "_diffusers_version": "1", "heads": 4}, [file])
    assert one == fingerprint({"_class_name": "U", "_diffusers_version": "2", "heads": 4}, [file])
    assert one != fingerprint({"_class_name": "U", "heads": 8}, [file])


def test_fingerprint_of_large_models_samples_both_ends_of_each_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrdiff.backbones.base.WHOLE", 1000)
    monkeypatch.setattr("lrdiff.backbones.base.EDGE", 40)
    file = tmp_path / "w.safetensors"

    def changed(at: int | None) -> str:
        values = torch.zeros(1000)
        if at is not None:
            values[at] = 1.0
        save_file({"a": values, "b": torch.zeros(5)}, file)
        return fingerprint({}, [file])

    plain = changed(None)
    assert changed(0) != plain
    assert changed(9) != plain
    assert changed(-1) != plain
    assert changed(500) == plain  # as the docstring says: the middle of a large tensor is not read


# ---- guards


def test_what_is_no_model_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"x")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "model_index.json").write_text("{not json")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model_index.json").write_text('{"_class_name": "AudioPipeline"}')
    for model, words in (
        (tmp_path / "empty", "no model_index.json"),
        (tmp_path / "model.safetensors", "from_single_file"),
        (tmp_path / "damaged", "cannot be read"),
        (tmp_path / "other", "AudioPipeline is not supported; supported: .*StableDiffusionPipeline"),
        (tmp_path / "absent", "no such folder"),
        ("no-such-model", "no such shipped model"),
        ("some-org/some-model", "models are not downloaded here: fetch it with `hf download some-org/some-model`"),
    ):
        with pytest.raises(ModelError, match=words):
            backbones.load(model)


def test_shipped_models_are_found_by_name_and_listed(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model_dir, tmp_path / "little")
    (tmp_path / "unfinished").mkdir()
    monkeypatch.setattr(embedded, "ROOT", tmp_path)
    assert embedded.names() == ["little"]
    assert backbones.find("little") == tmp_path / "little"
    with pytest.raises(ModelError, match=r"shipped: \['little'\]"):
        backbones.find("unfinished")


def test_a_hub_id_is_taken_from_the_local_cache(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = tmp_path / "models--some-org--some-model"
    shutil.copytree(tiny_model_dir, entry / "snapshots" / "abc123")
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text("abc123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert backbones.load("some-org/some-model").name == "some-org/some-model"
    (entry / "snapshots" / "abc123" / "model_index.json").unlink()
    with pytest.raises(ModelError, match="download it completely"):
        backbones.load("some-org/some-model")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_component_is_named(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    with pytest.raises(ModelError, match=f"the folder {part}/ is missing"):
        backbones.load(folder)
    edit(folder / "model_index.json", **{part: [None, None]})
    with pytest.raises(ModelError, match=f"lists no {part}"):
        backbones.load(folder)


def test_damaged_components_are_named(folder: Path) -> None:
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"vae: cannot be loaded"):
        backbones.load(folder)
    tensors = {name: value for name, value in load_file(_restored(weights, whole)).items() if "conv_out" not in name}
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"vae: incomplete weights, 4 tensors absent"):
        backbones.load(folder)
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match="only pickled weights"):
        backbones.load(folder)
    weights.with_suffix(".bin").unlink()
    with pytest.raises(ModelError, match="no weights"):
        backbones.load(folder)


def _restored(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_damaged_denoiser_fails_at_the_fingerprint_or_before(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(b"\xff" * 64)
    with pytest.raises(ModelError, match="unet"):
        backbones.load(folder)
    (folder / "unet" / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="no JSON object"):
        backbones.load(folder)


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("unet", {"in_channels": 9}, "inpainting"),
        ("unet", {"out_channels": 8}, "learned variance"),
        ("unet", {"class_embed_type": "identity"}, "extra conditioning"),
        ("unet", {"sample_size": [16, 8]}, "sample_size"),
    ],
)
def test_relatives_that_need_other_inputs_are_refused(
    folder: Path, part: str, changes: dict[str, Any], words: str
) -> None:
    config = UNet2DConditionModel.load_config(folder / part)
    model = UNet2DConditionModel.from_config({**config, **changes})
    model.save_pretrained(folder / part)
    with pytest.raises(ModelError, match=words):
        backbones.load(folder)


def test_components_of_other_classes_are_refused(folder: Path) -> None:
    edit(folder / "model_index.json", text_encoder=["transformers", "T5EncoderModel"])
    with pytest.raises(ModelError, match="T5EncoderModel, this family needs a CLIPTextModel"):
        backbones.load(folder)
    edit(folder / "model_index.json", text_encoder=["transformers", "CLIPTextModel"], scheduler=["diffusers", "Nope"])
    with pytest.raises(ModelError, match="scheduler class 'Nope'"):
        backbones.load(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    unet = folder / "unet"
    model = UNet2DConditionModel.from_pretrained(unet)
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    model.save_pretrained(unet, max_shard_size="300KB")
    lost = weight_files(unet)[0][0]
    lost.unlink()
    with pytest.raises(ModelError, match=f"shards are absent: .*{lost.name}"):
        backbones.load(folder)


def test_the_fp16_variant_is_taken_when_it_is_the_only_one(folder: Path) -> None:
    for part in ("unet", "vae"):
        file = folder / part / "diffusion_pytorch_model.safetensors"
        save_file({k: v.half() for k, v in load_file(file).items()}, file.with_suffix(".x"), metadata={"format": "pt"})
        file.unlink()
        file.with_suffix(".x").rename(folder / part / "diffusion_pytorch_model.fp16.safetensors")
    assert weight_files(folder / "unet")[1] == "fp16"
    assert backbones.load(folder).dtype == torch.float32


def test_devices_that_are_absent_are_refused() -> None:
    assert backbones.pick_device("cpu") == torch.device("cpu")
    assert backbones.pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("cuda:99", "nonsense", "meta"):
        with pytest.raises(BackendError, match="device"):
            backbones.pick_device(name)
    assert issubclass(BackendError, LrdiffError)
