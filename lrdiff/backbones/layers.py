"""Groups of layers by meaning, found by how the layers are built, so that a new network needs no list of names."""

from __future__ import annotations

from diffusers.models.attention import FeedForward
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

OF_IMAGE = ("to_q", "to_k", "to_v", "to_out.0")
OF_TEXT = ("add_k_proj", "add_v_proj", "add_q_proj", "to_add_out")
"""Projections of the text in joint attention."""
OF_LAST_TEXT = ("add_k_proj", "add_v_proj")
"""Those that matter where nothing reads what the text becomes."""
PARALLEL = ("proj_mlp", "proj_out")
"""The feed-forward part of a block that computes it beside its attention."""


def layer_groups(network: nn.Module) -> dict[str, tuple[str, ...]]:
    """Collect the names of every group once, before any adapter changes the modules.

    "attention": the projections of every self-, cross- and joint attention. "+ff": the linear layers of every
    feed-forward. "+conv": the convolutions of residual blocks, of down- and of upsampling; a transformer has none.
    """
    attention: set[str] = set()
    ff: set[str] = set()
    conv: set[str] = set()
    for name, module in network.named_modules():
        if isinstance(getattr(module, "to_q", None), nn.Linear):
            text = OF_LAST_TEXT if getattr(module, "context_pre_only", None) else OF_TEXT
            attention.update(f"{name}.{leaf}" for leaf in (*OF_IMAGE, *text))
        elif isinstance(module, FeedForward):
            ff.update(f"{name}.{leaf}" for leaf, part in module.named_modules() if isinstance(part, nn.Linear))
        elif isinstance(getattr(module, "proj_mlp", None), nn.Linear):
            ff.update(f"{name}.{leaf}" for leaf in PARALLEL)
        elif isinstance(module, ResnetBlock2D | Downsample2D | Upsample2D):
            conv.update(f"{name}.{leaf}" for leaf, part in module.named_modules() if isinstance(part, nn.Conv2d))
    order = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    wanted = {"attention": attention, "attention+ff": attention | ff, "attention+ff+conv": attention | ff | conv}
    if not conv:
        del wanted["attention+ff+conv"]
    return {group: tuple(name for name in order if name in names) for group, names in wanted.items()}
