"""What a reward's gradient costs on the shapes of real models: floating-point operations and kept activations.

python -m tests.bench.alignprop_cost

Random weights on the meta device, so nothing is computed: operations are counted, for one call of the denoiser and of
the decoder, and added up as `lrdiff.alignprop.trajectory` calls them (`tests/bench/test_alignprop.py` counts a whole
trajectory beside the sum). Kept activations are counted on fake tensors, whose attention keeps no maps, as on a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from lrdiff.backbones.flux import positions
from lrdiff.backbones.layers import layer_groups
from lrdiff.inject import inject
from lrdiff.schedule import Schedule
from tests.bench.result import write
from trainers.alignprop.config import AlignPropSettings

GIB = 2**30


@dataclass(frozen=True)
class Call:
    """Of one call for one picture: operations forward and backward, and bytes that autograd keeps."""

    forward: float
    backward: float
    kept: float


@dataclass(frozen=True)
class Family:
    """A base model as its pipeline runs it.

    Attributes:
        branches: Calls for a step: 2 with guidance, 1 for a distilled model.
        reference: Forward and backward TFLOP and kept GiB by the cost model this is compared with.
    """

    name: str
    denoiser: Callable[[], tuple[nn.Module, dict[str, Any]]]
    latents: tuple[int, int, int]
    steps: int
    branches: int
    schedule: Schedule
    reference: tuple[float, float, float]


def sd15() -> tuple[nn.Module, dict[str, Any]]:
    unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    given = {"sample": torch.randn(1, 4, 64, 64), "timestep": torch.ones(1)}
    return unet, given | {"encoder_hidden_states": torch.randn(1, 77, 768)}


def sd3() -> tuple[nn.Module, dict[str, Any]]:
    network = SD3Transformer2DModel(
        sample_size=128, num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=192
    )
    given = {"hidden_states": torch.randn(1, 16, 128, 128), "timestep": torch.ones(1)}
    return network, given | {
        "encoder_hidden_states": torch.randn(1, 333, 4096), "pooled_projections": torch.randn(1, 2048)
    }  # fmt: skip


def flux() -> tuple[nn.Module, dict[str, Any]]:
    network = FluxTransformer2DModel(guidance_embeds=True)
    return network, {
        "hidden_states": torch.randn(1, 4096, 64), "timestep": torch.ones(1), "guidance": torch.ones(1),
        "encoder_hidden_states": torch.randn(1, 512, 4096), "pooled_projections": torch.randn(1, 768),
        "img_ids": positions(64, 64), "txt_ids": torch.zeros(512, 3),
    }  # fmt: skip


def betas() -> Tensor:
    return torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()


FAMILIES = (
    Family(
        "Stable Diffusion 1.5, 512 px", sd15, (4, 64, 64), 50, 2, Schedule.from_betas(betas(), final_is_clean=False),
        (0.80, 0.93, 0.81),
    ),
    Family("SD3-medium, 1024 px", sd3, (16, 128, 128), 28, 2, Schedule.flow(shift=3.0), (11.3, 15.5, 7.33)),
    # The shift of 4,096 tokens: e^1.15
    Family("FLUX.1-dev, 1024 px", flux, (16, 128, 128), 28, 1, Schedule.flow(shift=3.158), (74.4, 89.3, 22.1)),
)  # fmt: skip


def modes(steps: int) -> dict[str, tuple[float, float, float, frozenset[int]]]:
    """Return by mode: calls forward, calls again and backward, pictures decoded, and a typical window."""
    half = steps // 2
    last = frozenset({steps - 1})
    return {
        "last-k, k = 1": (steps, 1, 1, last),
        "last-k, k = 5": (steps, 5, 1, frozenset(range(steps - 5, steps))),
        "lv, 2 repeats": (steps + 2, 3, 3, last),
        "spaced, k = 4": (steps, 4, 1, frozenset(steps - 1 - (i * steps) // 4 for i in range(4))),
        "sparse, k = 4": (steps + 4, 4, 1, frozenset(steps - 1 - (i * steps) // 4 for i in range(4))),
        "random-k, k = T (the paper)": (steps, (steps + 1) / 2, 1, frozenset(range(half, steps))),
        "last-k, k = T (full graph)": (steps, steps, 1, frozenset(range(steps))),
    }


def main(arguments: list[str]) -> int:
    """Count, and write `alignprop_cost.json` and `alignprop_calls.json`."""
    rows, calls = [], []
    decoders: dict[tuple[int, int, int], Call] = {}
    for family in FAMILIES:
        call = count(family.denoiser)
        if family.latents not in decoders:
            decoders[family.latents] = count(lambda latents=family.latents: decoder(latents), adapted=False)
        decode = decoders[family.latents]
        calls.append(_beside(family.name, call, family.reference))
        plain = call.forward + call.backward
        for mode, (forward, again, pictures, window) in modes(family.steps).items():
            total = family.branches * (forward * call.forward + again * (call.forward + call.backward))
            total += pictures * (2 * decode.forward + decode.backward)
            kept = max(family.branches * call.kept, decode.kept / 3)
            rows.append([
                family.name, mode, total, total / plain, 100 * reach(family.schedule, family.steps, window),
                kept / GIB, (family.branches * again * call.kept + pictures * decode.kept) / GIB,
            ])  # fmt: skip
    for latents, reference in (((4, 64, 64), (2.5, 2.5, 2.78)), ((16, 128, 128), (10.5, 11.0, 11.1))):
        calls.append(_beside(f"decoder, {8 * latents[1]} px", decoders[latents], reference))
    write("alignprop_calls", "python -m tests.bench.alignprop_cost", CALL_COLUMNS, calls, "...")
    return 0


CALL_COLUMNS = [
    "one call, one picture", "TFLOP forward", "by the reference", "TFLOP backward", "by the reference",
    "activations kept, GiB", "by the reference",
]  # fmt: skip


def reach(schedule: Schedule, steps: int, window: frozenset[int]) -> float:
    """Return which share of what the steps' outputs change in the sample, on the straight path, is the window's.

    With y = x / a and the noise ratio q = s / a, a step adds (q_next - q) eps to y: the share of a step is its part of
    the way of q. For flow models, x itself moves by (s_next - s) v.
    """
    times = schedule.timesteps(steps, "trailing")
    scales = [schedule.scales(t) for t in times] + [schedule.final_scales()]
    flow = schedule.prediction == "flow"
    ratios = [float(s) if flow else float(s / a) for a, s in scales]
    parts = [ratios[i] - ratios[i + 1] for i in range(steps)]
    return sum(parts[i] for i in window) / sum(parts)


def count(build: Callable[[], tuple[nn.Module, dict[str, Any]]], *, adapted: bool = True) -> Call:
    """Count one call, with an adapter of rank 4 on attention where `adapted`, else with a gradient of the input."""
    with torch.device("meta"):
        network, given = _ready(build, adapted)
        counter = FlopCounterMode(display=False)
        with counter:
            out = network(**given, return_dict=False)[0]
        forward = counter.get_total_flops()
        with counter:
            out.float().sum().backward()
        backward = counter.get_total_flops() - forward
    return Call(forward / 1e12, backward / 1e12, _kept(build, adapted))


def _kept(build: Callable[[], tuple[nn.Module, dict[str, Any]]], adapted: bool) -> int:
    """Return the bytes of the storages that autograd keeps for the way back, weights left out."""
    with FakeTensorMode():
        network, given = _ready(build, adapted)
        weights = {id(p.untyped_storage()) for p in network.parameters()}
        seen: dict[int, int] = {}
        alive = []

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            alive.append(storage)
            seen[id(storage)] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            network(**given, return_dict=False)
    return sum(size for key, size in seen.items() if key not in weights)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
