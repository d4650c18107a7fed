"""The FlexAttention backend: same map, same numbers; forward only on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lrdiff.errors import BackendError
from lrdiff.sla import sla_attention, sla_with_map
from tests.lrdiff.sla.cases import SCOPES, case, draw, projection, ragged


@pytest.mark.parametrize("scope", SCOPES)
def test_agrees_with_the_reference(scope: Any) -> None:
    qkv = [x.detach() for x in draw(2, 2, 150, 16, dtype=torch.float32)]
    block_map, proj = ragged(2, 2, 150, 32, 16), projection(16, torch.float32)
    with torch.no_grad():
        one, stats = sla_with_map(*qkv, block_map, proj=proj, scope=scope, backend="flex")
        two, exact = sla_with_map(*qkv, block_map, proj=proj, scope=scope, backend="reference")
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stats.lse, exact.lse, rtol=1e-5, atol=1e-5)
    assert stats.backend == "flex"


def test_gradients_on_a_cpu_are_refused() -> None:
    with pytest.raises(BackendError, match="no backward pass"):
        sla_attention(*draw(1, 1, 40, 16, dtype=torch.float32), backend="flex", **case())
