"""`report.html`: one self-contained page about a run: outcome, settings, loss curve, previews over time."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrdiff.files import write_bytes
from trainers.rundir import RunDir

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c1f24;background:#fff}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse}td{padding:.15rem 1rem .15rem 0;
vertical-align:top}td:first-child{color:#5a6472}.strip{display:flex;flex-wrap:wrap;gap:.75rem}figure{margin:0}
figcaption{font-size:.8rem;color:#5a6472}img{width:128px;image-rendering:auto;border-radius:6px;margin-right:2px}
pre{background:#f4f6f8;padding:1rem;overflow:auto;border-radius:6px}svg{max-width:100%}
@media(prefers-color-scheme:dark){body{background:#14171b;color:#e4e8ee}pre{background:#1e2329}}
"""


def write(run: RunDir) -> Path:
    """Write the report of a run from what lies in its directory, and return its path."""
    record, metrics = run.read(), run.metrics()
    title = f"{record['method']} · {run.path.name} · {record['state']}"
    facts = ("state", "outcome", "started", "ended", "seconds", "step", "device", "peak_memory", "git", "seed")
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>",
        f"<h1>{html.escape(title)}</h1>",
        _table([(name, record[name]) for name in facts if record.get(name) is not None]),
        "<h2>What was trained</h2>",
        "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in record.get("preflight", [])) + "</ul>",
        "<h2>Loss</h2>",
        *(_curve(name, metrics) for name in ("loss", "loss_fixed", "loss_validation")),
        "<h2>Previews</h2>",
        _previews(run),
        "<h2>Settings</h2>",
        f"<pre>{html.escape(json.dumps(record['config'], indent=2, ensure_ascii=False))}</pre>",
    ]
    path = run.path / "report.html"
    write_bytes(path, "\n".join(parts).encode())
    return path


def _table(rows: Sequence[tuple[str, Any]]) -> str:
    cells = "".join(f"<tr><td>{html.escape(name)}<td>{html.escape(str(value))}" for name, value in rows)
    return f"<table>{cells}</table>"


def _curve(name: str, metrics: Sequence[dict[str, Any]]) -> str:
    """Draw one metric over the steps as an inline SVG; nothing when it was never logged."""
    points = [(row["step"], row[name]) for row in metrics if name in row]
    if len(points) < 2:
        return ""
    width, height, left, bottom = 720, 200, 60, 24
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    low, high = min(ys), max(ys)
    span_x, span_y = max(xs) - min(xs) or 1, high - low or 1

    def place(step: float, value: float) -> str:
        x = left + (step - min(xs)) / span_x * (width - left - 8)
        y = 8 + (high - value) / span_y * (height - bottom - 16)
        return f"{x:.1f},{y:.1f}"

    line = " ".join(place(step, value) for step, value in points)
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="{name}">'
        f'<polyline points="{line}" fill="none" stroke="#3468c0" stroke-width="2"/>'
        f'<g font-size="12" fill="#5a6472"><text x="0" y="16">{high:.4g}</text>'
        f'<text x="0" y="{height - bottom}">{low:.4g}</text><text x="{left}" y="{height - 4}">step {min(xs)}</text>'
        f'<text x="{width - 70}" y="{height - 4}">step {max(xs)}</text></g></svg>'
        f"<figcaption>{name}</figcaption></figure>"
    )


def _previews(run: RunDir) -> str:
    if not run.previews.is_dir():
        return "<p>none were drawn</p>"
    figures = []
    for folder in sorted(entry for entry in run.previews.iterdir() if entry.name.isdigit()):
        images = "".join(
            f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,'
            f'{base64.b64encode(path.read_bytes()).decode()}">'
            for path in sorted(folder.glob("*.png"))
        )
        figures.append(f"<figure>{images}<figcaption>step {int(folder.name)}</figcaption></figure>")
    return f'<div class="strip">{"".join(figures)}</div>'
