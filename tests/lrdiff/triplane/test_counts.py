"""Names, shapes and numbers of the published weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lrdiff.errors import ConfigError
from lrdiff.triplane.config import TriplaneConfig, eg3d_config, from_json, to_json
from lrdiff.triplane.generator import TriplaneGenerator
from tests.lrdiff.triplane.tiny import MINI, TINY


def empty(config: TriplaneConfig) -> TriplaneGenerator:
    """Return a generator without memory for its weights."""
    with torch.device("meta"):
        return TriplaneGenerator(config)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_512_generator_has_the_published_parameters_block_by_block() -> None:
    generator = empty(eg3d_config("ffhq512"))
    blocks = {
        "backbone.mapping": 800_768,
        "backbone.synthesis.b4": 2_942_561,
        "backbone.synthesis.b8": 5_556_834,
        "backbone.synthesis.b16": 5_556_834,
        "backbone.synthesis.b32": 5_556_834,
        "backbone.synthesis.b64": 5_556_834,
        "backbone.synthesis.b128": 2_319_970,
        "backbone.synthesis.b256": 717_666,
        "superresolution.block0": 943_909,
        "superresolution.block1": 705_669,
        "decoder": 4_257,
    }
    assert {name: count(generator.get_submodule(name)) for name in blocks} == blocks
    assert count(generator) == sum(blocks.values()) == 30_662_136


@pytest.mark.parametrize("name", ["afhq512", "cars128"])
def test_the_other_variants_have_the_published_parameters(name: str) -> None:
    generator = empty(eg3d_config(name))
    assert count(generator) == 29_587_512
    assert count(generator.superresolution) == 574_954
    assert generator.state_dict()["superresolution.resample_filter"].shape == (4, 4)


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Write down the key tree of the 512 px weights by hand, apart from the code that makes it."""
    shapes: dict[str, tuple[int, ...]] = {"backbone.mapping.w_avg": (512,)}
    for layer, inputs in (("embed", 25), ("fc0", 1024), ("fc1", 512)):
        shapes |= {f"backbone.mapping.{layer}.weight": (512, inputs), f"backbone.mapping.{layer}.bias": (512,)}

    def conv(where: str, inputs: int, outputs: int, side: int) -> dict[str, tuple[int, ...]]:
        return {
            f"{where}.weight": (outputs, inputs, 3, 3), f"{where}.bias": (outputs,), f"{where}.noise_strength": (),
            f"{where}.noise_const": (side, side), f"{where}.resample_filter": (4, 4),
            f"{where}.affine.weight": (inputs, 512), f"{where}.affine.bias": (inputs,),
        }  # fmt: skip

    def colours(where: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
        return {
            f"{where}.weight": (outputs, inputs, 1, 1), f"{where}.bias": (outputs,),
            f"{where}.affine.weight": (inputs, 512), f"{where}.affine.bias": (inputs,),
        }  # fmt: skip

    before = 0
    for side in (4, 8, 16, 32, 64, 128, 256):
        where, channels = f"backbone.synthesis.b{side}", min(32768 // side, 512)
        shapes[f"{where}.resample_filter"] = (4, 4)
        shapes |= conv(f"{where}.conv0", before, channels, side) if before else {f"{where}.const": (512, 4, 4)}
        shapes |= conv(f"{where}.conv1", channels, channels, side) | colours(f"{where}.torgb", channels, 96)
        before = channels
    for number, (inputs, outputs, side) in enumerate([(32, 256, 256), (256, 128, 512)]):
        where = f"superresolution.block{number}"
        shapes[f"{where}.resample_filter"] = (4, 4)
        shapes |= conv(f"{where}.conv0", inputs, outputs, side) | conv(f"{where}.conv1", outputs, outputs, side)
        shapes |= colours(f"{where}.torgb", outputs, 3)
    return shapes | {
        "decoder.net.0.weight": (64, 32), "decoder.net.0.bias": (64,),
        "decoder.net.2.weight": (33, 64), "decoder.net.2.bias": (33,),
    }  # fmt: skip


def test_the_512_generator_has_the_published_176_tensors() -> None:
    found = {name: tuple(tensor.shape) for name, tensor in empty(eg3d_config("ffhq512")).state_dict().items()}
    assert len(found) == 176
    assert found == expected_shapes()


def test_the_mini_generator_has_the_reference_count() -> None:
    generator = empty(MINI)
    assert count(generator) - count(generator.backbone.mapping) == 301_828


@pytest.mark.parametrize("name", ["ffhq512", "afhq512", "cars128"])
def test_published_configurations_survive_json(name: str) -> None:
    config = eg3d_config(name)
    assert from_json(to_json(config)) == config
    assert config.latents == 14
    assert config.side == int(name[-3:])
    assert config.render.legacy_axes


def test_own_configurations_have_correct_axes() -> None:
    assert not TINY.render.legacy_axes


def test_wrong_configurations_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"'ffhq1024'.*ffhq512, afhq512, cars128"):
        eg3d_config("ffhq1024")
    with pytest.raises(ConfigError, match="colours: 2"):
        TriplaneConfig(colours=2)
    with pytest.raises(ConfigError, match="layers"):
        from_json({"layers": 3})
