"""`python -m tests.bench.tensor_lora_pace`: how far the first steps at one learning rate move a layer's weight.

AdamW moves every parameter by about the learning rate, whatever its gradient; how far the weight then goes is decided
by the adapter's form and start. One linear layer learns another random one; what is shown is ||dW|| / ||W0||, in
percent. Seconds of a core. `tensor_lora_tries` looks at the same in the training of `toys`.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from peft import LoraConfig
from torch import nn

from lrdiff.inject import inject
from lrdiff.tensor_lora import TensorLoraConfig
from tests.bench.result import write

WIDTHS = (128, 320, 1280)
STEPS, RATE, ROWS = 10, 2e-3, 64


def ring(r: int) -> Any:
    """Return a residual ring without a transform."""
    return TensorLoraConfig(target_modules=["0"], transform_rank=0, r=r)


def turn(rank: int) -> Any:
    """Return a transform without a residual."""
    return TensorLoraConfig(target_modules=["0"], transform_rank=rank, residual="none")


ADAPTERS = {
    "LoRA r=1": lambda: LoraConfig(target_modules=["0"], r=1, lora_alpha=1),
    "LoRA r=4": lambda: LoraConfig(target_modules=["0"], r=4, lora_alpha=4),
    "ring 2": lambda: ring(2),
    "ring 4": lambda: ring(4),
    "ring 6": lambda: ring(6),
    "transform 1": lambda: turn(1),
    "transform 2": lambda: turn(2),
}


def moved(width: int, config: Any) -> float:
    """Train an adapter on a square layer for a few steps; return the percentage that its weight moved by."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width, bias=False))
    nn.init.normal_(model[0].weight, std=width**-0.5)
    inputs = torch.randn(ROWS, width)
    targets = inputs @ torch.randn(width, width) / width**0.5
    inject(model, config, "pace")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
    layer: Any = model[0]
    with torch.no_grad():
        return 100 * float(layer.get_delta_weight("pace").norm() / layer.base_layer.weight.norm())


def main(arguments: list[str]) -> None:
    """Measure all widths and adapters, and write the result file."""
    del arguments
    rows = [[width, *(moved(width, make()) for make in ADAPTERS.values())] for width in WIDTHS]
    for row in rows:
        print(*row, sep="  ", flush=True)
    write(
        "tensor_lora_pace",
        "python -m tests.bench.tensor_lora_pace",
        ["width", *ADAPTERS],
        rows,
        note=f"Percent of the weight's norm after {STEPS} steps of AdamW at {RATE}, everything else at its default.",
    )


if __name__ == "__main__":
    main(sys.argv[1:])
