"""`python -m tests.bench.sla_wan`: a denoising step and a training step of Wan2.1-1.3B, full against sparse-linear.

The architecture is that of the public configuration, the weights are random: time and memory do not depend on them, but
for which blocks are critical. 81 frames of 832 x 480 are 21 x 60 x 104 latents, 32,760 tokens. It needs a GPU; `--tiny`
runs the same code on a small relative, whose times mean nothing.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from lrdiff.sla.models import full_attention, put_in
from lrdiff.sla.settings import SlaSettings
from tests.bench.result import write
from tests.bench.sla_attention import clock

WAN = {
    "num_attention_heads": 12, "attention_head_dim": 128, "text_dim": 4096, "freq_dim": 256, "ffn_dim": 8960,
    "num_layers": 30,
}  # fmt: skip
LATENTS = (16, 21, 60, 104)
TINY = {
    "num_attention_heads": 2, "attention_head_dim": 16, "text_dim": 8, "freq_dim": 16, "ffn_dim": 32, "num_layers": 2
}  # fmt: skip
TINY_LATENTS = (16, 3, 16, 16)
COLUMNS = ["attention", "denoising step ms", "times faster", "training step ms", "times faster", "peak MiB of training"]
NOT_MEASURED = "not measured: a step of Wan2.1-1.3B needs a CUDA device (--tiny tries the code on a processor)"


def build(config: dict[str, int], device: str) -> Any:
    """Return the transformer with random weights in bfloat16."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = WanTransformer3DModel(in_channels=16, out_channels=16, **config)  # pyright: ignore[reportArgumentType]
    finally:
        torch.set_default_dtype(torch.float32)
    cast: Any = model
    cast.enable_gradient_checkpointing()
    return model


def step(model: Any, inputs: dict[str, Tensor], train: bool) -> None:
    """Carry out one forward pass, or one with its backward pass."""
    with torch.set_grad_enabled(train):
        out = model(**inputs, return_dict=False)[0]
        if train:
            out.float().square().mean().backward()
            model.zero_grad(set_to_none=True)


def measure(model: Any, inputs: dict[str, Tensor], device: str, repeats: int) -> tuple[float, float, float | None]:
    """Return the median milliseconds of a denoising and of a training step, and the training's peak memory in MiB."""
    found = []
    for train in (False, True):
        model.train(train)
        step(model, inputs, train)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        times = [clock(lambda train=train: step(model, inputs, train), device) for _ in range(repeats)]
        found.append(statistics.median(times))
    peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None
    return found[0], found[1], peak


def main(arguments: list[str] | None = None) -> int:
    """Measure and write the table, where there is a GPU."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.sla_wan", description=__doc__)
    parser.add_argument("--topk", type=float, default=0.05)
    parser.add_argument("--scopes", nargs="+", default=["marginal", "noncritical", "all"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="a small relative, to try the code; writes nothing")
    given = parser.parse_args(arguments)
    if not given.tiny and not torch.cuda.is_available():
        print(NOT_MEASURED)
        return 0
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config, latents = (TINY, TINY_LATENTS) if given.tiny else (WAN, LATENTS)
    rng = torch.Generator().manual_seed(1)
    inputs = {
        "hidden_states": torch.randn(1, *latents, generator=rng).to(device, torch.bfloat16),
        "timestep": torch.tensor([500], device=device),
        "encoder_hidden_states": torch.randn(1, 512, config["text_dim"], generator=rng).to(device, torch.bfloat16),
    }
    rows: list[list[Any]] = []
    for scope in given.scopes:
        model = build(config, device)
        blocks = {"block_q": 16, "block_k": 16} if given.tiny else {}
        put_in(model, SlaSettings(topk=given.topk, scope=scope, **blocks))
        if not rows:
            with full_attention(model):
                full = measure(model, inputs, device, given.repeats)
            rows.append(["full", full[0], 1.0, full[1], 1.0, full[2]])
        ours = measure(model, inputs, device, given.repeats)
        rows.append([f"sparse-linear, {scope}", ours[0], rows[0][1] / ours[0], ours[1], rows[0][3] / ours[1], ours[2]])
        print(*rows[-1], sep="\t", flush=True)
        del model
    if not given.tiny:
        note = f"{1 - given.topk:.0%} sparse, bfloat16, random weights, 32,760 tokens, activations computed again."
        write("sla_wan", "python -m tests.bench.sla_wan", COLUMNS, rows, note)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
