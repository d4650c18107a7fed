"""`python -m tests.bench.tensor_lora_step`: step time and kept memory of tensor-lora against peft LoRA of rank 4.

Times forward and backward of the four projections of an attention layer in the shapes of SD 1.5 and SDXL; on a GPU in
bf16.
Each variant is first checked: at the start it must leave the layer's output as it is.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn

from lrdiff.inject import inject
from lrdiff.tensor_lora import TensorLoraConfig
from tests.bench.result import write

SHAPES = {
    "SD 1.5, width 320, 4096 tokens": (320, 4096),
    "SD 1.5, width 1280, 256 tokens": (1280, 256),
    "SDXL, width 640, 4096 tokens": (640, 4096),
    "SDXL, width 1280, 1024 tokens": (1280, 1024),
}
LAYERS = ["to_q", "to_k", "to_v", "to_out"]
VARIANTS: dict[str, Callable[[], Any]] = {
    "LoRA r=4": lambda: LoraConfig(r=4, lora_alpha=4, target_modules=LAYERS),
    "tensor-lora (2,6)": lambda: TensorLoraConfig(r=6, transform_rank=2, target_modules=LAYERS),
    "tensor-lora (1,2)": lambda: TensorLoraConfig(r=2, transform_rank=1, target_modules=LAYERS),
}


class Projections(nn.Module):
    """The four projections of one attention layer, with its softmax."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Attend with heads of 64 or 40 channels."""
        heads = x.shape[-1] // (40 if x.shape[-1] == 320 else 64)
        q, k, v = (layer(x).unflatten(-1, (heads, -1)).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.to_out(mixed.transpose(1, 2).flatten(2))


def measure(width: int, tokens: int, variant: str, repeats: int, device: torch.device) -> tuple[list[float], int]:
    """Return seconds of each repeat, and the bytes autograd keeps for the backward pass."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = Projections(width).to(device, dtype)
    x = torch.randn(1, tokens, width, device=device, dtype=dtype, requires_grad=True)
    before = model(x).detach()
    inject(model, VARIANTS[variant](), "bench")
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        torch.testing.assert_close(model(x).detach(), before, atol=2e-2 if dtype != torch.float32 else 1e-4, rtol=1e-2)
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    seconds = []
    for repeat in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        with (
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32),
        ):
            out = model(x)
        out.float().square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if repeat:
            seconds.append(time.perf_counter() - begin)
    return seconds, sum(kept.values())


def main(arguments: list[str]) -> None:
    """Measure every shape and variant, in turn, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows, details = [], {}
    for shape, (width, tokens) in SHAPES.items():
        found = {name: measure(width, tokens, name, options.repeats, device) for name in VARIANTS}
        base_time, base_kept = statistics.median(found["LoRA r=4"][0]), found["LoRA r=4"][1]
        for name, (seconds, kept) in found.items():
            time_ratio, kept_ratio = statistics.median(seconds) / base_time, kept / base_kept
            rows.append([shape, name, statistics.median(seconds), time_ratio, kept / 1e6, kept_ratio])
            print(*rows[-1], sep="  ", flush=True)
        details[shape] = {name: sorted(seconds) for name, (seconds, _) in found.items()}
    write(
        "tensor_lora_step",
        f"python -m tests.bench.tensor_lora_step --repeats {options.repeats}",
        ["one attention layer", "adapter", "seconds a step", "x LoRA", "kept for backward, MB", "x LoRA"],
        rows,
        note=f"Medians of {options.repeats} steps, forward and backward, all four projections adapted, batch 1."
        + ("" if device.type == "cuda" else " On a GPU and on whole denoisers: not measured."),
        details=details,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
