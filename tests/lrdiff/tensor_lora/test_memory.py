"""What a training step keeps and what it builds: never W0 T, never D, nothing of size out x in x R^2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lrdiff.tensor_lora import TensorLoraConfig
from tests.lrdiff.tensor_lora.models import draw


@contextmanager
def kept_tensors() -> Iterator[list[Tensor]]:
    """Collect what autograd keeps for the backward pass."""
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


class Made(TorchDispatchMode):
    """Records the shape of every tensor that any operation makes, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else [result]:
            if isinstance(item, Tensor):
                self.shapes.add(tuple(item.shape))
        return result


def bytes_of(tensors: list[Tensor], ignored: nn.Module) -> int:
    """Bytes of the distinct storages, without those of the model's parameters."""
    own = {p.untyped_storage().data_ptr() for p in ignored.parameters()}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(size for pointer, size in storages.items() if pointer not in own)


def square(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, width))


@pytest.mark.parametrize(
    "config",
    [
        {"transform_rank": 2, "r": 6},
        {"transform_rank": 1, "r": 2},
        {"transform_rank": 2, "r": 4, "residual": "lora"},
    ],
    ids=str,
)
def test_neither_the_turned_weight_nor_the_residual_is_ever_built(config: dict[str, Any]) -> None:
    """40 outputs, 96 inputs: no product of the base weight with anything, and no [out, in] matrix at all."""
    torch.manual_seed(0)
    model = get_peft_model(
        nn.Sequential(nn.Linear(96, 40)), TensorLoraConfig(target_modules=["0"], init_weights=False, **config)
    )
    with Made() as made, kept_tensors() as kept:
        model(draw(7, 96).requires_grad_()).sum().backward()
    rank = config["r"]
    largest = max(torch.Size(shape).numel() for shape in made.shapes)
    assert largest <= 96 * 96, "the dense T is the largest thing"
    assert largest < 40 * 96 * rank**2
    weights = {shape for shape in made.shapes if shape in {(40, 96), (96, 40)}}
    base = model.base_model.model[0].get_base_layer().weight
    assert weights <= {tuple(base.shape), tuple(base.t().shape)}
    matrices = [t for t in kept if tuple(t.shape) in {(40, 96), (96, 40)}]
    assert all(t.untyped_storage().data_ptr() == base.untyped_storage().data_ptr() for t in matrices)


def test_no_matrix_of_the_base_weights_shape_is_computed() -> None:
    """Stricter: apart from views of the base weight itself, no operation returns an [out, in] matrix."""

    class Fresh(Made):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in known:
                self.shapes.add(tuple(result.shape))
            return result

    model = get_peft_model(nn.Sequential(nn.Linear(96, 40)), TensorLoraConfig(target_modules=["0"], init_weights=False))
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with Fresh() as made:
        model(draw(7, 96).requires_grad_()).sum().backward()
    assert not made.shapes & {(40, 96), (96, 40)}


def test_a_wide_layer_with_few_rows_keeps_what_plain_lora_keeps() -> None:
    """1280 features, 64 rows: T (6.5 MB) is built again for the backward pass, not kept."""
    x = draw(64, 1280).requires_grad_()
    sizes = {}
    for name, config in {
        "lora": LoraConfig(r=4, target_modules=["0"]),
        "ours": TensorLoraConfig(target_modules=["0"], transform_rank=2, r=2),
    }.items():
        model = get_peft_model(square(1280), config)
        with kept_tensors() as kept:
            model(x)
        sizes[name] = bytes_of(kept, model)
    factors = 2 * 4 * 1280 * 4
    assert sizes["ours"] <= sizes["lora"] + factors
    assert sizes["ours"] < 0.1 * 1280 * 1280 * 4


def test_the_input_is_kept_once_however_many_layers_share_it() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({name: nn.Linear(64, 64) for name in ("to_q", "to_k", "to_v")})
    x = draw(4096, 64).requires_grad_()
    from peft import inject_adapter_in_model

    inject_adapter_in_model(TensorLoraConfig(target_modules=["to_q", "to_k", "to_v"], transform_rank=2, r=2), model)
    with kept_tensors() as kept:
        outputs = [layer(x) for layer in model.values()]
    inner = 3 * 4096 * 4 * 4
    matrices = 3 * (64 * 64 + 4 * (16 + 256) + 2 * 4 * 64) * 4
    assert len(outputs) == 3
    assert bytes_of(kept, model) <= x.numel() * 4 + inner + matrices
