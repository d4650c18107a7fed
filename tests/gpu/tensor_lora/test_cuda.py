"""Numbers on a CUDA device: bfloat16 and float32 against the same layer on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model

from tests.lrdiff.tensor_lora.models import base_weights, conv_net, draw, mlp, settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
NETS: dict[str, tuple[Any, list[str], tuple[int, ...]]] = {
    "mlp": (mlp, ["lin0", "lin1"], (4, 5, 12)),
    "conv": (conv_net, ["conv0", "conv1", "conv2"], (2, 4, 8, 8)),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 5e-2)])
def test_output_gradients_and_merge_agree_with_the_cpu(net: str, dtype: torch.dtype, tolerance: float) -> None:
    make, targets, shape = NETS[net]
    results = []
    for device, kind in (("cpu", torch.float32), ("cuda", dtype)):
        torch.manual_seed(5)
        model = get_peft_model(make(), settings(targets)).to(device)
        for weight in base_weights(model):
            parameter = model.get_parameter(weight)
            parameter.data = parameter.data.to(kind)
        out = model(draw(*shape).to(device, kind))
        out.float().square().mean().backward()
        grads = [p.grad.float().cpu() for p in model.parameters() if p.grad is not None]
        model.merge_adapter(safe_merge=True)
        results.append([out.float().cpu(), model(draw(*shape).to(device, kind)).float().cpu(), *grads])
    for exact, found in zip(*results, strict=True):
        assert (exact - found).abs().max() <= tolerance * exact.abs().max() + tolerance * 1e-1


def test_autocast_on_cuda_leaves_a_fresh_adapter_exact() -> None:
    x = draw(4, 12).cuda()
    net = mlp().cuda()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        before = net(x)
        assert torch.equal(get_peft_model(net, settings(init_weights=True))(x), before)
