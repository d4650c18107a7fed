"""What a reward's gradient costs on the shapes of real models: floating-point operations and kept activations.

python -m tests.bench.alignprop_cost

Random weights on the meta device, so nothing is computed: operations are counted, for one call of the denoiser and of
the decoder, and added up as `lrdiff.alignprop.trajectory` calls them (`tests/bench/test_alignprop.py` counts a whole
trajectory beside the sum). Attention keeps what flash attention keeps, no maps.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from lrdiff.backbones.flux import positions
from lrdiff.backbones.layers import layer_groups
from lrdiff.inject import inject
from lrdiff.schedule import Schedule
from tests.bench.result import write
from trainers.alignprop.config import AlignPropSettings

Build = Callable[[], tuple[nn.Module, dict[str, Any]]]


@dataclass(frozen=True)
class Call:
    """Of one call for one picture: operations forward and backward, and what autograd keeps: TFLOP, TFLOP, GiB."""

    forward: float
    backward: float
    kept: float


@dataclass(frozen=True)
class Family:
    """A base model as its pipeline runs it.

    Attributes:
        branches: Calls for a step: 2 with guidance, 1 for a distilled model.
        reference: Forward and backward TFLOP and kept GiB as they were estimated when this was planned.
    """

    name: str
    denoiser: Build
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


DECODERS = {(4, 64, 64): (512, (2.5, 2.5, 2.78)), (16, 128, 128): (1024, (10.5, 11.0, 11.1))}
"""Side and reference by the latents' shape."""
NOTE = (
    "With recompute; two branches with guidance (one for FLUX, which is distilled), 50 DDIM steps for Stable Diffusion "
    "1.5 and 28 Euler steps for the others. Reach: which share of the way from noise to sample, on the straight path, "
    "the steps with gradient make. Kept with recompute: the larger of one step and the decoder as a whole; its blocks "
    "are recomputed one by one, which needs less. Weights are not counted. Estimated before: the same sum over the "
    "calls as they were estimated when this was planned."
)


@dataclass(frozen=True)
class Plan:
    """Calls of a mode with recompute: forward, again and backward, and pictures decoded; a typical window."""

    forward: float
    again: float
    pictures: int
    window: frozenset[int]

    def total(self, branches: int, call: Call, decode: Call) -> float:
        """Return TFLOP per picture."""
        steps = branches * (self.forward * call.forward + self.again * (call.forward + call.backward))
        return steps + self.pictures * (2 * decode.forward + decode.backward)


