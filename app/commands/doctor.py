"""`lrdiff doctor`: print what `app.doctor` finds."""

from __future__ import annotations

import json

from app.commands.flags import Options, read_flags
from app.commands.settings import build
from lrdiff.errors import ConfigError

PROG = "lrdiff doctor"
ABOUT = """Say what this machine has, what it lacks, and what to install. Changes nothing.

  Exit code: 0 everything needed is in order, 2 something is not (it says what to do)."""


class DoctorOptions(Options):
    """How to print."""

    json_: bool = False
    """Print as JSON."""


def main(arguments: list[str]) -> int:
    """Run `lrdiff doctor`."""
    given = read_flags(arguments, [DoctorOptions], prog=PROG, about=ABOUT)
    if given.words:
        raise ConfigError(f"unexpected word {given.words[0]!r}; see {PROG} --help")
    options = build(DoctorOptions, given.values)
    from app.doctor import as_record, as_text, examine, is_healthy

    findings = examine()
    print(json.dumps(as_record(findings), indent=2) if options.json_ else as_text(findings))
    return 0 if is_healthy(findings) else 2
