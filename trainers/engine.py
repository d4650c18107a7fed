"""Device, precision and processes. The only module that imports accelerate."""

from __future__ import annotations

import logging
import os
import resource
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch import Tensor, nn

from lrdiff.allocator import keep_freed_memory
from lrdiff.errors import BackendError
from trainers.config import PrecisionConfig

log = logging.getLogger(__name__)

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"""What a launcher tells each of the processes that it starts together."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LOSS_SCALE = 4096.0
"""Factor on an fp16 loss, taken off the gradients again: without it, those of activations vanish below 6e-8. It is a
constant, so that a resumed run computes what an unbroken one does; gradients that overflow stop the run like any other.
"""


def launched_rank() -> int:
    """Return this process' number among those a launcher started together, before they meet; 0 for one alone."""
    return int(os.environ["RANK"]) if all(name in os.environ for name in LAUNCHED) else 0


def has_bf16() -> bool:
    """Return whether the processor has instructions for bf16. oneDNN knows; builds of torch without it use none."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Engine:
    """Runs a method's forward and backward on one or several processes."""

    def __init__(self, precision: PrecisionConfig) -> None:
        """Choose device and precision.

        Raises:
            BackendError: A GPU was asked for and there is none, or it cannot compute in bf16.
        """
        cuda = torch.cuda.is_available()
        if precision.device == "cuda" and not cuda:
            raise BackendError("precision.device is cuda, but torch sees no GPU; use auto or cpu, or run lrdiff doctor")
        use_cpu = precision.device == "cpu" or not cuda
        if precision.dtype == "bf16" and not use_cpu and not torch.cuda.is_bf16_supported():
            raise BackendError("precision.dtype is bf16, but this GPU cannot compute in bf16; use fp32")
        if precision.dtype == "bf16" and use_cpu and not has_bf16():
            log.warning(
                "precision.dtype is bf16, which this processor has no instructions for: steps take several times as "
                "long as in fp32"
            )
        if use_cpu:
            keep_freed_memory()
        self.dtype = DTYPES[precision.dtype]
        # accelerate keeps its first choice for the whole process; a later run in it may need another one.
        AcceleratorState._reset_state(reset_partial_state=True)
        self._accelerator = Accelerator(cpu=use_cpu, mixed_precision="bf16" if precision.dtype == "bf16" else "no")
        self._scale = LOSS_SCALE if self.dtype == torch.float16 else 1.0
        self.device: torch.device = self._accelerator.device
        self.processes: int = self._accelerator.num_processes
        self.rank: int = self._accelerator.process_index

    @property
    def is_main(self) -> bool:
        """True on the process that writes files."""
        return self.rank == 0

    def prepare(self, method: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Wrap method and optimizer for this device, precision and number of processes."""
        module, wrapped = self._accelerator.prepare(method, optimizer)
        return module, wrapped

    def unsynchronised(self, module: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Return the context for one micro-batch: gradients are exchanged between processes only on the last."""
        return nullcontext() if last else self._accelerator.no_sync(module)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass. accelerate makes its own for bf16; for fp16 it would skip steps."""
        half = self.dtype == torch.float16
        return torch.autocast(self.device.type, dtype=torch.float16) if half else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients, `clip` takes the loss' scale off them again."""
        self._accelerator.backward(loss * self._scale if self._scale != 1.0 else loss)

    def clip(self, params: Sequence[nn.Parameter], max_norm: float) -> Tensor:
        """Scale gradients down to a global norm of `max_norm` and return the norm they had.

        Gradients of a non-finite norm are left as they are, so that the caller can tell which of them are bad.
        """
        grads = [p.grad for p in params if p.grad is not None]
        if self._scale != 1.0:
            for grad in grads:
                grad.div_(self._scale)
        norm = torch.nn.utils.get_total_norm(grads)
        if bool(torch.isfinite(norm)):
            torch.nn.utils.clip_grads_with_norm_(params, max_norm, norm)
        return norm

    def mean(self, metrics: Mapping[str, Tensor]) -> dict[str, float]:
        """Average scalars over processes."""
        if not metrics:
            return {}
        stacked = torch.stack([metrics[key].detach().float().to(self.device) for key in sorted(metrics)])
        if self.processes > 1:
            stacked = self._accelerator.reduce(stacked, reduction="mean")
        return dict(zip(sorted(metrics), stacked.tolist(), strict=True))  # pyright: ignore[reportAttributeAccessIssue]

    def any(self, flag: bool) -> bool:
        """Tell on every process whether one of them says so. All must ask, at the same place."""
        if self.processes == 1:
            return flag
        count = self._accelerator.reduce(torch.tensor(float(flag), device=self.device), reduction="sum")
        return bool(count)

    def first(self, text: str) -> str:
        """Return on every process the first text of any that is not empty, or "". All must ask, at the same place."""
        if not self.any(bool(text)):
            return ""
        return text if self.processes == 1 else next(found for found in gather_object([text]) if found)

    def move(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Put a batch's tensors on the device, one level of nesting deep."""
        return {key: self._move(value) for key, value in batch.items()}

    def _move(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: self._move(item) for key, item in value.items()}
        return value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value

    def wait(self) -> None:
        """Return when every process is here."""
        self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """Leave the group of processes. One that is torn down while the interpreter exits may abort the process."""
        if self.processes > 1:
            torch.distributed.destroy_process_group()

    def peak_memory(self) -> int:
        """Return the peak memory so far in bytes: of the GPU if one is used, else of this process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def describe(self) -> str:
        """Return the device in words, for records."""
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        else:
            name = f"CPU, {torch.get_num_threads()} threads"
        return f"{name}, {self.processes} process{'es' if self.processes > 1 else ''}, {self.dtype}".replace(
            "torch.", ""
        )
