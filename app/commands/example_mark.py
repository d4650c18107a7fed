"""`lrdiff watermark example`: see how marking and verifying work, with a key that everybody knows."""

from __future__ import annotations

from pathlib import Path

from app.commands.console import command, logging_to_stderr, say
from app.commands.flags import Options, read_flags
from app.commands.settings import build
from lrdiff.errors import ConfigError

PROG = "lrdiff watermark example"
ABOUT = """Write a decoder of toys that carries the example mark, and register its key, to see how marks work.

The key comes with lrdiff and everybody knows it, so it proves nothing about any picture. For a mark of your own:
lrdiff train watermark.

example:
  lrdiff watermark example
"""


class ExampleOptions(Options):
    """Where the decoder and its key go."""

    out: Path = Path("decoders")
    """Folder of marked decoders; this one gets a folder of its own in it, named by the key's id."""

    registry: str = ""
    """Registry of keys: an SQLite file or a PostgreSQL URL. Empty takes yours."""

    key_file: Path | None = None
    """Secret that opens the registry's bits. None takes yours."""


def main(arguments: list[str]) -> int:
    """Run `lrdiff watermark example`. The decoder's folder goes to stdout, everything else to stderr."""
    given = read_flags(arguments, [ExampleOptions], prog=PROG, about=ABOUT)
    options = build(ExampleOptions, given.values)
    if given.words:
        raise ConfigError(f"unexpected word {given.words[0]!r}; see {PROG} --help")
    from lrdiff.watermark.example import install
    from lrdiff.watermark.keys import open_registry
    from lrdiff.watermark.verifier import DEFAULT, open_extractor

    registry = open_registry(options.registry or None, options.key_file)
    with logging_to_stderr():
        made = install(registry, open_extractor(DEFAULT).sha256(), options.out.expanduser())
    print(made.decoder)
    say(f"key {made.key.id} ({made.key.owner}) is in {registry.name}")
    draw = ("--model", "toys", "--decoder", made.decoder, "--prompt", "a red ball on grass", "--out", "marked")
    say(f"to draw with it:  {command('lrdiff', 'generate', *draw)}")
    say(f"to look for it:   {command('lrdiff', 'verify')} marked/*.png")
    return 0
