"""Write the result tables into the README files, between `<!-- result: NAME -->` and `<!-- end -->`.

python -m tests.bench.readme           rewrites them
python -m tests.bench.readme --check   exits with 1 when they differ from the result files
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from tests.bench.result import RESULTS, read

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*(ROOT / folder / "README.md" for folder in ("", "app", "trainers")), *sorted(ROOT.glob("lrdiff/*/README.md"))]
BLOCK = re.compile(r"(<!-- result: (?P<name>[\w-]+) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)


def cell(value: Any) -> str:
    """Show a value: numbers with three significant digits, absent ones as a word."""
    if value is None:
        return "not measured"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def table(result: dict[str, Any]) -> str:
    """Return a result file as a Markdown table with its origin below."""
    lines = ["| " + " | ".join(result["columns"]) + " |", "|" + "---|" * len(result["columns"])]
    lines += ["| " + " | ".join(cell(value) for value in row) + " |" for row in result["rows"]]
    place = result["machine"]
    where = place["gpu"] or f"{place['cpu']}, {place['cores']} cores, {place['threads']} threads"
    versions = place["versions"]
    origin = f"`{result['command']}` on {where}; torch {versions['torch']}, diffusers {versions['diffusers']}."
    note = f" {result['note']}" if result["note"] else ""
    return "\n".join([*lines, "", f"<sub>{origin}{note}</sub>", ""])


def render(text: str) -> str:
    """Return a page's text with every block filled from its result file."""

    def fill(match: re.Match[str]) -> str:
        return match[1] + table(read(RESULTS / f"{match['name']}.json")) + match[4]

    return BLOCK.sub(fill, text)


def main(arguments: list[str]) -> int:
    """Rewrite or check all pages."""
    stale = [page for page in PAGES if render(page.read_text()) != page.read_text()]
    for page in stale:
        if "--check" in arguments:
            print(f"{page}: tables differ from tests/bench/results; run python -m tests.bench.readme")
        else:
            page.write_text(render(page.read_text()))
    return int(bool(stale) and "--check" in arguments)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
