"""The adapter: published counts, where it acts, and that it comes off."""

from __future__ import annotations

import math

import pytest
import torch

from lrdiff.errors import ArtifactError, ConfigError, TargetError
from lrdiff.triplane import TriplaneGenerator, eg3d_config
from lrdiff.triplane import functional as maths
from lrdiff.triplane.cameras import frontal
from lrdiff.triplane.config import TriplaneConfig
from lrdiff.triplane.layers import StyledConv
from lrdiff.triplane.lora import ConvDelta, Form, LinearDelta, LoraConfig, Personal, targets
from tests.lrdiff.triplane.tiny import MINI, TINY, tiny


def counted(config: TriplaneConfig, lora: LoraConfig) -> dict[str, int]:
    """Return trained numbers by kind and part."""
    with torch.device("meta"):
        personal = Personal(TriplaneGenerator(config), lora)
    found: dict[str, int] = {}
    for name, parameter in personal.named_parameters():
        part = "sr" if name.startswith("superresolution") else "backbone"
        kind = "style" if ".affine.delta." in name else "conv" if ".delta." in name else "extra"
        key = "extra" if kind == "extra" else f"{kind} {part}"
        found[key] = found.get(key, 0) + parameter.numel()
    return found


def test_rank_1_on_the_512_generator_is_the_published_243965() -> None:
    found = counted(eg3d_config("ffhq512"), LoraConfig(r=1))
    assert found == {
        "conv backbone": 175_264, "conv sr": 20_838, "style backbone": 18_944, "style sr": 4_128, "extra": 24_791,
    }  # fmt: skip
    assert sum(found.values()) - found["extra"] == 219_174
    assert sum(found.values()) == 243_965


@pytest.mark.parametrize(
    ("form", "counts"),
    [
        ("published", {1: 219_174, 2: 438_348, 4: 876_696, 8: 1_753_392}),
        ("plain", {1: 91_110, 2: 182_220, 4: 364_440, 8: 728_880}),
        ("loralib", {1: 140_262, 2: 280_524, 4: 561_048, 8: 1_122_096}),
    ],
)
def test_other_ranks_and_forms_have_the_reference_counts(form: Form, counts: dict[int, int]) -> None:
    for r, expected in counts.items():
        found = counted(eg3d_config("ffhq512"), LoraConfig(r=r, form=form, extras=False))
        assert sum(found.values()) == expected


def test_other_variants_are_wrapped_whole() -> None:
    for name in ("afhq512", "cars128"):
        assert sum(counted(eg3d_config(name), LoraConfig(extras=False)).values()) == 208_678


def test_the_mini_generator_has_the_reference_counts() -> None:
    one, four = (counted(MINI, LoraConfig(r=r, styles=False)) for r in (1, 4))
    assert one["conv backbone"] == 12_704
    assert counted(MINI, LoraConfig())["style backbone"] == 2_048
    with torch.device("meta"):
        generator = TriplaneGenerator(MINI)
    biases = sum(layer.bias.numel() for _, layer in targets(generator))
    assert biases == 480
    assert one["conv backbone"] + biases == 13_184
    assert four["conv backbone"] + biases == 51_296


def test_the_decoder_is_trained_whole_where_it_is_named() -> None:
    found = counted(eg3d_config("ffhq512"), LoraConfig(decoder=True))
    assert sum(found.values()) == 243_965 + 4_257
    generator = tiny()
    personal = Personal(generator, LoraConfig(extras=False, decoder=True))
    whole = {name for name, _ in personal.named_parameters() if ".delta." not in name}
    assert whole == {name for name, _ in generator.named_parameters() if name.startswith("decoder.")}
    before = {name: generator.get_parameter(name).clone() for name in whole}
    trained(personal)
    assert not any(torch.equal(generator.get_parameter(name), value) for name, value in before.items())
    personal.remove()
    assert all(torch.equal(generator.get_parameter(name), value) for name, value in before.items())


