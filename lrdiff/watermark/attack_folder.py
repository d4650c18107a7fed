"""The attack report on disk: a new folder with table, figures and curves, complete or absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lrdiff.decoders import new_folder
from lrdiff.files import write_bytes, write_json
from lrdiff.watermark import attack_plots
from lrdiff.watermark.attack_report import ALPHAS, Row, levels, markdown, to_csv
from lrdiff.watermark.statistics import p_value, threshold


def write(out: Path, rows: Sequence[Row], facts: Mapping[str, Any]) -> Path:
    """Write `attacks.json`, `attacks.csv`, `attacks.md`, `strength.png` and `psnr.png` into a new folder.

    The folder appears in one step. Neither the key nor single pictures are in it.

    Args:
        out: Absent so far.
        rows: The table.
        facts: What else the report should state: pictures, extractor, seed, what was left out.

    Raises:
        ArtifactError: The folder is there already, or cannot be written.
    """
    bits = rows[0].bits
    needed = {f"{alpha:g}": threshold(bits, alpha) for alpha in ALPHAS}
    chance = {name: None if count is None else p_value(count, bits) for name, count in needed.items()}
    record = {**facts, "bits": bits, "thresholds": needed, "chance_of_threshold": chance, "statement": levels(bits)}
    with new_folder(out) as folder:
        write_json(folder / "attacks.json", {**record, "rows": [row.record() for row in rows]})
        write_bytes(folder / "attacks.csv", to_csv(rows).encode())
        write_bytes(folder / "attacks.md", markdown(rows).encode())
        write_bytes(folder / "strength.png", attack_plots.by_strength(rows))
        write_bytes(folder / "psnr.png", attack_plots.by_psnr(rows))
    return out
