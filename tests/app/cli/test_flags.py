"""Flags: what they give, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge
from pydantic import PositiveFloat, PositiveInt

from app.commands.flags import Options, read_flags
from lrdiff.errors import ConfigError
from trainers.config import Settings


class Inner(Settings):
    """A group."""

    lr: PositiveFloat = 1e-3
    """A number."""

    folder: Path | None = None
    """A folder or none."""

    flip: bool = False
    """A switch."""


class Outer(Settings):
    """All kinds of fields."""

    steps: PositiveInt = 10
    """A whole number."""

    kind: Literal["plain", "broken-up"] = "plain"
    """A choice."""

    prompts: tuple[str, ...] = ()
    """Texts."""

    scales: tuple[Annotated[float, Ge(-2)], ...] = (1.0,)
    """Numbers."""

    inner: Inner = Inner()
    """The group."""


class Own(Options):
    """A command's own."""

    dry_run: bool = False
    """A switch without its opposite."""

    json_: bool = False
    """A name that pydantic has taken."""


def values(*words: str) -> dict[str, Any]:
    return read_flags(words, [Own, Outer], prog="lrdiff test", about="").values


def test_nothing_given_gives_nothing() -> None:
    assert values() == {}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--steps", "3"], {"steps": 3}),
        (["--steps=3"], {"steps": 3}),
        (["--inner.lr", "-1"], {"inner": {"lr": -1.0}}),
        (["--inner.lr", "2e-4", "--inner.flip"], {"inner": {"lr": 2e-4, "flip": True}}),
        (["--inner.no-flip"], {"inner": {"flip": False}}),
        (["--inner.folder", "a b/c"], {"inner": {"folder": "a b/c"}}),
        (["--inner.folder", "none"], {"inner": {"folder": None}}),
        (["--kind", "broken-up"], {"kind": "broken-up"}),
        (["--prompts", "a", "b", "--steps", "1"], {"prompts": ["a", "b"], "steps": 1}),
        (["--prompts", "a", "--prompts", "b", "c"], {"prompts": ["a", "b", "c"]}),
        (["--prompts=-50% off"], {"prompts": ["-50% off"]}),
        (["--prompts", "none"], {"prompts": ["none"]}),
        (["--scales", "-1", "0.5"], {"scales": [-1.0, 0.5]}),
        (["--dry-run", "--json"], {"dry_run": True, "json_": True}),
        (["--steps", "many"], {"steps": "many"}),
    ],
    ids=" ".join,
)
def test_only_what_was_given_comes_back(words: list[str], expected: dict[str, Any]) -> None:
    assert values(*words) == expected


def test_words_that_belong_to_no_flag_keep_their_order() -> None:
    given = read_flags(["one", "--steps", "3", "two"], [Outer], prog="lrdiff test", about="")
    assert (given.words, given.values) == (("one", "two"), {"steps": 3})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--step", "3"], "unknown flag --step; did you mean --steps?"),
        (["--lr", "3"], "unknown flag --lr; did you mean --inner.lr?"),
        (["--inner.learning-rate=3"], "unknown flag --inner.learning-rate; see lrdiff test --help"),
        (["--no-dry-run"], "unknown flag --no-dry-run; did you mean --dry-run?"),
        (["--steps"], "--steps: needs a value; if it begins with a dash, write --steps=VALUE"),
        (
            ["--inner.folder", "-x"],
            "--inner.folder: needs a value; if it begins with a dash, write --inner.folder=VALUE",
        ),
        (["--steps", "1", "--steps", "2"], "--steps: given 2 times, but it takes one value"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refused_in_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError) as error:
        values(*words)
    assert str(error.value) == message
    assert capsys.readouterr() == ("", "")


def test_every_unknown_flag_gets_its_line() -> None:
    with pytest.raises(ConfigError) as error:
        values("--step", "3", "--lr", "1", "--steps", "1", "--steps", "1")
    assert [line.split(";")[0] for line in str(error.value).splitlines()] == [
        "unknown flag --step",
        "unknown flag --lr",
        "--steps: given 2 times, but it takes one value",
    ]


def test_a_field_without_a_spelling_is_a_fault_of_the_program() -> None:
    class Odd(Settings):
        """A model with a type that has no flag."""

        table: dict[str, int]
        """No flag can hold this."""

    with pytest.raises(TypeError, match="no flag can be made"):
        read_flags([], [Odd], prog="lrdiff test", about="")
