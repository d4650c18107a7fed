"""A real UNet: diffusers' own adapter methods, strengths, fusing, and its LoRA loaders, which must refuse our files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from lrdiff.tensor_lora import TensorLoraConfig
from tests.lrdiff.tensor_lora.models import ATTENTION, base_weights, layers, settings, tiny_unet, unet_inputs

WITH_CONVS = [*ATTENTION, "conv1", "ff.net.0.proj", "ff.net.2", "proj_in"]


def output(unet: UNet2DConditionModel, **extra: Any) -> Tensor:
    sample, timestep, text = unet_inputs()
    with torch.no_grad():
        return unet(sample, timestep, text, **extra).sample


def adapted(names: tuple[str, ...] = ("one",), targets: list[str] = ATTENTION) -> UNet2DConditionModel:
    unet = tiny_unet()
    for seed, name in enumerate(names):
        torch.manual_seed(30 + seed)
        unet.add_adapter(settings(targets), name)
    unet.set_adapter(list(names))
    return unet


def test_a_fresh_adapter_changes_nothing_and_trains_alone() -> None:
    unet = tiny_unet()
    before = output(unet)
    unet.add_adapter(TensorLoraConfig(target_modules=WITH_CONVS), "one")
    assert torch.equal(output(unet), before)
    weights = base_weights(unet)
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=1e-2)
    sample, timestep, text = unet_inputs()
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = (unet(sample, timestep, text).sample - sample).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = base_weights(unet)
    assert all(torch.equal(weights[name], after[name]) for name in weights)


def test_gradient_checkpointing_of_the_unet() -> None:
    gradients = []
    for use in (False, True):
        unet = adapted().train()
        if use:
            unet.enable_gradient_checkpointing()
        sample, timestep, text = unet_inputs()
        unet(sample, timestep, text).sample.square().mean().backward()
        gradients.append([p.grad for p in unet.parameters() if p.requires_grad])
    assert len(gradients[0]) == 2 * len(list(layers(unet)))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_weights_select_and_scale() -> None:
    unet, base = adapted(("one", "two")), output(tiny_unet())
    both = output(unet)
    unet.set_adapters(["one"], [1.0])
    one = output(unet)
    unet.set_adapters(["one", "two"], [1.0, 0.0])
    assert torch.equal(output(unet), one)
    unet.set_adapters(["one", "two"], [0.0, 0.0])
    assert torch.equal(output(unet), base)
    unet.set_adapters(["one", "two"], [0.5, 1.5])
    mixed = output(unet)
    assert all((mixed - other).abs().max() > 1e-5 for other in (one, both, base))
    unet.set_adapters(["one", "two"])
    assert torch.equal(output(unet), both)


def test_scale_for_one_call_equals_a_weight_and_leaves_no_trace() -> None:
    unet = adapted()
    full = output(unet)
    scaled = output(unet, cross_attention_kwargs={"scale": 0.3})
    assert torch.equal(output(unet, cross_attention_kwargs={"scale": 0.0}), output(tiny_unet()))
    torch.testing.assert_close(output(unet), full)
    unet.set_adapters(["one"], [0.3])
    torch.testing.assert_close(output(unet), scaled)


@pytest.mark.parametrize("targets", [ATTENTION, WITH_CONVS], ids=["attention", "with convolutions"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_fusing(targets: list[str], scale: float) -> None:
    unet = adapted(targets=targets)
    unet.set_adapters(["one"], [scale])
    expected = output(unet)
    unet.set_adapters(["one"], [1.0])
    before = base_weights(unet)
    unet.fuse_lora(lora_scale=scale, safe_fusing=True)
    torch.testing.assert_close(output(unet), expected, rtol=1e-4, atol=1e-5)
    unet.unfuse_lora()
    after = base_weights(unet)
    assert all(torch.equal(before[name], after[name]) for name in before)
    torch.testing.assert_close(output(unet), expected, rtol=1e-4, atol=1e-5)


def test_disable_enable_delete() -> None:
    unet, base = adapted(("one", "two")), output(tiny_unet())
    both = output(unet)
    unet.disable_adapters()
    assert torch.equal(output(unet), base)
    unet.enable_adapters()
    assert torch.equal(output(unet), both)
    unet.delete_adapters("two")
    assert all(set(layer.shapes) == {"one"} for layer in layers(unet))
    assert set(unet.peft_config) == {"one"}
    unet.unload_lora()
    assert not list(layers(unet))
    assert torch.equal(output(unet), base)


def test_the_state_dict_goes_into_another_unet() -> None:
    source, target = adapted(), tiny_unet()
    state = get_peft_model_state_dict(source, adapter_name="one")
    assert len(state) == 2 * len(list(layers(source)))
    inject_adapter_in_model(settings(ATTENTION), target, "new", low_cpu_mem_usage=True, state_dict=state)
    result = set_peft_model_state_dict(target, state, adapter_name="new", low_cpu_mem_usage=True)
    assert not result.unexpected_keys
    assert torch.equal(output(target), output(source))


def test_diffusers_saver_keeps_the_settings_and_its_loaders_refuse_the_file(tmp_path: Path) -> None:
    """Neither loader may pretend: both raise and leave the base as it was."""
    adapted().save_lora_adapter(str(tmp_path), adapter_name="one")
    unet = tiny_unet()
    before = output(unet)
    with pytest.raises(Exception, match=r"Target modules|could not be instantiated"):
        unet.load_lora_adapter(
            str(tmp_path), weight_name="pytorch_lora_weights.safetensors", adapter_name="one", prefix=None
        )
    assert torch.equal(output(unet), before)


def test_the_pipelines_lora_loader_refuses_our_file(tiny_model_dir: Path, tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_model_dir)
    twin = StableDiffusionPipeline.from_pretrained(tiny_model_dir)
    twin.unet.add_adapter(settings(ATTENTION), "one")
    state = get_peft_model_state_dict(twin.unet, adapter_name="one")
    save_file({f"unet.{key}": value.contiguous() for key, value in state.items()}, tmp_path / "adapter.safetensors")
    weights = {name: p.clone() for name, p in pipeline.unet.named_parameters()}
    with pytest.raises((ValueError, TypeError, IndexError)):
        pipeline.load_lora_weights(str(tmp_path), weight_name="adapter.safetensors")
    assert all(torch.equal(weights[name], p) for name, p in pipeline.unet.named_parameters())
