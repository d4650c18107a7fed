"""Context parallelism: two processes with half of the tokens each compute what one does with all."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lrdiff.errors import BackendError
from lrdiff.sla.models import full_attention, processors, put_in
from lrdiff.sla.settings import SlaSettings
from lrdiff.sla.ulysses import over_processes
from tests.lrdiff.sla.networks import NETWORKS

SMALL = SlaSettings(topk=0.2, block_q=16, block_k=16)


def wan() -> Any:
    """Return the model with projections away from zero and shares that differ from head to head."""
    model = NETWORKS["wan"].make()
    put_in(model, SMALL)
    torch.manual_seed(2)
    for _, processor in processors(model):
        torch.nn.init.normal_(processor.proj.weight, std=0.5)
        torch.nn.init.uniform_(processor.mix)
    return model


@torch.no_grad()
def both(model: Any) -> list[Tensor]:
    """Return what the model computes with sparse-linear and with full attention."""
    sparse = NETWORKS["wan"].call(model)
    with full_attention(model):
        return [sparse, NETWORKS["wan"].call(model)]


def enable(model: Any, rank: int) -> None:
    """Call diffusers' own switch; without an accelerator it finds no device, so the meeting is arranged for it."""
    from diffusers import ContextParallelConfig, ParallelConfig

    config = ParallelConfig(context_parallel_config=ContextParallelConfig(ulysses_degree=2))
    mesh = torch.distributed.init_device_mesh("cpu", (1, 2), mesh_dim_names=("ring", "ulysses"))
    config.setup(rank, 2, torch.device("cpu"), mesh=mesh)
    model._resolve_parallel_config = lambda _: config
    model.enable_parallelism(config=config)


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    late, early = wan(), NETWORKS["wan"].make()
    enable(late, rank)
    found = both(late)
    # The other order: sparse-linear attention comes into a model that is parallel already.
    enable(early, rank)
    put_in(early, SMALL)
    early.load_state_dict(late.state_dict())
    assert torch.equal(both(early)[0], found[0])
    q = torch.randn(1, 20, 4, 8, generator=torch.Generator().manual_seed(rank), requires_grad=True)
    parallel = next(processors(late))[1]._parallel_config
    own = torch.arange(1.0, 5.0, requires_grad=True)
    out = over_processes(lambda q, k, v, own: own[:, None] * q * k.sum(1, keepdim=True), q, q, q, own, parallel)
    out.square().sum().backward()
    torch.save([*found, q.detach(), q.grad, own.grad], folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=work, args=(rank, tmp_path)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(600)
    assert [process.exitcode for process in started] == [0, 0]
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for one, *others in zip(both(wan()), *(part[:2] for part in parts), strict=True):
        for other in others:
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
    q = torch.cat([part[2] for part in parts], 1).requires_grad_()
    own = torch.arange(1.0, 5.0, requires_grad=True)
    (own[:, None] * q * q.sum(1, keepdim=True)).square().sum().backward()
    torch.testing.assert_close(torch.cat([part[3] for part in parts], 1), q.grad, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(parts[0][4] + parts[1][4], own.grad)


@pytest.mark.parametrize(
    ("wanted", "heads", "reason"),
    [({"ring_degree": 2}, 2, "ulysses_degree alone"), ({"ulysses_anything": True}, 2, "alone"), ({}, 3, "3 heads")],
)
def test_what_would_not_be_exact_is_refused(wanted: dict[str, Any], heads: int, reason: str) -> None:
    config = {"ring_degree": 1, "ulysses_degree": 2, "ulysses_anything": False} | wanted
    x = torch.randn(1, 8, heads, 4)
    with pytest.raises(BackendError, match=reason):
        over_processes(
            lambda q, k, v, own: q, x, x, x, None,
            SimpleNamespace(context_parallel_config=SimpleNamespace(**config)),
        )  # fmt: skip


@pytest.mark.parametrize("name", ["flux", "sd3", "cogvideox", "hunyuan"])
def test_parallel_text_and_picture_are_refused(name: str) -> None:
    model = NETWORKS[name].make()
    put_in(model, SMALL)
    next(processors(model))[1]._parallel_config = "asked for"
    with pytest.raises(BackendError, match="does not support context parallelism"):
        NETWORKS[name].call(model)
