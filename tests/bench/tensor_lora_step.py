"""`python -m tests.bench.tensor_lora_step`: a step of tensor-lora at the paper's ranks against one of peft LoRA r = 4.

On a GPU: the whole UNets of SD 1.5 and SDXL, built from their public configurations with random weights, in bfloat16.
On a CPU: single attention layers in their shapes, and a whole UNet of the size of the shipped `toys`. `--full-size`
takes both whole UNets on a CPU too, at 256 px in bfloat16, one adapter after the other: 8 GB and half an hour.

Adapters take turns, step by step, so that whatever else the machine does hits all of them. Before anything is timed,
each must leave the output as it is, and its gradients must agree with those of the materialised weight.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lrdiff.inject import inject
from lrdiff.tensor_lora import TensorLoraConfig
from tests.bench.result import command, write

LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]
VARIANTS: dict[str, Callable[[], Any]] = {
    "LoRA r=4": lambda: LoraConfig(r=4, lora_alpha=4, target_modules=LAYERS),
    "tensor-lora (2,6)": lambda: TensorLoraConfig(transform_rank=2, r=6, target_modules=LAYERS),
    "tensor-lora* (2,4)": lambda: TensorLoraConfig(transform_rank=2, r=4, residual="lora", target_modules=LAYERS),
    "tensor-lora (1,2)": lambda: TensorLoraConfig(transform_rank=1, r=2, target_modules=LAYERS),
    "tensor-lora* (1,1)": lambda: TensorLoraConfig(transform_rank=1, r=1, residual="lora", target_modules=LAYERS),
}
REFERENCE = "LoRA r=4"

SD15: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
}
TOYS: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 8,
    "out_channels": 8,
    "block_out_channels": (64, 128, 256),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
    "cross_attention_dim": 128,
    "norm_num_groups": 16,
}


class Attention(nn.Module):
    """The four projections of one self-attention layer, with its softmax and residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        """Attend over tokens, [B, L, width]."""
        q, k, v = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.to_q, self.to_k, self.to_v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.to_out[0](mixed.transpose(1, 2).flatten(2))


@dataclass(frozen=True)
class Case:
    """A model to adapt and one input for it."""

    name: str
    build: Callable[[], nn.Module]
    feed: Callable[[torch.device, torch.dtype], tuple[Tensor, ...]]


@dataclass
class Subject:
    """One adapted model and what was measured on it."""

    model: nn.Module
    step: Callable[[], None]
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    peak: int = 0
    trained: int = 0


def attention(name: str, width: int, tokens: int, heads: int) -> Case:
    """Return a single attention layer, batch 1."""
    return Case(
        f"{name}, attention of width {width}, {tokens} tokens",
        lambda: Attention(width, heads),
        lambda device, dtype: (torch.randn(1, tokens, width, device=device, dtype=dtype),),
    )


