"""`lrdiff sla map` writes a picture of the blocks and says the shares."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from lrdiff.sla.map_picture import COLORS
from tests.app.cli.conftest import Lrdiff

SMALL = ("--topk", 0.25, "--skip", 0.25, "--block-q", 16, "--block-k", 16, "--size", 128, "--steps", 2)


def test_a_map_is_a_picture_and_words(lrdiff: Lrdiff, tiny: Path) -> None:
    code, out, err = lrdiff("sla", "map", "--model", tiny, "--out", "seen.png", *SMALL)
    assert (code, out) == (0, "seen.png\n")
    assert "Critical 25.0%, marginal 50.0%, negligible 25.0%." in err
    assert "at its own size of 32 px" in err
    with Image.open("seen.png") as picture:
        shown = {color for _, color in picture.getcolors(10**6) or ()}
        record = json.loads(picture.text["lrdiff"])  # pyright: ignore[reportAttributeAccessIssue]
    assert {tuple(bytes.fromhex(color[1:])) for color in COLORS.values()} <= shown
    assert record["config"]["layer"] in err
    assert lrdiff("sla", "map", "--model", tiny, "--out", "seen.png", *SMALL)[0] == 2


def test_short_layers_are_told_and_unknown_ones_refused(lrdiff: Lrdiff, tiny: Path) -> None:
    code, _, err = lrdiff("sla", "map", "--model", tiny, "--steps", 2)
    assert code == 0
    assert "Nothing is sparse in this layer: one block of 64 keys" in err
    code, _, err = lrdiff("sla", "map", "--model", tiny, "--layer", "conv_in", "--out", "other.png")
    assert code == 2
    assert "no attention layer conv_in that can be replaced; there are " in err
    assert not Path("other.png").exists()
    assert lrdiff("sla")[0] == 2
    assert lrdiff("sla", "nonsense")[0] == 2
