"""`python -m tests.bench.sla_attention`: sparse-linear attention against dense attention.

On a CPU: where the gather-based path overtakes PyTorch's dense attention, forward and with gradients. On a GPU: router,
softmax branch, linear branch and whole, forward and backward, against every dense backend by itself, FlexAttention with
the same map, and the official kernels where their package is importable. Variants take turns, so that whatever else the
machine does hits all of them.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lrdiff.sla import BlockMap, route, sla_with_map
from lrdiff.sla.mixing import START
from tests.bench.result import write

CPU_LENGTHS = (512, 1024, 2048, 4096, 8192)
GPU_LENGTHS = (4096, 16384, 32760, 75600)
GPU_SPARSITY = (0.0, 0.80, 0.90, 0.95, 0.97)
DENSE = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
NOT_MEASURED = "The GPU table is not measured: this machine has no CUDA device."


def inputs(length: int, heads: int, width: int, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Return queries, keys and values of one sample: smooth in time, so that routing has something to find."""
    rng = torch.Generator().manual_seed(0)
    walk = torch.randn(3, 1, heads, length // 64 + 1, width, generator=rng).repeat_interleave(64, -2)[..., :length, :]
    noisy = walk + torch.randn(3, 1, heads, length, width, generator=rng)
    return [x.to(device, dtype).requires_grad_() for x in noisy]


def clock(run: Callable[[], Any], device: str) -> float:
    """Return the milliseconds of one run: of the GPU, or of the processor, where waiting for others does not count."""
    if device == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end)
    start = time.process_time()
    run()
    return (time.process_time() - start) * 1e3


def medians(runs: dict[str, Callable[[], Any]], device: str, repeats: int) -> dict[str, float]:
    """Warm every run up, then let them take turns and return the median milliseconds of each."""
    for run in runs.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            found[name].append(clock(run, device))
    return {name: statistics.median(times) for name, times in found.items()}


def both(run: Callable[[], Tensor], leaves: list[Tensor]) -> Callable[[], Any]:
    """Return a forward and a backward pass in one."""

    def step() -> Any:
        out = run()
        return torch.autograd.grad(out, leaves, torch.ones_like(out))

    return step


def cpu(lengths: tuple[int, ...], repeats: int, sparsity: float) -> list[list[Any]]:
    """Measure the crossover on this processor: one sample, two heads of 64 features, float32, as models do it."""
    rows = []
    proj, mix = nn.Linear(64, 64), torch.full((2,), START)
    for length in lengths:
        qkv = inputs(length, 2, 64, "cpu", torch.float32)

        def sla(qkv: list[Tensor] = qkv) -> Tensor:
            return sla_with_map(*qkv, route(qkv[0], qkv[1], topk=1 - sparsity), proj=proj, mix=mix)[0]

        def dense(qkv: list[Tensor] = qkv) -> Tensor:
            return nn.functional.scaled_dot_product_attention(*qkv)

        with torch.no_grad():
            forward = medians({"dense": dense, "sla": sla}, "cpu", repeats)
        whole = medians({"dense": both(dense, qkv), "sla": both(sla, qkv)}, "cpu", repeats)
        row = [length]
        for times in (forward, whole):
            row += [times["dense"], times["sla"], times["dense"] / times["sla"]]
        print(*(f"{x:.4g}" for x in row), sep="\t", flush=True)
        rows.append(row)
    return rows


def pinned(kind: SDPBackend, qkv: list[Tensor]) -> Callable[[], Tensor]:
    """Return dense attention through one backend only."""

    def run() -> Tensor:
        with sdpa_kernel(kind):
            return nn.functional.scaled_dot_product_attention(*qkv)

    return run


