"""Few bits at a time: what pictures carry while a code of many bits is learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SHARE = 0.65
"""Of the pictures that carry few bits."""
FIRST = 10
"""At most as many bits at first."""
ENOUGH = 0.92
"""Share of these bits that must be read for pictures to carry more."""
GROWTH = 1.01
"""Factor on the number of bits, for every step in which that is so."""
FOLLOW = 0.05
"""How fast running means follow."""
WELL = 1.02
"""A bit is drawn with odds of this less the share of pictures in which it was read, so that none is forgotten."""


class FewBits(nn.Module):
    """Which bits each picture carries: a part of the pictures few, preferably those that are read badly; the rest all.

    With all bits in every picture some are found soon, and the others stay at chance for thousands of steps: the
    patterns of all others are noise to the one that nobody reads yet (measured: 18 of 48 bits below 0.6 after 2,000
    steps). Among few it is found within a hundred steps. Then pictures carry more and more, up to all.
    """

    def __init__(self, bits: int) -> None:
        """Begin with few.

        Args:
            bits: Of a message.
        """
        super().__init__()
        self.bits = bits
        self.register_buffer("read", torch.full((bits,), 0.75))
        self.register_buffer("few", torch.tensor(float(min(FIRST, bits))))
        self.register_buffer("few_read", torch.tensor(0.8))

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """Return which bits pictures carry, [count, bits] of 0 and 1."""
        carried = torch.ones(count, self.bits)
        odds = (WELL - self.get_buffer("read")).cpu().clamp_min(WELL - 1)
        most = int(self.get_buffer("few"))
        for row in range(int(count * SHARE)):
            number = int(torch.randint(max(1, most // 2), most + 1, (), generator=rng))
            carried[row] = 0
            carried[row, torch.multinomial(odds, number, generator=rng)] = 1
        return carried

    def note(self, right: Tensor, carried: Tensor) -> None:
        """Take in which bits were read, [B, bits] of 0 and 1, in pictures that carried these."""
        full = carried.amin(1) > 0
        if bool(full.any()):
            self.get_buffer("read").lerp_(right[full].mean(0), FOLLOW)
        if bool((~full).any()):
            found = (right * carried)[~full].sum() / carried[~full].sum()
            self.get_buffer("few_read").lerp_(found, FOLLOW)
            if float(self.get_buffer("few_read")) > ENOUGH:
                self.get_buffer("few").mul_(GROWTH).clamp_(max=float(self.bits))
