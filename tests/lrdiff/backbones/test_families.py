"""Every family: trains only its adapter, is saved, loaded and drawn with, and draws what diffusers' pipeline draws."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from lrdiff import backbones
from lrdiff.adapters import adapted, read_adapter
from lrdiff.backbones import Backbone
from lrdiff.errors import ModelError, ShapeError, TargetError
from lrdiff.generate import generate, render
from lrdiff.generate_config import AdapterSpec, GenerateConfig
from lrdiff.images import read_image
from lrdiff.inject import inject
from lrdiff.rng import stream
from lrdiff.sampling import ddim
from tests.lrdiff.backbones.families import FAMILIES, build_sd3
from tests.trainers.conftest import save_pictures
from trainers.denoise.adapters import LoraSettings
from trainers.registry import run_config_class
from trainers.run import execute
from trainers.rundir import create

PROMPTS = ["a red cube", "the sks ball on sand"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: build(root / name) for name, build in FAMILIES.items()}


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(family: str, folders: dict[str, Path]) -> Path:
    return folders[family]


def predict(backbone: Backbone) -> torch.Tensor:
    x = torch.randn((2, *backbone.latent_shape), generator=stream(0, "x"))
    times = backbone.schedule.timesteps(2)[:1].float().expand(2)
    with torch.no_grad():
        return backbone.predict(x, times, backbone.condition(PROMPTS))


def test_one_step_trains_only_the_adapter_and_the_result_draws_the_same(folder: Path, tmp_path: Path) -> None:
    settings = {
        "model": str(folder),
        "data": {"images": str(save_pictures(tmp_path / "pictures", 2)), "batch_size": 2},
        "method": {},
        "optim": {"steps": 1, "warmup": 0, "lr": 0.05},
        "watch": {"evaluate_every": 0, "preview_every": 1, "preview_steps": 2, "preview_count": 1},
    }
    config = run_config_class("tensor-lora").model_validate(settings)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    run = create(tmp_path / "run", "tensor-lora", config.model_dump(mode="json"))
    assert execute(run) == "finished"
    assert all(path.read_bytes() == content for path, content in before.items())

    backbone = backbones.load(folder)
    base = {name: value.clone() for name, value in backbone.denoiser.state_dict().items()}
    plain = predict(backbone)
    with adapted(backbone, [read_adapter(AdapterSpec(run.path, 1.0))]):
        assert not torch.equal(predict(backbone), plain)
        images = render(backbone, ["a photo of sks"], [3], steps=2, guidance=2.0, sampler="ddim")
    assert torch.equal(predict(backbone), plain)
    assert all(torch.equal(value, base[name]) for name, value in backbone.denoiser.state_dict().items())
    files = generate(
        GenerateConfig(
            model=str(folder), adapter=(str(run.path),), prompt=("a photo of sks",), seed=3, count=1, steps=2,
            guidance=2.0, sampler="ddim", out=tmp_path / "images",
        )
    )  # fmt: skip
    drawn = torch.tensor(list(read_image(files[0]).tobytes()))
    again = ((images[0].permute(1, 2, 0) + 1) * 127.5).round().flatten()
    assert float((drawn - again).abs().max()) <= 1
    previews = sorted(path.parent.name for path in run.previews.rglob("*.png"))
    assert previews == ["000000", "000001"]


def test_a_step_of_gradient_reaches_every_layer_that_is_adapted(folder: Path) -> None:
    backbone = backbones.load(folder)
    layers = backbone.target_layers("attention+ff")
    report = inject(backbone.denoiser, LoraSettings().peft(layers), "default")
    assert list(report.targets) == layers
    predict_with_gradient(backbone)
    ups = {name: p for name, p in backbone.denoiser.named_parameters() if "lora_B" in name}
    assert len(ups) == len(layers)
    silent = [name for name, p in ups.items() if p.grad is None or not bool(p.grad.any())]
    assert not silent


def predict_with_gradient(backbone: Backbone) -> None:
    torch.manual_seed(0)
    for parameter in backbone.denoiser.parameters():  # networks start with gates of zero, behind which nothing learns
        if not parameter.requires_grad and not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn((2, *backbone.latent_shape), generator=stream(0, "x"))
    with torch.no_grad():
        cond = backbone.condition(PROMPTS)
    backbone.predict(x, torch.tensor([300.0, 600.0]), cond).square().mean().backward()


def pipeline_images(backbone: Any, family: str, noise: torch.Tensor, steps: int, guidance: float) -> torch.Tensor:
    """Draw with diffusers' own pipeline, its times placed as ours."""
    pipeline = backbone.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    own: dict[str, Any] = {"guidance_scale": guidance, "num_inference_steps": steps}
    side = backbone.resolution
    if family.startswith("flux"):
        pack = pipeline._pack_latents(noise, len(noise), noise.shape[1], *noise.shape[2:])
        own |= {"latents": pack, "guidance_scale": 3.5, "max_sequence_length": 16}
    elif family == "sd3":
        sigmas = [float(t) / 1000 for t in torch.linspace(1, 1 / steps, steps) * 1000]
        own |= {"latents": noise, "sigmas": sigmas, "max_sequence_length": 16}
    elif family.startswith("pixart"):
        if family == "pixart-alpha":  # only for this size does the pipeline tell a model that asks for sizes
            pipeline.transformer.register_to_config(sample_size=128)
        own |= {"latents": noise, "clean_caption": False, "use_resolution_binning": False, "max_sequence_length": 16}
    else:
        pipeline.scheduler = DDIMScheduler.from_config(
            pipeline.scheduler.config, clip_sample=False, set_alpha_to_one=True
        )
        own |= {"latents": noise}
    return pipeline(PROMPTS, height=side, width=side, output_type="pt", **own).images