def trained(personal: Personal, seed: int = 0) -> None:
    """Put random numbers where training would."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in personal.named_parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=rng)


def picture(generator: TriplaneGenerator) -> torch.Tensor:
    z = torch.randn(1, 8, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return generator(z, frontal(TINY)).image


@pytest.mark.parametrize("form", ["published", "plain", "loralib"])
def test_the_start_changes_nothing_merging_keeps_and_removing_restores(form: Form) -> None:
    generator = tiny()
    base, weights = picture(generator), {n: p.clone() for n, p in generator.state_dict().items()}
    personal = Personal(generator, LoraConfig(r=2, alpha=3.0, form=form))
    assert torch.equal(picture(generator), base)
    trained(personal)
    changed, state = picture(generator), personal.state()
    assert float((changed - base).abs().max()) > 1e-3
    personal.remove()
    assert generator.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in generator.state_dict().items())
    again = Personal(generator, LoraConfig(r=2, alpha=3.0, form=form))
    again.load(state)
    assert torch.equal(picture(generator), changed)
    again.merge()
    torch.testing.assert_close(picture(generator), changed, atol=1e-4, rtol=1e-4)
    frozen = [n for n in weights if n.startswith(("backbone.mapping", "decoder")) or n.endswith("filter")]
    assert all(torch.equal(generator.state_dict()[name], weights[name]) for name in frozen)
    assert all(parameter.requires_grad for parameter in generator.parameters())


@pytest.mark.parametrize(("form", "ranks"), [("published", (6, 2)), ("plain", (2, 2)), ("loralib", (9, 2))])
def test_effective_ranks(form: Form, ranks: tuple[int, int]) -> None:
    generator = tiny()
    personal = Personal(generator, LoraConfig(r=2, form=form))
    trained(personal)
    conv, colours = (dict(targets(generator))[f"backbone.synthesis.b8.{name}"].delta for name in ("conv1", "torgb"))
    found = [int(torch.linalg.matrix_rank(delta().flatten(1))) for delta in (conv, colours) if delta is not None]
    assert found[1] == ranks[1]
    assert found[0] == ranks[0] if form != "loralib" else found[0] >= 6


def test_the_change_is_inside_modulation_and_demodulation() -> None:
    torch.manual_seed(0)
    layer = StyledConv(3, 4, 8, 6, up=False, noise=False)
    layer.delta = ConvDelta(layer, 2, 4.0, "published")
    torch.nn.init.normal_(layer.delta.b, std=0.3)
    x, w = torch.randn(2, 3, 6, 6), torch.randn(2, 8)
    change = 2.0 * (layer.delta.b @ layer.delta.a).reshape(4, 3, 3, 3)
    style, taps = layer.affine(w), maths.fir_filter()
    inside = maths.leaky(maths.modulated_conv(x, layer.weight + change, style, taps))
    torch.testing.assert_close(layer(x, w), inside)
    outside = maths.leaky(
        maths.modulated_conv(x, layer.weight, style, taps)
        + maths.modulated_conv(x, change, style, taps, demodulate=False)
    )
    assert float((layer(x, w) - outside).detach().abs().max()) > 1e-2, "after demodulation it is another function"


def test_the_change_of_a_style_has_no_gain() -> None:
    torch.manual_seed(1)
    layer = StyledConv(3, 4, 16, 6, up=False, noise=False).affine
    w = torch.randn(2, 16)
    base = layer(w)
    layer.delta = LinearDelta(layer, 2, 4.0)
    torch.nn.init.normal_(layer.delta.b)
    expected = 2.0 * torch.einsum("bi,ri,or->bo", w, layer.delta.a, layer.delta.b)
    torch.testing.assert_close(layer(w) - base, expected, atol=1e-5, rtol=1e-4)
    assert layer.weight_gain == 1 / math.sqrt(16)


def test_only_the_adapter_learns() -> None:
    generator = tiny()
    personal = Personal(generator, LoraConfig())
    trained(personal)
    generator(torch.randn(1, 8), frontal(TINY)).image.square().mean().backward()
    learns = {name for name, p in generator.named_parameters() if p.grad is not None}
    silent = {n for n, _ in personal.named_parameters() if n.startswith("super") and n.endswith("noise_strength")}
    assert learns == {name for name, _ in personal.named_parameters()} - silent
    assert not any(name.startswith(("backbone.mapping", "decoder")) for name in learns)
    assert all(".delta." in n or n.rpartition(".")[2] in ("bias", "noise_strength", "const") for n in learns)


def test_wrong_use_is_refused() -> None:
    generator = tiny()
    personal = Personal(generator, LoraConfig())
    with pytest.raises(TargetError, match="carries an adapter already"):
        Personal(generator, LoraConfig())
    state = personal.state()
    name = next(iter(state))
    with pytest.raises(ArtifactError, match=f"1 tensors do not fit.*{name}"):
        personal.load({key: value for key, value in state.items() if key != name})
    with pytest.raises(ConfigError, match="r 0"):
        LoraConfig(r=0)
