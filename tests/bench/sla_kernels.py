"""`python -m tests.bench.sla_kernels`: the kernels of sparse-linear attention, compiled for sm_90 without a GPU.

Registers, spilled bytes and shared memory per program, and whether the compiler serialises the tensor cores' products:
what can be known about speed on a machine that has no such device.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.result import write

BFLOAT = {"q", "k", "v", "out", "grad", "dq", "dk", "dv", "h", "dh", "x"}
POINTERS = {
    **dict.fromkeys(BFLOAT, "*bf16"),
    **dict.fromkeys(("lse", "delta", "grad_lse", "z", "dz", "scores"), "*fp32"),
    **dict.fromkeys(("lists", "counts", "rows", "starts", "order"), "*i32"),
    "classes": "*i8",
}
ASSEMBLERS = ("ptxas-blackwell", "ptxas")


def signature(kernel: Any, constants: dict[str, Any]) -> tuple[dict[str, str], dict[Any, Any], dict[Any, Any]]:
    """Return types, constants and alignment of a kernel's arguments, as they are at Wan's shapes."""
    types: dict[str, str] = {}
    values: dict[Any, Any] = {}
    aligned: dict[Any, Any] = {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            types[name], values[(index,)] = "constexpr", constants[name]
            continue
        types[name] = "fp32" if name == "scale" else POINTERS.get(name, "i32")
        if name in POINTERS or (name.startswith("s") and name != "scale" and name not in kernel.do_not_specialize):
            aligned[(index,)] = [["tt.divisibility", 16]]
    if kernel.__name__ == "block_means":
        types["out"] = "*fp32"
    return types, values, aligned


def assemble(ptx: str) -> str:
    """Return the assembler's report on a program."""
    import triton.backends.nvidia as nvidia

    folder = Path(nvidia.__file__).parent / "bin"
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "kernel.ptx"
        source.write_text(ptx)
        for name in ASSEMBLERS:
            if (folder / name).exists():
                command = [folder / name, "-v", "--gpu-name=sm_90a", source, "-o", "/dev/null"]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode == 0:
                    return done.stderr
    raise AssertionError("no assembler of the triton package takes its own output")


def inspect(kernel: Any, width: int, warps: int, stages: int) -> dict[str, Any]:
    """Compile a kernel for sm_90 and return what its programs use."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {
        "BLOCK_Q": 128, "BLOCK_K": 64, "BLOCK": 128, "ROWS": 64, "TILE": 64, "KIND": 0, "WIDE": False,
        "HEAD": width, "WIDTH": 1 << (width - 1).bit_length(),
    }  # fmt: skip
    source = ASTSource(kernel, *signature(kernel, constants))
    options = {"num_warps": warps, "num_stages": stages}
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    report = assemble(built.asm["ptx"])
    return {
        "registers": int(re.findall(r"Used (\d+) registers", report)[0]),
        "spilled": int(re.findall(r"(\d+) bytes spill stores", report)[0]),
        "shared": built.metadata.shared,
        "serialised": "wgmma.mma_async instructions are serialized" in report,
    }


def main(arguments: list[str] | None = None) -> int:
    """Compile every kernel and write the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.sla_kernels", description=__doc__)
    parser.add_argument("--width", type=int, nargs="+", default=[64, 128], help="head dimensions")
    parser.add_argument("--warps", type=int, nargs="+", help="try these instead of the shipped choice")
    parser.add_argument("--stages", type=int, nargs="+", help="try these instead of the shipped choice")
    parser.add_argument("--only", nargs="+", help="names of kernels")
    options = parser.parse_args(arguments)
    if os.environ.pop("TRITON_INTERPRET", "0") == "1":
        raise SystemExit("unset TRITON_INTERPRET: the kernels are to be compiled")
    import torch

    from lrdiff.sla import kernels_linear, kernels_route, kernels_sparse, triton_ops

    kernels = [
        kernels_sparse.forward, kernels_sparse.backward_queries, kernels_sparse.backward_keys,
        kernels_sparse.row_products, kernels_linear.states, kernels_linear.states_backward, kernels_linear.readout,
        kernels_linear.readout_backward, kernels_route.block_means, kernels_route.classify,
    ]  # fmt: skip
    rows = []
    for kernel in kernels:
        if options.only and kernel.__name__ not in options.only:
            continue
        for width in options.width:
            shipped = triton_ops.launch(kernel.__name__, torch.empty(1, width))
            for warps in options.warps or [shipped["num_warps"]]:
                for stages in options.stages or [shipped["num_stages"]]:
                    found = inspect(kernel, width, warps, stages)
                    rows.append([kernel.__name__, width, warps, stages, *found.values()])
                    print(*rows[-1], sep="\t", flush=True)
    if not (options.only or options.warps or options.stages):
        columns = ["kernel", "D", "warps", "stages", "registers", "spilled bytes", "shared bytes", "serialised"]
        note = "Compiled for sm_90 without a device: bfloat16, blocks of 128 x 64. No time was measured."
        write("sla_kernels", "python -m tests.bench.sla_kernels", columns, rows, note)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
