"""Generation: the config, the images, their records, adapters, grids, bad input, cancelling."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from PIL import Image
from pydantic import ValidationError

from lrdiff import backbones
from lrdiff.adapters import adapted, read_adapter
from lrdiff.artifact import Artifact, Header, sha256
from lrdiff.backbones import Backbone
from lrdiff.errors import ArtifactError, Cancelled, ConfigError, DataError, ModelError, NonFiniteError
from lrdiff.generate import Progress, generate, render
from lrdiff.generate_config import AdapterSpec, GenerateConfig, Item, parse_adapter, plan
from lrdiff.images import read_image, to_tensor
from lrdiff.inject import eject, inject, state
from lrdiff.metadata import read_parameters
from lrdiff.rng import stream
from lrdiff.tensor_lora import TensorLoraConfig
from tests.tiny import build_tiny_model


@pytest.fixture(scope="module")
def backbone(tiny_model_dir: Path) -> Backbone:
    return backbones.load(tiny_model_dir)


@pytest.fixture(scope="module")
def adapter_file(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(backbone, tmp_path_factory.mktemp("adapters") / "red-cat.safetensors")


def save_adapter(backbone: Backbone, path: Path, size: float = 0.3, **header: Any) -> Path:
    """Write a LoRA whose second factor is random instead of trained."""
    config = LoraConfig(r=2, lora_alpha=2, target_modules=backbone.target_layers("attention"))
    inject(backbone.denoiser, config, "new")
    rng = stream(5, "adapter")
    tensors = {
        key: value.clone() if "lora_A" in key else torch.randn(value.shape, generator=rng) * size
        for key, value in state(backbone.denoiser, "new").items()
    }
    eject(backbone.denoiser, "new")
    values = {"base_model": backbone.name, "base_fingerprint": backbone.fingerprint, **header}
    Artifact(tensors, Header(method="test", adapter="lora", config=config.to_dict(), **values)).save(path)
    return path


def settings(model: Path, out: Path, **changes: Any) -> GenerateConfig:
    values = {"model": str(model), "out": out, "steps": 2, "device": "cpu", "prompt": "a red cube", **changes}
    return GenerateConfig(**values)


def pixels(path: Path) -> torch.Tensor:
    return to_tensor(read_image(path))


# ---- the config


def test_the_plan_is_scale_by_scale_prompt_by_prompt_seed_by_seed() -> None:
    config = GenerateConfig(adapter="a.safetensors:0.5", prompt=("p", "q"), seed=7, count=2, scale=(0.5, 1.0))
    assert plan(config) == [
        Item(prompt, seed, scale) for scale in (0.5, 1.0) for prompt in ("p", "q") for seed in (7, 8)
    ]


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("runs/cat:0.8", "runs/cat", 0.8),
        ("runs/cat:-1e-1", "runs/cat", -0.1),
        ("C:/runs/cat", "C:/runs/cat", 1.0),
        ("C:/runs/cat:0", "C:/runs/cat", 0.0),
        ("0.5", "0.5", 1.0),
    ],
)
def test_adapter_texts_are_read(text: str, path: str, weight: float) -> None:
    for behind, begin, end in (("", 0.0, 1.0), ("@0.5-1", 0.5, 1.0), ("@0-.25", 0.0, 0.25)):
        spec = parse_adapter(text + behind)
        assert spec == AdapterSpec(Path(path), weight, begin, end)
        assert parse_adapter(str(spec)) == spec


def test_an_at_without_a_range_belongs_to_the_path() -> None:
    for text in ("me@home/cat", "cat@2", "runs@0-1/cat:1"):
        assert parse_adapter(text) == AdapterSpec(Path(text.removesuffix(":1")), 1.0)


def test_a_range_names_the_steps_that_begin_in_it() -> None:
    spec = parse_adapter("a:1@0.3-0.6")
    assert [step for step in range(10) if spec.acts(step, 10)] == [3, 4, 5]
    assert [step for step in range(4) if spec.acts(step, 4)] == [2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"adapter": ":0.5"}, "names no file"),
        ({"adapter": "a:nan"}, "finite"),
        ({"adapter": "a:1@0.5-0.5"}, "smaller to a larger share"),
        ({"adapter": "a:1@0.8-0.2"}, "smaller to a larger share"),
        ({"adapter": "a:1@0-1.5"}, "both from 0 to 1"),
        ({"adapter": "a:1@0.5"}, "'0.5' is no range of steps; write @FROM-TO"),
        ({"adapter": "a:1@half"}, "no range of steps"),
        ({"adapter": "a@0.55-0.59", "steps": 10}, "none of the 10 sampling steps"),
        ({"steps": 0}, "greater than 0"),
        ({"guidance": -1}, "greater than or equal to 0"),
        ({"seed": -1}, "greater than or equal to 0"),
        ({"seed": 2**63 - 1, "count": 2}, "smaller seed"),
        ({"prompt": ()}, "at least 1"),
        ({"prompt": ("a", "a")}, "twice"),
        ({"sampler": "plms"}, "dpm"),
        ({"eta": 0.5}, "use ddim"),
        ({"scale": (0.5,)}, "without an adapter"),
        ({"negative_prompt": "x", "guidance": 1.0}, "no effect with guidance 1"),
        ({"seeds": 3}, "Extra inputs"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        GenerateConfig(**changes)


def test_every_field_is_documented_and_the_module_needs_no_torch() -> None:
    for name, field in GenerateConfig.model_fields.items():
        assert field.description, name
    code = "import sys, lrdiff.generate_config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_configs_survive_json() -> None:
    config = GenerateConfig(adapter="a:0.5", prompt=("x", "y"), scale=(0.0, 1.0), out=Path("here"))
    assert GenerateConfig.model_validate_json(config.model_dump_json()) == config


# ---- images


def test_the_same_command_gives_the_same_bytes_in_any_folder(
    tiny_model_dir: Path, adapter_file: Path, tmp_path: Path
) -> None:
    config = settings(tiny_model_dir, tmp_path / "a", count=2, adapter=f"{adapter_file}:0.7", negative_prompt="blue")
    first = generate(config)
    second = generate(config.model_copy(update={"out": tmp_path / "b"}))
    again = generate(config)
    assert [path.name for path in first] == ["00001-seed0.png", "00002-seed1.png"]
    assert [path.name for path in again] == ["00003-seed0.png", "00004-seed1.png"]
    for one, two, three in zip(first, second, again, strict=True):
        assert one.read_bytes() == two.read_bytes() == three.read_bytes()
    assert not torch.equal(pixels(first[0]), pixels(first[1]))


def test_an_image_depends_on_its_own_seed_only(backbone: Backbone) -> None:
    options: dict[str, Any] = {"steps": 4, "guidance": 3.0}
    together = render(backbone, ["a red cube"] * 3, [4, 5, 6], **options)
    alone = render(backbone, ["a red cube"], [5], **options)
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-5)
    noisy = render(backbone, ["a red cube"] * 3, [4, 5, 6], sampler="ddim", eta=1.0, **options)
    noisy_alone = render(backbone, ["a red cube"], [5], sampler="ddim", eta=1.0, **options)
    torch.testing.assert_close(noisy[1:2], noisy_alone, rtol=0, atol=1e-5)
    assert float((noisy - together).abs().max()) > 0.01


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": "the sks ball"},
        {"negative_prompt": "green ring"},
        {"seed": 9},
        {"steps": 3},
        {"guidance": 2.0},
        {"sampler": "ddim"},
        {"sampler": "ddim", "eta": 1.0},
        {"width": 48},
        {"height": 48},
        {"dtype": "bf16"},
        {"adapter": True},
        {"adapter": True, "scale": (0.5,)},
    ],
    ids=str,
)
def test_every_setting_changes_the_image(
    changes: dict[str, Any], tiny_model_dir: Path, adapter_file: Path, tmp_path: Path
) -> None:
    if "adapter" in changes:
        changes = {**changes, "adapter": str(adapter_file)}
    base = {"adapter": str(adapter_file)} if "scale" in changes else {}
    base |= {"sampler": "ddim"} if "eta" in changes else {}
    (plain,) = generate(settings(tiny_model_dir, tmp_path, **base))
    (other,) = generate(settings(tiny_model_dir, tmp_path, **{**base, **changes}))
    a, b = pixels(plain), pixels(other)
    assert a.shape != b.shape or not torch.equal(a, b)
    assert (b.shape[2], b.shape[1]) == (changes.get("width", 32), changes.get("height", 32))


def test_batch_size_changes_no_image(tiny_model_dir: Path, tmp_path: Path) -> None:
    one = generate(settings(tiny_model_dir, tmp_path / "1", count=3, batch_size=1))
    three = generate(settings(tiny_model_dir, tmp_path / "3", count=3, batch_size=3))
    for a, b in zip(one, three, strict=True):
        assert float((pixels(a) - pixels(b)).abs().max()) < 2.1 / 255  # one 8-bit level
        assert read_parameters(a) == read_parameters(b)


def test_the_record_in_the_file_makes_the_image_again(
    tiny_model_dir: Path, adapter_file: Path, backbone: Backbone, tmp_path: Path
) -> None:
    prompt = "the sks ball on the sand of the blue ring"
    paths = generate(
        settings(
            tiny_model_dir,
            tmp_path,
            prompt=("a cube", prompt),
            adapter=f"{adapter_file}:0.5",
            scale=(1.0, 2.0),
            count=2,
            seed=40,
            sampler="ddim",
            eta=0.5,
        )
    )
    assert len(paths) == 8
    record = read_parameters(paths[-1])
    assert record["prompt"] == prompt
    assert (record["seed"], record["width"], record["height"], record["sampler"]) == (41, 32, 32, "ddim")
    assert record["model"] == {"name": "tiny", "fingerprint": backbone.fingerprint}
    used = {"name": "red-cat", "method": "test", "sha256": sha256(adapter_file), "weight": 1.0, "steps": [0.0, 1.0]}
    assert record["adapters"] == [used]
    assert record["truncated"] == {}
    assert set(record["versions"]) >= {"torch", "diffusers"}
    (again,) = generate(GenerateConfig(**record["config"], out=tmp_path / "again"))
    assert read_parameters(again) == record
    assert float((pixels(again) - pixels(paths[-1])).abs().max()) < 2.1 / 255
    with Image.open(paths[-1]) as picture:
        picture.load()
        assert f"{prompt}\nSteps: 2, Sampler: DDIM, CFG scale: 3, Seed: 41, Size: 32x32" in picture.info["parameters"]


def test_a_cut_prompt_is_in_the_record(tiny_model_dir: Path, tmp_path: Path) -> None:
    prompt = "a red cube " * 6 + "sks"
    (path,) = generate(settings(tiny_model_dir, tmp_path, prompt=prompt))
    assert read_parameters(path)["truncated"] == {prompt: "cube a red cube sks"}


def test_a_grid_shows_every_image(tiny_model_dir: Path, adapter_file: Path, tmp_path: Path) -> None:
    base: dict[str, Any] = {"adapter": str(adapter_file), "grid": True}
    *images, grid = generate(
        settings(tiny_model_dir, tmp_path / "a", prompt=("a cube", "a ball"), scale=(0.0, 1.0), count=3, **base)
    )
    assert len(images) == 12
    assert grid.name == "00013-grid.png"
    with Image.open(grid) as page:
        assert page.width > 3 * 32
        assert page.height > 4 * 32
        found = {tuple(page.crop((x, y, x + 32, y + 32)).tobytes() for x, y in [at]) for at in _corners(page)}
    for path in images:
        assert (read_image(path).tobytes(),) in found
    assert read_parameters(grid)["config"]["count"] == 3
    *_, wide = generate(settings(tiny_model_dir, tmp_path / "b", scale=(0.0, 0.5, 1.0), **base))
    with Image.open(wide) as page:
        assert page.width > page.height


def _corners(page: Image.Image) -> list[tuple[int, int]]:
    """Return where cells begin: after white both above and to the left."""
    white = (255, 255, 255)
    get = page.convert("RGB").getpixel
    return [
        (x, y)
        for x in range(1, page.width - 31)
        for y in range(1, page.height - 31)
        if get((x - 1, y)) == get((x, y - 1)) == white != get((x, y))
    ]


# ---- adapters


def test_weight_zero_is_the_base_model_and_weights_scale(
    tiny_model_dir: Path, adapter_file: Path, tmp_path: Path
) -> None:
    (plain,) = generate(settings(tiny_model_dir, tmp_path))
    (off,) = generate(settings(tiny_model_dir, tmp_path, adapter=f"{adapter_file}:0"))
    (half,) = generate(settings(tiny_model_dir, tmp_path, adapter=f"{adapter_file}:0.5"))
    (scaled,) = generate(settings(tiny_model_dir, tmp_path, adapter=str(adapter_file), scale=(0.5,)))
    assert torch.equal(pixels(plain), pixels(off))
    assert torch.equal(pixels(half), pixels(scaled))
    assert not torch.equal(pixels(plain), pixels(half))


def test_two_adapters_act_together_and_a_run_directory_is_accepted(
    tiny_model_dir: Path, backbone: Backbone, adapter_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "my-run"
    run.mkdir()
    with pytest.raises(ArtifactError, match="has the run finished"):
        generate(settings(tiny_model_dir, tmp_path, adapter=str(run)))
    save_adapter(backbone, run / "adapter.safetensors", size=0.2)
    both = (f"{adapter_file}:0.5", f"{run}:0.8")
    (joint,) = generate(settings(tiny_model_dir, tmp_path, adapter=both))
    singles = [generate(settings(tiny_model_dir, tmp_path, adapter=text))[0] for text in both]
    names = [(item["name"], item["weight"]) for item in read_parameters(joint)["adapters"]]
    assert names == [("red-cat", 0.5), ("my-run", 0.8)]
    assert not any(torch.equal(pixels(joint), pixels(path)) for path in singles)


@pytest.mark.parametrize("sampler", ["ddim", "dpm++2m"])
def test_outside_its_range_an_adapter_has_no_effect_at_all(
    sampler: str, tiny_model_dir: Path, adapter_file: Path, tmp_path: Path
) -> None:
    """Up to the range the latents are the base model's, bit by bit; up to its end they are the adapter's."""

    def latents(adapter: tuple[str, ...]) -> list[torch.Tensor]:
        seen: list[Progress] = []
        # Two batches: the second must begin like the first.
        config = settings(tiny_model_dir, tmp_path, adapter=adapter, steps=4, sampler=sampler, count=2, batch_size=1)
        generate(config, seen.append)
        return [event.x0 for event in seen if event.x0 is not None]

    base, whole = latents(()), latents((str(adapter_file),))
    late, early = latents((f"{adapter_file}@0.5-1",)), latents((f"{adapter_file}:1@0-0.5",))
    assert len(base) == 8
    for start in (0, 4):
        for step in (start, start + 1):
            assert torch.equal(late[step], base[step])
            assert torch.equal(early[step], whole[step])
            assert not torch.equal(whole[step], base[step])
        for step in (start + 2, start + 3):
            assert not torch.equal(late[step], base[step])
            assert not torch.equal(early[step], whole[step])


def test_a_range_is_in_the_record_and_leaves_the_other_adapters_alone(
    tiny_model_dir: Path, adapter_file: Path, tmp_path: Path
) -> None:
    alone, strong = f"{adapter_file}:0.5", f"{adapter_file}:1@0.5-1"
    (joint,) = generate(settings(tiny_model_dir, tmp_path / "a", adapter=(alone, strong)))
    record = read_parameters(joint)
    assert [(item["weight"], item["steps"]) for item in record["adapters"]] == [(0.5, [0.0, 1.0]), (1.0, [0.5, 1.0])]
    (again,) = generate(GenerateConfig(**record["config"], out=tmp_path / "b"))
    assert again.read_bytes() == joint.read_bytes()
    assert not torch.equal(pixels(joint), pixels(generate(settings(tiny_model_dir, tmp_path, adapter=alone))[0]))


def test_adapters_mix_by_the_sum_of_their_products(backbone: Backbone, adapter_file: Path, tmp_path: Path) -> None:
    """What a layer adds is `w1 s B1 A1 x + w2 s B2 A2 x`, not a product of mixed factors."""
    other = save_adapter(backbone, tmp_path / "other.safetensors", size=0.7)
    read = [read_adapter(AdapterSpec(path, weight)) for path, weight in ((adapter_file, 0.3), (other, 0.7))]
    name = backbone.target_layers("attention")[0]
    plain = backbone.denoiser.get_submodule(name)
    x = torch.randn(2, 5, plain.in_features, generator=stream(1, "x"))  # pyright: ignore[reportArgumentType]
    wanted = plain(x)
    for item in read:
        down, up = (item.artifact.tensors[f"{name}.lora_{part}.weight"] for part in "AB")
        wanted = wanted + item.weight * x @ down.T @ up.T
    with torch.no_grad(), adapted(backbone, read):
        torch.testing.assert_close(backbone.denoiser.get_submodule(name)(x), wanted, rtol=1e-5, atol=1e-5)


def test_adapters_of_two_kinds_act_together_in_either_order(
    tiny_model_dir: Path, backbone: Backbone, adapter_file: Path, tmp_path: Path
) -> None:
    config = TensorLoraConfig(target_modules=backbone.target_layers("attention"), r=2, init_weights=False)
    torch.manual_seed(0)
    inject(backbone.denoiser, config, "new")
    tensors = {key: value.clone() for key, value in state(backbone.denoiser, "new").items()}
    eject(backbone.denoiser, "new")
    header = Header("test", "tensor_lora", config.to_dict(), backbone.name, backbone.fingerprint)
    Artifact(tensors, header).save(tmp_path / "turned.safetensors")
    kinds = (f"{tmp_path / 'turned.safetensors'}:0.1", f"{adapter_file}:0.5")
    joint = [generate(settings(tiny_model_dir, tmp_path, adapter=order))[0] for order in (kinds, kinds[::-1])]
    assert torch.equal(pixels(joint[0]), pixels(joint[1]))
    named = [[item["name"] for item in read_parameters(path)["adapters"]] for path in joint]
    assert named == [["turned", "red-cat"], ["red-cat", "turned"]]


def test_an_adapter_of_another_model_is_refused_by_both_names(tmp_path: Path, adapter_file: Path) -> None:
    other = build_tiny_model(tmp_path / "stranger", seed=1)
    with pytest.raises(ArtifactError, match=r"made for base model 'tiny' .* in use is 'stranger'"):
        generate(settings(other, tmp_path / "out", adapter=str(adapter_file)))
    assert list((tmp_path / "out").iterdir()) == []


def test_an_adapter_that_changes_nothing_is_refused_and_taken_out(backbone: Backbone, tmp_path: Path) -> None:
    path = save_adapter(backbone, tmp_path / "untrained.safetensors", size=0.0)
    names = [name for name, _ in backbone.denoiser.named_modules()]
    config = settings(backbone.path, tmp_path, adapter=str(path))
    with pytest.raises(ArtifactError, match=r"untrained.*leaves the model's output as it was; was it trained"):
        generate(config, backbone=backbone)
    assert [name for name, _ in backbone.denoiser.named_modules()] == names


def test_damaged_and_absent_adapters_are_refused(tiny_model_dir: Path, adapter_file: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(adapter_file.read_bytes()[:-100])
    for path, words in ((damaged, "damaged"), (tmp_path / "absent.safetensors", "no such adapter")):
        with pytest.raises(ArtifactError, match=words):
            generate(settings(tiny_model_dir, tmp_path / "out", adapter=str(path)))
    assert not (tmp_path / "out").exists(), "what was refused leaves no empty folder"


def test_a_ready_model_is_used_and_left_as_it_was(backbone: Backbone, adapter_file: Path, tmp_path: Path) -> None:
    names = [name for name, _ in backbone.denoiser.named_modules()]
    config = settings(backbone.path, tmp_path, adapter=str(adapter_file))
    backbone.denoiser.train()
    (ours,) = generate(config, backbone=backbone)
    assert backbone.denoiser.training
    backbone.denoiser.eval()
    (fresh,) = generate(config)
    assert ours.read_bytes() == fresh.read_bytes()
    assert [name for name, _ in backbone.denoiser.named_modules()] == names
    with pytest.raises(ConfigError, match="asks for cpu and bf16"):
        generate(config.model_copy(update={"dtype": "bf16"}), backbone=backbone)
    other = build_tiny_model(tmp_path / "other", seed=2)
    with pytest.raises(ConfigError, match="asks for model"):
        generate(config.model_copy(update={"model": str(other)}), backbone=backbone)


# ---- bad input, progress, cancelling


def test_an_unwritable_folder_is_found_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="choose another folder"):  # not ModelError: the model was not looked at yet
        generate(settings(tmp_path / "no-model", tmp_path / "file" / "out"))
    with pytest.raises(ModelError, match="no such folder"):
        generate(settings(tmp_path / "no-model", tmp_path / "out"))


def test_sizes_and_samplers_the_model_cannot_do_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    for changes, words in (
        ({"width": 33}, "33x32: tiny needs sides that are multiples of 2, for example 32x32"),
        ({"sampler": "euler"}, "flow models"),
        ({"steps": 1001}, "1 to 1000"),
    ):
        with pytest.raises(ConfigError, match=words):
            generate(settings(tiny_model_dir, tmp_path, **changes))
    assert list(tmp_path.iterdir()) == []


def test_images_that_are_not_finite_are_refused(tiny_model_dir: Path) -> None:
    backbone = backbones.load(tiny_model_dir)
    with torch.no_grad():
        backbone.denoiser.get_parameter("conv_out.bias").fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"seeds \[3, 4\]"):
        render(backbone, ["a", "a"], [3, 4], steps=1)


def test_progress_is_reported_and_can_cancel(tiny_model_dir: Path, backbone: Backbone, tmp_path: Path) -> None:
    seen: list[Progress] = []
    config = settings(tiny_model_dir, tmp_path, count=3, batch_size=2, steps=3)
    paths = generate(config, seen.append, backbone=backbone)
    assert [(len(event.saved), event.step) for event in seen] == [
        (0, 1), (0, 2), (0, 3), (2, 3), (2, 1), (2, 2), (2, 3), (3, 3),
    ]  # fmt: skip
    assert seen[-1].saved == tuple(paths)
    assert seen[0].images == 3
    assert seen[0].x0 is not None
    assert seen[0].x0.shape == (2, 4, 16, 16)

    def stop(event: Progress) -> None:
        if event.saved and event.step == 2:
            raise Cancelled("stopped by the user")

    with pytest.raises(Cancelled):
        generate(config.model_copy(update={"out": tmp_path / "b"}), stop, backbone=backbone)
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["00001-seed0.png", "00002-seed1.png"]
