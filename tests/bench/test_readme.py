"""The README's tables are those of the result files, and its pictures exist."""

from __future__ import annotations

import re

from tests.bench.readme import BLOCK, README, cell, render
from tests.bench.result import RESULTS


def test_the_tables_are_made_from_the_result_files() -> None:
    text = README.read_text()
    assert BLOCK.search(text)
    assert render(text) == text


def test_every_result_file_is_shown() -> None:
    shown = {match["name"] for match in BLOCK.finditer(README.read_text())}
    assert {path.stem for path in RESULTS.glob("*.json")} == shown


def test_every_link_into_the_repository_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text())
    assert links
    missing = [link for link in links if not (README.parent / link).exists()]
    assert missing == []


def test_numbers_are_shown_with_three_digits() -> None:
    assert [cell(v) for v in (0.12345, 12345.6, 41234, None, "x")] == ["0.123", "12,346", "41,234", "not measured", "x"]
