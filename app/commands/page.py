"""`lrdiff app`: the web page."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le

from app.commands.console import logging_to_stderr
from app.commands.flags import Options, read_flags
from app.commands.settings import build
from lrdiff.errors import ConfigError

PROG = "lrdiff app"
ABOUT = "Open the web page: train on your images, watch, generate. Ctrl-C closes it; runs that are under way go on."


class PageOptions(Options):
    """Where the page listens."""

    host: str = "127.0.0.1"
    """Address to listen on, one of this machine alone: others are refused until the page has a log-in."""

    port: Annotated[int, Ge(0), Le(65535)] = 7860
    """Port to listen on; 0 takes a free one."""


def main(arguments: list[str]) -> int:
    """Run `lrdiff app` until it is interrupted."""
    given = read_flags(arguments, [PageOptions], prog=PROG, about=ABOUT)
    if given.words:
        raise ConfigError(f"unexpected word {given.words[0]!r}; see {PROG} --help")
    options = build(PageOptions, given.values)
    from app.main import serve

    with logging_to_stderr():
        serve(options.host, options.port)
    return 0