def variants(qkv: list[Tensor], block_map: BlockMap, topk: float) -> dict[str, Callable[[], Tensor]]:
    """Return the runs of one row of the GPU table that can be differentiated."""
    from lrdiff.sla import triton_ops

    q, k, v = qkv
    proj, mix = nn.Linear(q.shape[-1], q.shape[-1], device=q.device), torch.full((q.shape[1],), START, device=q.device)
    found: dict[str, Callable[[], Tensor]] = {f"dense {name}": pinned(kind, qkv) for name, kind in DENSE.items()}
    lists = (block_map.lists, block_map.counts, block_map.block_q, block_map.block_k)
    found["sparse part"] = lambda: triton_ops.sparse(q, k, v, *lists)[0]
    found["FlexAttention, same map"] = lambda: sla_with_map(q, k, v, block_map, backend="flex")[0]
    for scope in ("marginal", "noncritical", "all"):
        found[f"linear part, {scope}"] = lambda s=scope: triton_ops.linear_branch(q, k, v, block_map, s, "softmax")
        for name, own in (("whole", None), ("whole, mixed", mix)):
            found[f"{name}, {scope}"] = lambda s=scope, own=own: sla_with_map(
                q, k, v, route(q, k, topk=topk, skip=min(0.1, 1 - topk)), proj=proj, mix=own, scope=s
            )[0]
    if importlib.util.find_spec("sparse_linear_attention") is not None:
        official = importlib.import_module("sparse_linear_attention").SparseLinearAttention
        module = official(head_dim=q.shape[-1], topk=topk, feature_map="softmax", BLKQ=128, BLKK=64).to(q.device)
        found["official kernels"] = lambda: module(q, k, v)
    return found


def gpu(lengths: tuple[int, ...], sparsities: tuple[float, ...], repeats: int) -> list[list[Any]]:
    """Measure 12 heads of 128 features in bfloat16: milliseconds, dense-equivalent speed-up, TFLOP/s, peak memory."""
    rows = []
    for length in lengths:
        for sparsity in sparsities:
            qkv = inputs(length, 12, 128, "cuda", torch.bfloat16)
            topk = 1 - sparsity
            block_map = route(qkv[0], qkv[1], topk=topk, skip=min(0.1, sparsity))
            work = 4 * 12 * length**2 * 128 / 1e9
            usable: dict[str, Callable[[], Tensor]] = {}
            for name, run in variants(qkv, block_map, topk).items():
                try:
                    both(run, qkv)()
                except RuntimeError as reason:
                    rows.append([length, sparsity, name, *[None] * 6, f"cannot run: {str(reason).splitlines()[0]}"])
                    continue
                usable[name] = run
            with torch.no_grad():
                runs: dict[str, Callable[[], Any]] = dict(usable)
                runs["router"] = lambda q=qkv[0], k=qkv[1], t=topk: route(q, k, topk=t, skip=min(0.1, 1 - t))
                forward = medians(runs, "cuda", repeats)
            whole = medians({name: both(run, qkv) for name, run in usable.items()}, "cuda", repeats)
            fastest = min((t for name, t in forward.items() if name.startswith("dense")), default=float("nan"))
            for name, ms in forward.items():
                torch.cuda.reset_peak_memory_stats()
                base = torch.cuda.memory_allocated()
                (both(usable[name], qkv) if name in usable else runs[name])()
                torch.cuda.synchronize()
                peak = (torch.cuda.max_memory_allocated() - base) / 2**20
                share = 1.0 if name.startswith("dense") else 1 - block_map.sparsity
                rate = work * share / ms if name != "router" and not name.startswith("linear") else None
                total = whole.get(name)
                back = None if total is None else total - ms
                rows.append([length, sparsity, name, ms, back, total, fastest / ms, rate, peak, ""])
                print(*rows[-1], sep="\t", flush=True)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Measure what this machine can and write the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.sla_attention", description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", help="tokens")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sparsity", type=float, default=0.95, help="of the table for the processor")
    options = parser.parse_args(arguments)
    command = "python -m tests.bench.sla_attention"
    rows = cpu(tuple(options.lengths or CPU_LENGTHS), options.repeats, options.sparsity)
    columns = ["tokens", "dense ms", "SLA ms", "times faster", "dense +grad ms", "SLA +grad ms", "times faster, +grad"]
    cuda = torch.cuda.is_available()
    note = (
        f"B1 H2 D64 float32, {options.sparsity:.0%} sparse, routing and mixing included, processor time, medians of "
        f"{options.repeats}. {'' if cuda else NOT_MEASURED}"
    ).strip()
    write("sla_attention_cpu", command, columns, rows, note)
    if cuda:
        found = gpu(tuple(options.lengths or GPU_LENGTHS), GPU_SPARSITY, options.repeats)
        heads = ["tokens", "sparsity", "what", "forward ms", "backward ms", "both ms", "x fastest dense forward"]
        write("sla_attention_gpu", command, [*heads, "TFLOP/s on selected blocks", "peak MiB", "remark"], found)
    else:
        print(NOT_MEASURED)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
