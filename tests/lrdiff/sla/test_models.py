"""Sparse-linear attention in every supported class of transformers: what it replaces, learns, keeps and refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from torch import nn

from lrdiff.errors import BackendError, ConfigError, TargetError
from lrdiff.sla.models import full_attention, processors, put_in, set_settings, take_out
from lrdiff.sla.settings import SlaSettings
from tests.lrdiff.sla.networks import NETWORKS, Network

SMALL = SlaSettings(topk=0.2, block_q=16, block_k=16)
EVERYTHING = replace(SMALL, topk=1.0)


@pytest.fixture(params=list(NETWORKS))
def network(request: pytest.FixtureRequest) -> Network:
    return NETWORKS[request.param]


def randomise(model: nn.Module) -> None:
    """Move projections away from zero, which would hide the linear branch."""
    torch.manual_seed(2)
    for _, processor in processors(model):
        nn.init.normal_(processor.proj.weight, std=0.5)
        nn.init.normal_(processor.proj.bias, std=0.5)


@torch.no_grad()
def test_topk_of_everything_is_the_models_own_output(network: Network) -> None:
    model = network.make()
    own = network.call(model)
    assert put_in(model, EVERYTHING) == list(network.layers)
    torch.testing.assert_close(network.call(model), own, rtol=1e-4, atol=1e-5)
    set_settings(model, SMALL)
    sparse = network.call(model)
    assert (sparse - own).abs().max() > 1e-4
    randomise(model)
    assert (network.call(model) - sparse).abs().max() > 1e-4, "the linear branch takes part"
    with full_attention(model):
        assert torch.equal(network.call(model), own)
    take_out(model)
    assert torch.equal(network.call(model), own)
    assert not list(processors(model))


@pytest.mark.parametrize("part", ["proj.weight", "mix"])
def test_every_layer_learns_its_own_projection_and_shares(network: Network, part: str) -> None:
    model = network.make()
    put_in(model, SMALL)
    network.call(model).square().mean().backward()
    weights = [processor.get_parameter(part) for _, processor in processors(model)]
    grads = [weight.grad for weight in weights if weight.grad is not None]
    assert len(grads) == len({id(weight) for weight in weights}) == len(network.layers)
    assert all(grad.abs().max() > 0 for grad in grads)
    assert not torch.equal(grads[0], grads[1])


@torch.no_grad()
def test_without_shares_it_is_the_papers(network: Network) -> None:
    model = network.make()
    put_in(model, replace(SMALL, mix=0.0))
    assert all(processor.mix is None for _, processor in processors(model))
    plain = network.call(model)
    take_out(model)
    put_in(model, SMALL)
    assert not torch.allclose(network.call(model), plain, rtol=1e-4, atol=1e-5)
    for _, processor in processors(model):
        nn.init.zeros_(processor.get_parameter("mix"))
    torch.testing.assert_close(network.call(model), plain)


@torch.no_grad()
def test_half_precision_keeps_projection_and_shares_and_computes(network: Network) -> None:
    model = network.make()
    put_in(model, SMALL)
    randomise(model)
    whole = network.call(model)
    before = [
        (processor.proj.weight.clone(), processor.get_parameter("mix").clone()) for _, processor in processors(model)
    ]
    nn.Module.to(model, torch.bfloat16)
    for (_, processor), kept in zip(processors(model), before, strict=True):
        for now, then in zip((processor.proj.weight, processor.get_parameter("mix")), kept, strict=True):
            assert now.dtype == torch.float32
            assert torch.equal(now, then)
    half = network.call(model).float()
    assert torch.isfinite(half).all()
    # Also where routing flips a block between the two formats.
    assert (half - whole).norm() / whole.norm() < 0.1


@pytest.mark.parametrize("before", [True, False])
def test_diffusers_attention_backends_are_refused(before: bool) -> None:
    """A processor that does not know of them would ignore them in silence."""
    model = NETWORKS["wan"].make()
    if before:
        model.set_attention_backend("native")
    put_in(model, SMALL)
    if not before:
        model.set_attention_backend("native")
    with pytest.raises(BackendError, match="set_attention_backend"):
        NETWORKS["wan"].call(model)


def test_masks_ip_adapters_and_text_are_refused() -> None:
    states = torch.randn(1, 40, 32)
    for name, given, reason in (
        ("pixart", {"attention_mask": torch.zeros(1, 40)}, "masks: leave the padding out"),
        ("pixart", {"encoder_hidden_states": states}, "cross-attention"),
        ("wan", {"encoder_hidden_states": states}, "self-attention"),
        ("cogvideox", {}, "brings no text"),
        ("hunyuan", {}, "brings no text"),
        ("flux", {"encoder_hidden_states": states, "ip_hidden_states": [states]}, "IP-adapters: unload"),
        ("sd3", {"encoder_hidden_states": states, "attention_mask": torch.zeros(1, 40)}, "masks"),
    ):
        model = NETWORKS[name].make()
        layer: Any = model.get_submodule(put_in(model, SMALL)[0])
        with pytest.raises(ConfigError, match=reason):
            layer.processor(layer, states, **given)


def test_a_single_stream_layer_must_know_its_text() -> None:
    model = NETWORKS["flux"].make()
    layer: Any = model.get_submodule(put_in(model, SMALL)[1])
    with pytest.raises(ConfigError, match="outside its block"):
        layer(hidden_states=torch.randn(1, 40, 32))


def test_fused_projections_are_refused() -> None:
    network = NETWORKS["wan"]
    model = network.make()
    put_in(model, SMALL)
    model.blocks[0].attn1.fused_projections = True
    with pytest.raises(ConfigError, match="unfuse_qkv_projections"):
        network.call(model)


def test_prompts_of_different_lengths_are_refused() -> None:
    network = NETWORKS["hunyuan"]
    model = network.make()
    put_in(model, SMALL)
    torch.manual_seed(1)
    given = {name: torch.cat([value, value]) for name, value in network.inputs().items()}
    given["encoder_attention_mask"][1, 12] = False
    with pytest.raises(ConfigError, match=r"different lengths \(\[13, 12\] tokens\)"):
        model(**given)


def test_a_model_without_attention_and_a_second_time_are_refused() -> None:
    with pytest.raises(TargetError, match="no self-attention that can be replaced; supported are"):
        put_in(nn.Linear(2, 2), SMALL)
    model = NETWORKS["pixart"].make()
    with pytest.raises(TargetError, match="to take out"):
        take_out(model)
    put_in(model, SMALL)
    with pytest.raises(TargetError, match="already"):
        put_in(model, SMALL)


def test_grouped_heads_are_refused() -> None:
    model = NETWORKS["pixart"].make()
    layer = model.transformer_blocks[0].attn1
    layer.to_k, layer.to_v = nn.Linear(32, 16), nn.Linear(32, 16)
    with pytest.raises(TargetError, match="grouped heads"):
        put_in(model, SMALL)


@pytest.mark.parametrize(
    "change",
    [{"topk": 0.0}, {"topk": 1.5}, {"skip": 1.0}, {"topk": 0.95}, {"block_q": 8}, {"block_k": 256}, {"scope": "some"},
     {"feature_map": "tanh"}],
    ids=str,
)  # fmt: skip
def test_settings_are_checked_at_once(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        replace(SMALL, **change)


def test_cross_attention_is_left_alone() -> None:
    model = NETWORKS["pixart"].make()
    before = [block.attn2.processor for block in model.transformer_blocks]
    put_in(model, SMALL)
    assert [block.attn2.processor for block in model.transformer_blocks] == before


def test_loading_into_a_plain_model_drops_what_was_learned(tmp_path: Any) -> None:
    """Why projections have a file of their own: diffusers writes them and does not read them."""
    model = NETWORKS["pixart"].make()
    put_in(model, SMALL)
    model.save_pretrained(tmp_path)
    _, found = PixArtTransformer2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert "transformer_blocks.0.attn1.processor.proj.weight" in found["unexpected_keys"]


@pytest.mark.parametrize("name", list(NETWORKS))
def test_autocast_trains_in_half_precision(name: str) -> None:
    network = NETWORKS[name]
    model = network.make()
    put_in(model, SMALL)
    randomise(model)
    with torch.no_grad():
        whole = network.call(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = network.call(model)
        half.float().square().mean().backward()
    assert (half - whole).norm() / whole.norm() < 0.1
    for _, processor in processors(model):
        grad = processor.proj.weight.grad
        assert grad is not None
        assert grad.dtype == torch.float32
        assert torch.isfinite(grad).all()
