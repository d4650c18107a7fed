"""Where the mark lives: a LoRA on the last convolutions of an autoencoder's decoder, merged before anyone gets it."""

from __future__ import annotations

import re
from typing import Any, cast

import torch
from peft import LoraConfig
from peft.tuners.lora import Conv2d as LoraConv2d
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

from lrdiff.errors import TargetError
from lrdiff.inject import Report, eject, report, tuner_layers

LAST_BLOCK = "decoder-last-block"


def default_lora_config(vae: nn.Module, target: str = LAST_BLOCK, rank: int = 4, alpha: float = 32) -> LoraConfig:
    """Return the peft config of the mark, for `vae.add_adapter` or `lrdiff.inject.inject`.

    W~ = W + (alpha / rank) B A, zero at the start (EW-LoRA, arXiv 2410.20202). On Stable Diffusion's autoencoder these
    are conv1 and conv2 of the three resnets of `up_blocks.3`: 35,328 parameters at rank 4.

    Args:
        vae: A diffusers autoencoder with a `decoder` of 2D convolutions. Not changed.
        target: "decoder-last-block", or a regular expression that matches whole layer names of `vae`.
        rank: Rank of every layer's change.
        alpha: Its strength; the scale is alpha / rank.

    Raises:
        TargetError: Nothing matches, the expression is none, or it reaches outside the decoder.
    """
    names = last_block(vae) if target == LAST_BLOCK else _matching(vae, target)
    # An expression and no list: peft shortens lists from 20 names on to endings, which fit layers of the encoder too.
    return LoraConfig(r=rank, lora_alpha=cast(int, alpha), target_modules="|".join(map(re.escape, names)))


def last_block(vae: nn.Module) -> list[str]:
    """Return the names of the convolutions of the decoder's residual blocks at the resolution of the picture.

    Found by running a tiny latent and watching, not by names, since decoders number their blocks differently. Taken are
    the convolutions larger than 1x1 that run at full resolution, without the one that makes the picture, and of these
    the ones that share a parent (a residual block has several, an upsampler one).

    Raises:
        TargetError: The model has no decoder of 2D convolutions, or none at full resolution.
    """
    decoder = getattr(vae, "decoder", None)
    channels = getattr(getattr(vae, "config", None), "latent_channels", None)
    if not isinstance(decoder, nn.Module) or not isinstance(channels, int):
        raise TargetError(f"{type(vae).__name__} has no decoder of latents; give a diffusers autoencoder")
    seen: list[tuple[str, tuple[int, ...]]] = []
    handles = []
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d) and name.startswith("decoder.") and "lora_" not in name:
            place = name.removesuffix(".base_layer")
            handles.append(module.register_forward_hook(_watch(seen, place, module)))
    if not handles:
        raise TargetError(f"the decoder of {type(vae).__name__} has no 2D convolutions; give a regular expression")
    training = vae.training
    try:
        example = next(decoder.parameters())
        with torch.no_grad():
            latent = torch.zeros(1, channels, 8, 8, device=example.device, dtype=example.dtype)
            cast(Any, vae).eval().decode(latent)
    except (RuntimeError, TypeError, ValueError) as error:
        raise TargetError(f"the decoder of {type(vae).__name__} cannot be run on a small latent ({error})") from error
    finally:
        vae.train(training)
        for handle in handles:
            handle.remove()
    return _residual(seen, type(vae).__name__)


def _watch(seen: list[tuple[str, tuple[int, ...]]], name: str, module: nn.Conv2d) -> Any:
    def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        # A 1x1 convolution is noted too: it may be the one that makes the picture.
        seen.append((name if max(module.kernel_size) > 1 else "", tuple(output.shape[-2:])))

    return hook


def _residual(seen: list[tuple[str, tuple[int, ...]]], model: str) -> list[str]:
    """Pick from the convolutions in the order they ran, each with the size of its output."""
    full = seen[-1][1]
    names = [name for name, size in dict.fromkeys(seen[:-1]) if name and size == full]
    parents = [name.rpartition(".")[0] for name in names]
    several = [name for name, parent in zip(names, parents, strict=True) if parents.count(parent) > 1]
    if not (several or names):
        raise TargetError(f"the decoder of {model} has no convolution at full resolution before its last one")
    return several or names


def _matching(vae: nn.Module, pattern: str) -> list[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise TargetError(
            f"target {pattern!r} is no regular expression ({error}); {LAST_BLOCK!r} is the other way"
        ) from error
    names = [name.removesuffix(".base_layer") for name, module in vae.named_modules() if _adaptable(name, module)]
    found = [name for name in names if expression.fullmatch(name)]
    outside = [name for name in found if not name.startswith("decoder.")]
    if not found:
        raise TargetError(f"target {pattern!r} matches no convolution or linear layer, for example {names[-1:]}")
    if outside:
        raise TargetError(f"target {pattern!r} matches {outside[0]}, outside the decoder; begin it with `decoder\\.`")
    return found


def _adaptable(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Linear) and "lora_" not in name


@torch.no_grad()
def fuse(vae: nn.Module, name: str = "default") -> Report:
    """Merge the mark into the decoder's weights and remove the adapter: the only form to publish.

    Other adapters in the same layers stay. An adapter handed out on its own is a switch that turns the mark off.

    Args:
        vae: Changed in place; unchanged when this raises.
        name: The adapter's name inside the model.

    Returns:
        What was merged.

    Raises:
        TargetError: No layer holds the adapter, or one is of a kind that cannot be merged or is merged already.
    """
    merged = report(vae, name)
    layers = [layer for _, layer in tuner_layers(vae, name)]
    for layer in layers:
        if not isinstance(layer, LoraConv2d | LoraLinear) or name in layer.merged_adapters:
            raise TargetError(f"adapter {name!r} cannot be merged: {type(layer).__name__} is no unmerged LoRA layer")
    for layer in layers:
        base = cast(Any, layer).get_base_layer().weight
        change = cast(Any, layer).get_delta_weight(name)
        base.copy_((base.float() + change.float()).to(base.dtype))
    eject(vae, name)
    if hasattr(vae, "_hf_peft_config_loaded") and not hasattr(vae, "peft_config"):
        cast(Any, vae)._hf_peft_config_loaded = False  # diffusers' own note that adapters are present
    return merged