def plans(steps: int) -> dict[str, Plan]:
    """Return what each mode calls; `random-k` on average."""
    last, every = frozenset({steps - 1}), frozenset(range(steps))
    spread = frozenset(steps - 1 - (i * steps) // 4 for i in range(4))
    return {
        "last-k, k = 1": Plan(steps, 1, 1, last),
        "last-k, k = 5": Plan(steps, 5, 1, frozenset(range(steps - 5, steps))),
        "lv, 2 repeats": Plan(steps + 2, 3, 3, last),
        "spaced, k = 4": Plan(steps, 4, 1, spread),
        "sparse, k = 4": Plan(steps + 4, 4, 1, spread),
        "random-k, k = T (the paper)": Plan(steps, (steps + 1) / 2, 1, frozenset(range(steps // 2, steps))),
        "last-k, k = T (full graph)": Plan(steps, steps, 1, every),
    }


def decoder(latents: tuple[int, int, int]) -> tuple[nn.Module, dict[str, Any]]:
    channels, height, width = latents
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    return vae.decoder, {"sample": torch.randn(1, channels, height, width)}


COLUMNS = [
    "model", "gradient", "TFLOP per picture", "estimated before", "in steps of plain LoRA", "reach, %",
    "activations kept, GiB", "without recomputing, GiB",
]  # fmt: skip
CALL_COLUMNS = [
    "one call, one picture", "TFLOP forward", "estimated before", "TFLOP backward", "estimated before",
    "activations kept, GiB", "estimated before",
]  # fmt: skip


def main(arguments: list[str]) -> int:
    """Count, and write `alignprop_cost.json` and `alignprop_calls.json`."""
    rows, calls, decoded = [], [], []
    for family in FAMILIES:
        call = count(family.denoiser)
        calls.append(_beside(f"{family.name}", call, family.reference))
        size, reference = DECODERS[family.latents]
        known = [row for row in decoded if row[0] == size]
        decode = known[0][1] if known else count(lambda latents=family.latents: decoder(latents), adapted=False)
        if not known:
            decoded.append((size, decode, reference))
        ours, theirs = (call, decode), (Call(*family.reference), Call(*reference))
        for mode, plan in plans(family.steps).items():
            total, expected = (plan.total(family.branches, *pair) for pair in (ours, theirs))
            kept = family.branches * call.kept
            rows.append([
                family.name, mode, total, expected, total / (call.forward + call.backward),
                100 * reach(family.schedule, family.steps, plan.window), max(kept, decode.kept),
                plan.again * kept + plan.pictures * decode.kept,
            ])  # fmt: skip
    calls += [_beside(f"decoder, {size} px", decode, reference) for size, decode, reference in decoded]
    command = "python -m tests.bench.alignprop_cost"
    write("alignprop_cost", command, COLUMNS, rows, NOTE)
    write(
        "alignprop_calls",
        command,
        CALL_COLUMNS,
        calls,
        "bf16, LoRA of rank 4 on attention; the estimate for SD3-medium is one of SD3.5-medium, a larger network.",
    )
    return 0


def _beside(name: str, call: Call, reference: tuple[float, float, float]) -> list[Any]:
    ours = (call.forward, call.backward, call.kept)
    return [name, *(value for pair in zip(ours, reference, strict=True) for value in pair)]


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


def count(build: Build, *, adapted: bool = True) -> Call:
    """Count one call, with an adapter of rank 4 on attention where `adapted`, else with a gradient of the input."""
    with torch.device("meta"):
        network, given = ready(build, adapted)
        with FlopCounterMode(display=False) as forward:
            out = network(**given)
        with FlopCounterMode(display=False) as backward:
            (out if isinstance(out, Tensor) else out.sample).float().sum().backward()
    return Call(forward.get_total_flops() / 1e12, backward.get_total_flops() / 1e12, kept(build, adapted) / 2**30)


def kept(build: Build, adapted: bool) -> int:
    """Return the bytes of the storages that autograd keeps for the way back, weights left out."""
    with torch.device("meta"), patch.object(functional, "scaled_dot_product_attention", flash):
        network, given = ready(build, adapted)
        weights = {p.untyped_storage()._cdata for p in network.parameters()}
        seen: dict[int, Any] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            seen[storage._cdata] = storage  # which also keeps it alive, so that no other one takes its place
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            network(**given)
        return sum(storage.nbytes() for key, storage in seen.items() if key not in weights)


class Flash(torch.autograd.Function):
    """Keeps what flash attention keeps, and computes nothing."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out


def flash(query: Tensor, key: Tensor, value: Tensor, *args: Any, **settings: Any) -> Tensor:
    return Flash.apply(query, key, value)  # pyright: ignore[reportReturnType]


def ready(build: Build, adapted: bool) -> tuple[nn.Module, dict[str, Any]]:
    """Return the frozen network in bf16 with its adapter, and input with a gradient, as in a chain of steps."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        network, given = build()
    finally:
        torch.set_default_dtype(torch.float32)
    network.requires_grad_(False)
    given = {name: value.to(torch.bfloat16) for name, value in given.items()}
    if adapted:
        inject(
            network, AlignPropSettings().adapter_settings().peft(list(layer_groups(network)["attention"])), "default"
        )
    next(iter(given.values())).requires_grad_()
    return network, given


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