def unet(name: str, config: Mapping[str, Any], batch: int, tokens: int, checkpointing: bool = False) -> Case:
    """Return a whole denoiser with random weights."""

    def build() -> nn.Module:
        model = UNet2DConditionModel(**config)
        if checkpointing:
            model.enable_gradient_checkpointing()
        return model

    def feed(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        side, channels = config["sample_size"], config.get("in_channels", 4)
        return (
            torch.randn(batch, channels, side, side, device=device, dtype=dtype),
            torch.full((batch,), 500, device=device),
            torch.randn(batch, tokens, config["cross_attention_dim"], device=device, dtype=dtype),
        )

    return Case(f"{name}, whole UNet, batch {batch}{', checkpointing' if checkpointing else ''}", build, feed)


CPU_CASES = [
    unet("toys", TOYS, 4, 32),
    unet("toys", TOYS, 8, 32),
    attention("SD 1.5", 320, 1024, 8),
    attention("SD 1.5", 1280, 256, 8),
    attention("SDXL", 640, 1024, 10),
    attention("SDXL", 1280, 1024, 20),
]
FULL_SIZE_CASES = [
    unet("SD 1.5 at 256 px", SD15 | {"sample_size": 32}, 1, 77),
    unet("SDXL at 256 px", SDXL | {"sample_size": 32}, 1, 77),
]
GPU_CASES = [unet("SD 1.5", SD15, 4, 77), unet("SDXL", SDXL, 1, 77), unet("SDXL", SDXL, 4, 77, checkpointing=True)]


class PeakOfLiveTensors(TorchDispatchMode):
    """Bytes of all storages that operations make and that live at the same moment, at most; forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count the storages of its results."""
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else [result]:
            if isinstance(item, Tensor):
                self._count(item.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def prepare(case: Case, variant: str, device: torch.device, dtype: torch.dtype) -> Subject:
    """Build, adapt, and check that the fresh adapter changes nothing. Raises `AssertionError` if it does."""
    torch.manual_seed(0)
    half = dtype != torch.float32
    with device:
        model = case.build()
    model = model.to(dtype) if dtype != torch.float32 else model
    torch.manual_seed(1)
    inputs = case.feed(device, dtype)

    def forward() -> Tensor:
        with torch.autocast(device.type, dtype=dtype) if half else nullcontext():
            out = model(*inputs)
        return out if isinstance(out, Tensor) else out.sample

    with torch.no_grad():
        before = forward()
        inject(model, VARIANTS[variant](), "bench")
        torch.testing.assert_close(forward(), before, rtol=1e-3, atol=1e-2 if half else 1e-4)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    if not isinstance(model, UNet2DConditionModel):
        inputs[0].requires_grad_()
    model.train()

    def step() -> None:
        forward().float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, step, trained=sum(parameter.numel() for parameter in trained))


def check_gradients() -> None:
    """Compare one adapted layer with its materialised weight, values and all gradients. Raises `AssertionError`."""
    for variant in list(VARIANTS)[1:]:
        torch.manual_seed(0)
        model = Attention(96, 4)
        config = VARIANTS[variant]()
        config.init_weights = False
        inject(model, config, "bench")
        layer: Any = model.to_q
        x = torch.randn(7, 96)
        weight = layer.get_base_layer().weight + layer.get_delta_weight("bench")
        torch.testing.assert_close(layer(x), nn.functional.linear(x, weight), rtol=1e-4, atol=1e-4)
        torch.autograd.gradcheck(layer.double(), x[:2].double().requires_grad_(), fast_mode=True)


def measure(
    case: Case, variants: Sequence[str], device: torch.device, repeats: int, dtype: torch.dtype, alone: bool
) -> dict[str, Subject]:
    """Time all adapters in turns, then take each one's peak memory. With `alone` one model is loaded at a time."""
    subjects: dict[str, Subject] = {}
    for names in [[name] for name in variants] if alone else [variants]:
        subjects.update({name: prepare(case, name, device, dtype) for name in names})
        warm = 1 if alone and device.type == "cpu" else 2
        for repeat in range(repeats + warm):
            for name in names:
                timed(subjects[name], device, keep=repeat >= warm)
        for name in names:
            subjects[name].peak = peak(subjects[name], device)
        if alone:
            for name in names:
                subjects[name].model = nn.Identity()
                subjects[name].step = _done
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return subjects


def timed(subject: Subject, device: torch.device, keep: bool) -> None:
    """Run one step and note its time."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    wall, processor = time.perf_counter(), time.process_time()
    subject.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    if keep:
        subject.wall.append(time.perf_counter() - wall)
        subject.processor.append(time.process_time() - processor)


def peak(subject: Subject, device: torch.device) -> int:
    """Return the peak bytes of one step: of everything on a GPU, of all tensors but parameters on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        subject.step()
        return torch.cuda.max_memory_allocated()
    tracker = PeakOfLiveTensors()
    watched: AbstractContextManager[Any] = tracker
    with watched:
        subject.step()
    return tracker.peak


def _done() -> None:
    raise RuntimeError("this subject has been measured")


def main(arguments: list[str]) -> None:
    """Check, measure every case, print a line per adapter, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--full-size", action="store_true", help="SD 1.5 and SDXL as a whole on a CPU too")
    parser.add_argument("--models", nargs="+", default=[""], help="beginnings of the names of the models to take")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--note", default="", help="what else ran on the machine, for the result file")
    options = parser.parse_args(arguments)
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    dtype = torch.bfloat16 if cuda or options.full_size else torch.float32
    cases = GPU_CASES if cuda else FULL_SIZE_CASES if options.full_size else CPU_CASES
    cases = [case for case in cases if case.name.startswith(tuple(options.models))]
    if not cases:
        parser.error(f"--models {' '.join(options.models)}: no model is called so")
    check_gradients()
    rows: list[list[Any]] = []
    details: dict[str, Any] = {}
    for case in cases:
        found = measure(case, options.variants, device, options.repeats, dtype, cuda or options.full_size)
        base = found[REFERENCE]
        for name, subject in found.items():
            clock = subject.wall if cuda else subject.processor
            ratio = statistics.median(clock) / statistics.median(base.wall if cuda else base.processor)
            memory = subject.peak / base.peak
            rows.append([case.name, name, subject.trained, statistics.median(clock), ratio, subject.peak / 1e6, memory])
            print(*rows[-1], sep="  ", flush=True)
        details[case.name] = {
            name: {"wall_s": sorted(subject.wall), "processor_s": sorted(subject.processor)}
            for name, subject in found.items()
        }
    full_size = options.full_size and not cuda
    turns = "one adapter after the other" if full_size else "adapters taking turns"
    where = "" if cuda else " Seconds of processor time on one thread. On a GPU: not measured."
    write(
        "tensor_lora_full_size" if full_size else "tensor_lora_step",
        command("tensor_lora_step", arguments, without="--note"),
        ["model", "adapter", "parameters", "seconds a step", "x LoRA", "peak MB", "x LoRA"],
        rows,
        note=f"Medians of {options.repeats} training steps, {turns}; peak of one step.{where} {options.note}".strip(),
        details=details,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
