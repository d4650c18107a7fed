"""Curves of an attack report: what is left against strength, and against the damage done."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lrdiff.watermark.attack_report import ALPHAS, Row

COLOURS = ("#1b5e9b", "#c05621", "#6b8e23")
ACROSS = 4


def by_strength(rows: Sequence[Row]) -> bytes:
    """Return a PNG: for every attack with several strengths, bit accuracy and detection rates against strength."""
    groups = [group for group in _grouped(rows).values() if len(group) > 1]
    figure, axes = _sheet(len(groups))
    for group, axis in zip(groups, axes, strict=False):
        xs = range(len(group))
        axis.plot(xs, [row.accuracy for row in group], "k-o", markersize=3, label="bit accuracy")
        bounds = [row.accuracy_interval() for row in group]
        axis.fill_between(xs, [b.low for b in bounds], [b.high for b in bounds], color="k", alpha=0.15, linewidth=0)
        _draw_detection(axis, list(xs), group)
        axis.set_xticks(list(xs), [f"{row.strength:g}" for row in group], fontsize=7)
        axis.set_title(f"{group[0].attack} ({group[0].measure})", fontsize=8)
    return _finished(figure, axes, len(groups))


def by_psnr(rows: Sequence[Row]) -> bytes:
    """Return a PNG: bit accuracy and detection at the strictest rate against PSNR, one line per attack."""
    groups = {
        name: sorted((row for row in group if row.psnr is not None), key=lambda row: row.psnr or 0.0)
        for name, group in _grouped(rows).items()
    }
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    accuracy, detection = figure.subplots(1, 2, sharex=True)
    for name, group in groups.items():
        if group:
            xs = [row.psnr or 0.0 for row in group]
            accuracy.plot(xs, [row.accuracy for row in group], "-o", markersize=3, label=name)
            detection.plot(xs, [row.detected(ALPHAS[0])[0] for row in group], "-o", markersize=3, label=name)
    for axis, title in ((accuracy, "bit accuracy"), (detection, f"detected at {ALPHAS[0]:g}")):
        axis.set_xlabel("PSNR against the marked picture, dB")
        axis.set_title(title)
        axis.set_ylim(-0.03, 1.03)
        axis.grid(alpha=0.3)
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside right center", fontsize=7)
    return _png(figure)


def _grouped(rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.attack, []).append(row)
    return groups


def _draw_detection(axis: Any, xs: list[int], group: Sequence[Row]) -> None:
    for alpha, colour in zip(ALPHAS, COLOURS, strict=True):
        rates = [row.detected(alpha) for row in group]
        errors = [
            [rate - bounds.low for rate, bounds in rates],
            [bounds.high - rate for rate, bounds in rates],
        ]
        axis.errorbar(
            xs,
            [rate for rate, _ in rates],
            errors,
            fmt="--",
            color=colour,
            linewidth=1,
            elinewidth=0.6,
            label=f"detected at {alpha:g}",
        )


def _sheet(count: int) -> tuple[Figure, list[Any]]:
    down = max(1, math.ceil(count / ACROSS))
    figure = Figure(figsize=(3 * ACROSS, 2.2 * down + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(down, ACROSS, squeeze=False).ravel())


def _finished(figure: Figure, axes: Sequence[Any], used: int) -> bytes:
    for axis in axes[:used]:
        axis.set_ylim(-0.03, 1.03)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    for axis in axes[used:]:
        axis.set_axis_off()
    if used:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Without the version of matplotlib inside, equal curves give equal bytes.
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()