def test_images_are_those_of_the_pipeline(family: str, folder: Path) -> None:
    backbone = backbones.load(folder)
    noise = torch.randn(2, *backbone.latent_shape, generator=stream(0, "noise"))
    guidance = 1.0 if family.startswith("flux") else 4.0
    steps = 5
    wanted = pipeline_images(backbone, family, noise.clone(), steps, guidance)
    schedule = backbone.schedule
    if not family.startswith("pixart") and schedule.prediction != "flow":
        schedule = replace(schedule, final_alpha_bar=1.0)
    with torch.no_grad():
        cond, uncond = backbone.condition(PROMPTS), backbone.condition(["", ""])
        latents = ddim(backbone.predict, noise, cond, uncond, schedule, schedule.timesteps(steps), guidance)
        got = backbone.decode(latents)
    torch.testing.assert_close((got / 2 + 0.5).clamp(0, 1), wanted, rtol=2e-3, atol=2e-3)


def test_prompt_and_time_matter(folder: Path) -> None:
    backbone = backbones.load(folder)
    torch.manual_seed(0)
    for parameter in backbone.denoiser.parameters():
        if not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn((1, *backbone.latent_shape), generator=stream(0, "x"))

    def out(prompt: str, time: float) -> torch.Tensor:
        with torch.no_grad():
            return backbone.predict(x, torch.tensor([time]), backbone.condition([prompt]))

    assert not torch.allclose(out("a red cube", 300), out("the sks ball", 300))
    assert not torch.allclose(out("a red cube", 300), out("a red cube", 700))


def test_released_encoders_leave_prediction_and_decoding(folder: Path) -> None:
    backbone = backbones.load(folder)
    cond = backbone.condition(PROMPTS[:1])
    backbone.release_encoders()
    x = torch.randn((1, *backbone.latent_shape), generator=stream(0, "x"))
    with torch.no_grad():
        assert backbone.predict(x, torch.tensor([5.0]), cond).shape == x.shape
        assert backbone.decode(x).shape == (1, 3, backbone.resolution, backbone.resolution)
    for act in (lambda: backbone.condition(["a"]), backbone.pipeline, lambda: backbone.encode_moments(x)):
        with pytest.raises(ModelError, match="released"):
            act()


