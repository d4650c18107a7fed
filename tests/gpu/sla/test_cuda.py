"""The kernels on a CUDA device, at lengths and widths of real models. The small cases are in tests/lrdiff/sla."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lrdiff.sla import route, sla_attention, sla_with_map
from tests.lrdiff.sla.cases import SCOPES, assert_no_worse, dense, draw, gradients, projection, relative

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def cuda(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> list[torch.Tensor]:
    return [x.detach().cuda().requires_grad_() for x in draw(*shape, dtype=dtype, scale=scale)]


@pytest.mark.parametrize("scale", [1.0, 4.0, 16.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("length", "width"), [(1000, 32), (1500, 64), (2040, 96), (2040, 128), (777, 80)])
def test_no_worse_than_plain_torch(length: int, width: int, dtype: torch.dtype, scale: float) -> None:
    qkv, proj = cuda(1, 2, length, width, dtype=dtype, scale=scale), projection(width).cuda()
    block_map = route(qkv[0], qkv[1], topk=0.2)
    for scope in SCOPES:
        out, stats = sla_with_map(*qkv, block_map, proj=proj, scope=scope)
        assert stats.backend == "triton"
        same = dense(qkv, block_map, scope, "softmax", proj)
        wide = [x.detach().double().requires_grad_() for x in qkv]
        exact = dense(wide, block_map, scope, "softmax", proj)
        found = [out.detach(), *gradients(out, qkv)]
        plain = [same.detach(), *gradients(same, qkv)]
        for a, b, c in zip(found, plain, [exact.detach(), *gradients(exact, wide)], strict=True):
            assert_no_worse(a.cpu(), b.cpu(), c.cpu())
            assert relative(a, c.cpu()) <= 2e-2


@pytest.mark.parametrize("scope", SCOPES)
def test_wans_shape_agrees_with_the_gathering_path_and_itself(scope: Any) -> None:
    qkv = cuda(1, 2, 32760, 128, dtype=torch.bfloat16)
    proj = projection(128, torch.float32).cuda()
    block_map = route(qkv[0], qkv[1])
    runs = []
    for backend in ("triton", "triton", "reference"):
        out, _ = sla_with_map(*qkv, block_map, proj=proj, scope=scope, backend=backend)
        runs.append([out.detach(), *gradients(out, qkv)])
    for one, two, other in zip(*runs, strict=True):
        assert torch.equal(one, two)
        assert relative(one, other.cpu()) <= 2e-2


def test_offsets_beyond_31_bits() -> None:
    qkv = [x.detach() for x in cuda(9, 16, 128, 128, dtype=torch.bfloat16)]
    far = [torch.empty(9, 16, 131072, 128, dtype=torch.bfloat16, device="cuda")[:, :, :128].copy_(x) for x in qkv]
    assert torch.equal(sla_attention(*far, topk=0.5), sla_attention(*qkv, topk=0.5))


def test_one_compilation_serves_all_lengths_and_shares() -> None:
    from lrdiff.sla import kernels_sparse

    def built() -> int:
        return sum(len(entry[0]) for entry in kernels_sparse.forward.device_caches.values())

    sla_attention(*cuda(1, 2, 500, 64, dtype=torch.bfloat16), topk=0.5)
    before = built()
    for length, topk in ((501, 0.5), (777, 0.2), (1024, 0.9)):
        sla_attention(*cuda(1, 2, length, 64, dtype=torch.bfloat16), topk=topk)
    assert built() == before


def test_compiles_with_inductor() -> None:
    proj, mix = projection(64, torch.float32).cuda(), torch.tensor([0.3, 0.8], device="cuda")
    qkv = cuda(1, 500, 2, 64, dtype=torch.bfloat16)

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return sla_attention(q, k, v, proj=proj, mix=mix, layout="blhd", topk=0.3)

    out, plain = torch.compile(run, fullgraph=True)(*qkv), run(*qkv)
    assert relative(out, plain.cpu()) <= 1e-2
    for a, b in zip(gradients(out, qkv), gradients(plain, qkv), strict=True):
        assert relative(a, b.cpu()) <= 1e-2


def test_flex_agrees() -> None:
    qkv = cuda(1, 2, 1000, 64, dtype=torch.bfloat16)
    block_map = route(qkv[0], qkv[1], topk=0.3)
    found = []
    for backend in ("flex", "triton"):
        out, stats = sla_with_map(*qkv, block_map, backend=backend)
        found.append([out, stats.lse, *gradients(out, qkv)])
    for a, b in zip(*found, strict=True):
        assert relative(a, b.cpu()) <= 1e-2
