"""The tables of the README files are those of the result files, and their pictures exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.bench.readme import BLOCK, PAGES, cell, render
from tests.bench.result import RESULTS, command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_tables_are_made_from_the_result_files(page: Path) -> None:
    text = page.read_text()
    assert render(text) == text


def test_every_result_file_is_shown_once() -> None:
    shown = [match["name"] for page in PAGES for match in BLOCK.finditer(page.read_text())]
    assert sorted(shown) == sorted(path.stem for path in RESULTS.glob("*.json"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_every_link_into_the_repository_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert missing == []


def test_numbers_are_shown_with_three_digits() -> None:
    assert [cell(v) for v in (0.12345, 12345.6, 41234, None, "x")] == ["0.123", "12,346", "41,234", "not measured", "x"]


def test_the_command_of_a_result_leaves_out_what_says_nothing() -> None:
    words = ["--kinds", "sparse only", "--out", "/somewhere", "--steps", "2"]
    assert command("step", words) == "python -m tests.bench.step --kinds 'sparse only' --out /somewhere --steps 2"
    assert command("step", words, without="--out") == "python -m tests.bench.step --kinds 'sparse only' --steps 2"
    assert command("step", ["--steps", "2"], without="--out") == "python -m tests.bench.step --steps 2"
