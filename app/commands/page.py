"""`lrdiff app`: the web page, and who may use it from elsewhere."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le

from app.accounts import add_user, open_accounts
from app.commands.console import logging_to_stderr, say
from app.commands.flags import Options, read_flags
from app.commands.settings import build
from app.text_auth import ADDED
from lrdiff.errors import ConfigError

PROG = "lrdiff app"
ABOUT = (
    "Open the web page: train on your images, watch, generate, verify. Ctrl-C closes it; runs under way go on. "
    "lrdiff app add-user NAME --users FILE adds somebody who may use it from another machine."
)


class PageOptions(Options):
    """Where the page listens, and who may come in."""

    host: str = "127.0.0.1"
    """Address to listen on. One that other machines reach, such as 0.0.0.0, needs --users or --token-file."""

    port: Annotated[int, Ge(0), Le(65535)] = 7860
    """Port to listen on; 0 takes a free one."""

    users: Path | None = None
    """File of users with hashed passwords; whoever opens the page then logs in. add-user makes it."""

    token_file: Path | None = None
    """File with one long random word, which programs send as `Authorization: Bearer WORD`; readable by you only."""

    devices: tuple[str, ...] = ()
    """Numbers of GPUs, or cpu: each carries out one run at a time. None: the machine does one thing at a time, training
    and generation included."""


class UserOptions(Options):
    """Where the user is added."""

    users: Path
    """File of users; it is made where there is none."""


def main(arguments: list[str]) -> int:
    """Run `lrdiff app` until it is interrupted, or `lrdiff app add-user`."""
    if arguments[:1] == ["add-user"]:
        return _add_user(arguments[1:])
    given = read_flags(arguments, [PageOptions], prog=PROG, about=ABOUT)
    if given.words:
        raise ConfigError(f"unexpected word {given.words[0]!r}; see {PROG} --help")
    options = build(PageOptions, given.values)
    accounts = open_accounts(options.users, options.token_file)
    from app.main import serve

    with logging_to_stderr():
        serve(options.host, options.port, accounts, options.devices)
    return 0


def _add_user(arguments: list[str]) -> int:
    """Ask for a password, which never stands on a command line, and write its hash."""
    about = "Add a user of the page, or give one a new password. The password is asked for, or read from a pipe."
    given = read_flags(arguments, [UserOptions], prog=f"{PROG} add-user NAME", about=about)
    if len(given.words) != 1:
        raise ConfigError(f"give one name: {PROG} add-user NAME --users FILE")
    options = build(UserOptions, given.values)
    is_typed = sys.stdin.isatty()
    password = getpass.getpass("Password: ") if is_typed else sys.stdin.readline().rstrip("\n")
    if is_typed and getpass.getpass("Again: ") != password:
        raise ConfigError("the two passwords differ")
    add_user(options.users.expanduser(), given.words[0], password)
    say(ADDED.format(name=given.words[0], path=options.users))
    return 0
