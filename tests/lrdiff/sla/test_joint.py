"""Image and text in one sequence: text is never sparse, whatever the lengths."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lrdiff.sla import reference, route
from lrdiff.sla.blocks import CRITICAL
from lrdiff.sla.joint import joint_attention, joint_map
from lrdiff.sla.settings import SlaSettings
from tests.lrdiff.sla.cases import draw, projection

SETTINGS = SlaSettings(topk=0.25, skip=0.25, block_q=32, block_k=16)
LENGTHS = [(128, 32), (128, 7), (133, 21), (40, 100), (9, 5)]
"""Image and text: whole blocks, a short text, a block in which both meet, more text than image, less than a block."""


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


@pytest.mark.parametrize("scope", ["marginal", "noncritical", "all"])
@pytest.mark.parametrize(("image", "text"), LENGTHS)
def test_text_attends_to_everything_and_everything_to_text(image: int, text: int, scope: str) -> None:
    q, k, v = draw(2, image + text, 3, 16)
    proj, mix = projection(16), torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    settings = SlaSettings(topk=0.25, skip=0.25, block_q=32, block_k=16, scope=scope)  # pyright: ignore
    out = joint_attention(q, k, v, text, proj, mix, settings)
    torch.testing.assert_close(out[:, image:], dense(q, k, v)[:, image:])
    classes = joint_map(q, k, text, settings).classes
    assert (classes[..., image // 16 :] == CRITICAL).all()
    heads = [x.transpose(1, 2) for x in (q, k, v)]
    sizes = {"block_q": 32, "block_k": 16}
    parts = reference.naive(*heads, classes, scope=scope, feature_map="softmax", **sizes)
    left = reference.left_out(*heads[:2], classes, scope=scope, **sizes)
    expected = reference.combine(reference.mixed(parts, mix, left), proj.weight, proj.bias).transpose(1, 2)
    torch.testing.assert_close(out[:, :image], expected[:, :image])
    out[:, :image].square().sum().backward()
    assert all(x.grad is not None and x.grad[:, image:].abs().max() > 0 for x in (k, v))
    sparse = bool((classes != CRITICAL).any())
    assert mix.grad is not None
    assert bool(mix.grad.any()) == sparse


def test_the_image_is_routed_among_itself() -> None:
    q, k, _ = draw(1, 160, 2, 16)
    found = joint_map(q, k, 32, SETTINGS).classes[..., :4, :8]
    alone = route(q[:, :128], k[:, :128], layout="blhd", **SETTINGS.router()).classes
    assert torch.equal(found, alone)


def test_without_text_it_is_the_operator() -> None:
    from lrdiff.sla import sla_attention

    q, k, v = draw(1, 100, 2, 16)
    proj, mix = projection(16), torch.tensor([0.2, 0.8])
    expected = sla_attention(q, k, v, proj=proj, mix=mix, layout="blhd", **SETTINGS.router(), **SETTINGS.branch())
    assert torch.equal(joint_attention(q, k, v, 0, proj, mix, SETTINGS), expected)
