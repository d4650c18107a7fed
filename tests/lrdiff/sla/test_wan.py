from __future__ import annotations

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import nn

from lrdiff.errors import BackendError, TargetError
from lrdiff.sla.wan import WanSlaProcessor, attach_wan


def tiny() -> WanTransformer3DModel:
    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8, freq_dim=16,
        ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    ).eval()  # fmt: skip


def run(model: WanTransformer3DModel) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    x, text = torch.randn(1, 4, 3, 10, 12, generator=draw), torch.randn(1, 5, 8, generator=draw)
    kind = next(model.parameters()).dtype
    return model(x.to(kind), torch.tensor([500]), text.to(kind), return_dict=False)[0]


def processors(model: nn.Module) -> list[WanSlaProcessor]:
    return [m for m in model.modules() if isinstance(m, WanSlaProcessor)]


def test_topk_of_everything_is_the_models_own_output() -> None:
    model = tiny()
    with torch.no_grad():
        own = run(model)
        names = attach_wan(model, topk=1.0, block_q=16, block_k=16)
        torch.testing.assert_close(run(model), own, rtol=1e-4, atol=1e-5)
        for p in processors(model):
            p.topk = 0.2
        assert (run(model) - own).abs().max() > 1e-4
    assert names == ["blocks.0.attn1", "blocks.1.attn1"]


def test_every_layer_learns_its_own_projection() -> None:
    model = tiny()
    attach_wan(model, topk=0.2, block_q=16, block_k=16)
    run(model).square().mean().backward()
    first, second = (p.proj.weight for p in processors(model))
    assert first is not second
    assert first.grad is not None
    assert second.grad is not None
    assert first.grad.abs().max() > 0
    assert second.grad.abs().max() > 0
    assert not torch.equal(first.grad, second.grad)


def test_the_projection_stays_float32_in_a_half_precision_model() -> None:
    model = tiny()
    attach_wan(model, topk=0.2, block_q=16, block_k=16)
    weight = processors(model)[0].proj.weight
    nn.init.normal_(weight)
    before = weight.detach().clone()
    nn.Module.to(model, torch.bfloat16)
    kept = processors(model)[0].proj.weight
    assert kept.dtype == torch.float32
    assert torch.equal(kept, before)


@pytest.mark.parametrize("field", ["_parallel_config", "_attention_backend"])
def test_what_cannot_be_honoured_is_refused(field: str) -> None:
    model = tiny()
    attach_wan(model)
    setattr(processors(model)[0], field, "asked for")
    with pytest.raises(BackendError, match="does not support"):
        run(model)


def test_a_model_without_wan_attention_is_refused() -> None:
    with pytest.raises(TargetError, match="no self-attention"):
        attach_wan(nn.Linear(2, 2))