def test_every_missing_part_is_named(folder: Path, tmp_path: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    parts = [name for name, value in index.items() if isinstance(value, list) and value[1] is not None]
    assert len(parts) >= 5
    for part in parts:
        broken = Path(shutil.copytree(folder, tmp_path / part))
        shutil.rmtree(broken / part)
        with pytest.raises(ModelError, match=rf"the folder {part}/ is missing"):
            backbones.load(broken)


def test_size_conditioning_of_sdxl(folders: dict[str, Path]) -> None:
    backbone = backbones.load(folders["sdxl"])
    x = torch.randn((1, *backbone.latent_shape), generator=stream(0, "x"))
    with torch.no_grad():
        cond = backbone.condition(["a red cube"])
        whole = backbone.predict(x, torch.tensor([5]), cond)
        same = backbone.predict(x, torch.tensor([5]), {**cond, **backbone.size_condition((32, 32), (0, 0))})
        cropped = backbone.predict(x, torch.tensor([5]), {**cond, **backbone.size_condition((64, 48), (8, 16))})
    assert torch.equal(whole, same)
    assert not torch.allclose(whole, cropped)
    assert backbones.load(folders["sd1"]).size_condition((64, 48), (8, 16)) == {}


def test_both_encoders_of_sdxl_are_read_and_the_empty_prompt_is_zero(folders: dict[str, Path]) -> None:
    backbone = backbones.load(folders["sdxl"])
    with torch.no_grad():
        cond = backbone.condition(["", "a red cube"])
    assert cond["context"].shape == (2, 16, 16 + 32)
    assert not bool(cond["context"][0].any() or cond["pooled"][0].any())
    assert bool(cond["context"][1, :, :16].any() and cond["context"][1, :, 16:].any())


def test_sd3_works_without_its_third_encoder(tmp_path: Path) -> None:
    backbone = backbones.load(build_sd3(tmp_path / "sd3", with_t5=False))
    with torch.no_grad():
        cond = backbone.condition(PROMPTS)
    assert cond["context"].shape == (2, 16 + 256, 64)
    assert not bool(cond["context"][:, 16:].any())
    assert backbone.pipeline().text_encoder_3 is None
    assert predict(backbone).shape == (2, *backbone.latent_shape)


def test_transformers_have_no_convolutions_to_adapt(folders: dict[str, Path]) -> None:
    for family in ("sd3", "flux-dev", "pixart-sigma"):
        with pytest.raises(TargetError, match=r"no convolutions to adapt; use attention\+ff"):
            backbones.load(folders[family]).target_layers("attention+ff+conv")


def test_sizes_that_are_no_whole_patches_are_refused(folders: dict[str, Path]) -> None:
    for family in ("sd3", "flux-dev", "pixart-sigma"):
        backbone = backbones.load(folders[family])
        x = torch.zeros(1, backbone.latent_shape[0], 16, 15)
        with pytest.raises(ShapeError, match=r"image size 30x32.*multiples of 4 pixels"):
            backbone.predict(x, torch.tensor([5.0]), backbone.condition(["a"]))


def edited(folder: Path, place: Path, part: str, **changes: Any) -> Path:
    copy = Path(shutil.copytree(folder, place))
    path = copy / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return copy


def test_relatives_are_refused_with_the_reason(folders: dict[str, Path], tmp_path: Path) -> None:
    cases = {
        "refiners are not supported": ("sdxl", "unet", {"addition_time_embed_dim": 10}),
        "takes no sizes": ("sdxl", "unet", {"addition_embed_type": None}),
        "fill, depth and control models": ("flux-dev", "transformer", {"in_channels": 384}),
        "inpainting, depth and control": ("sd3", "transformer", {"in_channels": 33}),
    }
    for number, (message, (family, part, changes)) in enumerate(cases.items()):
        broken = edited(folders[family], tmp_path / str(number), part, **changes)
        with pytest.raises(ModelError, match=message):
            backbones.load(broken)


def test_a_flux_model_shifts_its_times_by_its_size(folders: dict[str, Path]) -> None:
    dev, schnell = backbones.load(folders["flux-dev"]), backbones.load(folders["flux-schnell"])
    assert schnell.schedule.shift == 1.0
    slope = (1.15 - 0.5) / (4096 - 256)
    assert dev.schedule.shift == pytest.approx(torch.tensor(0.5 + slope * (64 - 256)).exp().item())
