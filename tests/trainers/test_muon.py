"""Muon: orthogonal steps for the groups that ask for it, AdamW's for the others, exact resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.trainers.line import cpu
from trainers import checkpoint, rundir
from trainers.config import OptimConfig
from trainers.loop import State, build_optimizer, fit
from trainers.method import Batch, Method, Metrics, ParamGroup
from trainers.muon import MOMENTUM, Muon, orthogonalised


class TwoLayers(Method[None]):
    """A convolution with orthogonal steps and a bias without, fitted to a fixed picture."""

    def __init__(self) -> None:
        super().__init__(None)
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 3, 3, padding=1)

    def batch(self, index: int, rng: torch.Generator) -> Batch:
        return {"x": torch.randn(4, 2, 6, 6, generator=rng)}

    def forward(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        return (self.conv(batch["x"]) - batch["x"].sum(1, keepdim=True)).square().mean(), {}

    def param_groups(self) -> list[ParamGroup]:
        assert self.conv.bias is not None
        return [ParamGroup("kernel", [self.conv.weight], orthogonal=True), ParamGroup("bias", [self.conv.bias])]

    def artifact(self) -> None: ...


OPTIM = OptimConfig(steps=40, lr=0.05, warmup=0, schedule="constant", weight_decay=0.1)


@pytest.mark.parametrize("shape", [(5, 5), (3, 40), (40, 3)])
def test_the_iteration_comes_near_the_orthogonal_factor(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalised(matrix)
    values = torch.linalg.svdvals(found)
    assert float(values.min()) > 0.3
    assert float(values.max()) < 1.3
    # The same directions, only the lengths are brought together.
    inner = u.T @ found @ vh.T
    assert float((inner - inner.diagonal().diag()).abs().max()) < 1e-9
    assert orthogonalised(1000 * matrix).allclose(found)


def test_in_half_precision_the_directions_are_the_same_within_its_rounding() -> None:
    matrix = torch.randn(24, 216, generator=torch.Generator().manual_seed(2))
    found, exact = orthogonalised(matrix.bfloat16()).float(), orthogonalised(matrix)
    assert float(torch.cosine_similarity(found.flatten(), exact.flatten(), dim=0)) > 0.999
    assert found.dtype == exact.dtype


def test_a_zero_gradient_moves_nothing() -> None:
    assert not orthogonalised(torch.zeros(3, 4)).any()


def test_the_first_step_by_hand() -> None:
    method = TwoLayers()
    before, bias = method.conv.weight.detach().clone(), method.conv.bias
    optimizer = build_optimizer(list(method.param_groups()), OPTIM, cpu())
    assert isinstance(optimizer, Muon)
    loss, _ = method(method.batch(0, torch.Generator().manual_seed(3)), torch.Generator())
    loss.backward()
    gradient = method.conv.weight.grad
    assert gradient is not None
    # From a momentum of zero, (1 - mu) G + mu (1 - mu) G: its length does not matter.
    step = orthogonalised(gradient.flatten(1)).view_as(before)
    expected = before * (1 - 0.05 * 0.1) - 0.2 * 0.05 * 18**0.5 * step
    start = bias.detach().clone() if bias is not None else None
    optimizer.step()
    assert torch.allclose(method.conv.weight, expected, atol=1e-6)
    assert set(optimizer.state[method.conv.weight]) == {"momentum", "step"}
    assert torch.allclose(optimizer.state[method.conv.weight]["momentum"], (1 - MOMENTUM) * gradient)
    # AdamW's first step has the size of the learning rate.
    assert bias is not None
    assert start is not None
    assert torch.allclose((bias - start * (1 - 0.05 * 0.1)).abs(), torch.full((3,), 0.05), atol=1e-4)


def test_methods_without_such_groups_get_plain_adamw() -> None:
    method = TwoLayers()
    groups = [ParamGroup("all", list(method.parameters()))]
    assert type(build_optimizer(groups, OPTIM, cpu())) is torch.optim.AdamW


def test_it_learns_and_resumes_bit_by_bit(tmp_path: Path) -> None:
    whole = TwoLayers()
    losses: list[float] = []
    fit(whole, OPTIM, engine=cpu(), seed=1, hooks=[lambda state: losses.append(state.metrics.get("loss", 0.0))])
    assert losses[-1] < losses[1] / 2
    run = rundir.create(tmp_path / "run", "two-layers", {})

    def stop_half_way(state: State) -> None:
        if state.step == 20:
            checkpoint.save(run, state, 1)
            state.stop = "half way"

    fit(TwoLayers(), OPTIM, engine=cpu(), seed=1, hooks=[stop_half_way])
    resumed = TwoLayers()
    fit(resumed, OPTIM, engine=cpu(), seed=1, restore=lambda state: checkpoint.restore(run, state))
    for first, second in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(first, second)
