"""Sparse-linear attention in a diffusers model: find what can be replaced, replace it, switch it, take it out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.models import attention_processor as classic
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor, FluxSingleTransformerBlock
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import nn

from lrdiff.errors import TargetError
from lrdiff.sla.processor import SlaProcessor
from lrdiff.sla.processors import (
    CogVideoXProcessor,
    FluxProcessor,
    HunyuanVideoProcessor,
    SD3Processor,
    SelfProcessor,
)
from lrdiff.sla.settings import SlaSettings
from lrdiff.sla.wan import WanProcessor

KINDS: tuple[tuple[type, type[SlaProcessor]], ...] = (
    (WanAttnProcessor, WanProcessor),
    (FluxAttnProcessor, FluxProcessor),
    (HunyuanVideoAttnProcessor2_0, HunyuanVideoProcessor),
    (classic.CogVideoXAttnProcessor2_0, CogVideoXProcessor),
    (classic.JointAttnProcessor2_0, SD3Processor),
    (classic.AttnProcessor2_0, SelfProcessor),
)
"""diffusers' processor and ours. The first kind that a model has is the one that is replaced: models with joint
attention have plain self-attention too, in small masked networks that refine the text."""

HOOKS = "_lrdiff_sla_hooks"


def replaceable(model: nn.Module) -> dict[str, tuple[Any, type[SlaProcessor]]]:
    """Return the attention layers that can be replaced, by name, with the class that replaces their processor.

    Cross-attention is left alone.

    Raises:
        TargetError: There is none, sparse-linear attention is in already, or keys and values have fewer heads.
    """
    if any(True for _ in processors(model)):
        raise TargetError(f"{type(model).__name__} has sparse-linear attention already; take it out first")
    layers = [(name, module) for name, module in model.named_modules() if hasattr(module, "processor")]
    for theirs, ours in KINDS:
        found: dict[str, tuple[Any, type[SlaProcessor]]] = {
            name: (layer, ours) for name, layer in layers if type(layer.processor) is theirs and not _crosses(layer)
        }
        if found:
            _check_heads(found)
            return found
    raise TargetError(
        f"{type(model).__name__} has no self-attention that can be replaced; supported are diffusers' Wan, FLUX, "
        "HunyuanVideo, CogVideoX, Stable Diffusion 3 and PixArt transformers and its UNets"
    )


def put_in(model: nn.Module, settings: SlaSettings) -> list[str]:
    """Give every replaceable layer its own processor, on the layer's device, and return the layers' names.

    Args:
        model: A diffusers transformer or UNet, changed in place; `take_out` undoes it.
        settings: Of all layers.

    Raises:
        TargetError: As `replaceable`.
    """
    found = replaceable(model)
    for layer, kind in found.values():
        queries = _linear(layer.to_q)
        processor = kind(layer.heads, queries.out_features // layer.heads, settings, layer.processor)
        layer.set_processor(processor.to(queries.weight.device))
    hooks = [
        block.register_forward_pre_hook(_tell_text, with_kwargs=True)
        for block in model.modules()
        if isinstance(block, FluxSingleTransformerBlock)
    ]
    model.__dict__[HOOKS] = hooks
    return list(found)


def take_out(model: nn.Module) -> None:
    """Give every layer the processor back that it had before `put_in`.

    Raises:
        TargetError: The model has no sparse-linear attention.
    """
    found = list(processors(model))
    if not found:
        raise TargetError(f"{type(model).__name__} has no sparse-linear attention to take out")
    for name, processor in found:
        layer: Any = model.get_submodule(name)
        del layer.processor
        layer.set_processor(processor.original)
    for hook in model.__dict__.pop(HOOKS):
        hook.remove()


def processors(model: nn.Module) -> Iterator[tuple[str, SlaProcessor]]:
    """Yield the name of every layer with sparse-linear attention, and its processor, in model order."""
    for name, module in model.named_modules():
        if isinstance(module, SlaProcessor):
            yield name.removesuffix(".processor"), module


def set_settings(model: nn.Module, settings: SlaSettings) -> None:
    """Change the settings of all layers."""
    for _, processor in processors(model):
        processor.settings = settings


@contextmanager
def full_attention(model: nn.Module) -> Iterator[None]:
    """Let every layer attend fully, by its own processor, for a while."""
    found = [processor for _, processor in processors(model)]
    before = [processor.enabled for processor in found]
    try:
        for processor in found:
            processor.enabled = False
        yield
    finally:
        for processor, enabled in zip(found, before, strict=True):
            processor.enabled = enabled


def _crosses(layer: Any) -> bool:
    """Tell whether a layer attends to another sequence only; joint attention attends to both."""
    return bool(getattr(layer, "is_cross_attention", False))


def _linear(layer: Any) -> nn.Linear:
    """Return a layer without the adapters around it."""
    while hasattr(layer, "base_layer"):
        layer = layer.base_layer
    return layer


def _check_heads(found: dict[str, tuple[Any, type[SlaProcessor]]]) -> None:
    for name, (layer, _) in found.items():
        queries, keys = _linear(layer.to_q).out_features, _linear(layer.to_k).out_features
        if queries != keys:
            raise TargetError(
                f"{name}: {queries} features of queries and {keys} of keys: grouped heads are not supported"
            )
        odd = [part for part in ("spatial_norm", "group_norm") if getattr(layer, part, None) is not None]
        if odd:
            raise TargetError(f"{name}: attention with {odd[0]} is not supported")


def _tell_text(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Tell a single-stream layer of FLUX how many of its tokens are text."""
    text = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[1]
    attention: Any = block.attn
    attention.processor.text_tokens = text.shape[1]
