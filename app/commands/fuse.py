"""`lrdiff watermark fuse`: a trained mark, merged into a decoder that may be given away."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from app.commands.console import command, logging_to_stderr, say
from app.commands.flags import Options, read_flags
from app.commands.settings import build
from lrdiff.errors import ConfigError
from lrdiff.generate_config import AdapterSpec

if TYPE_CHECKING:
    from lrdiff.adapters import Adapter
    from lrdiff.watermark.keys import Registry

PROG = "lrdiff watermark fuse"
ABOUT = """Merge a trained mark into the decoder of its base model and write a whole autoencoder in diffusers' layout.

Publish this folder and nothing else of the run: an adapter on its own is a switch that turns the mark off. The bits of
the key are in none of the files; lrdiff.json names the key by its id.

example:
  lrdiff watermark fuse runs/watermark-toys-001 --out marked-decoder
"""
LIMITS = """\
What no mark in a decoder can withstand, so do not promise it:
- Whoever has the model's files can put the base model's public decoder in place of this one. The mark is then gone.
- A hundred steps of training of the decoder destroy it, and ten make half of its pictures undetected.
It shows where pictures come from that others made with what you gave them; who wants it gone can remove it."""


class FuseOptions(Options):
    """What to merge into what."""

    out: Path = Path("marked-decoder")
    """New folder for the decoder."""

    model: str = ""
    """Base model, where it is no longer where it was when the mark was trained."""

    registry: str = ""
    """Registry of keys: an SQLite file or a PostgreSQL URL. Empty takes yours."""

    key_file: Path | None = None
    """Secret that opens the registry's bits. None takes yours."""

    no_registry: bool = False
    """Do not note in the registry which decoder the key was put into."""


def main(arguments: list[str]) -> int:
    """Run `lrdiff watermark fuse`. The folder goes to stdout, everything else to stderr."""
    given = read_flags(arguments, [FuseOptions], prog=PROG, about=ABOUT)
    options = build(FuseOptions, given.values)
    if len(given.words) != 1:
        raise ConfigError(f"{PROG} takes one run or adapter file, not {len(given.words)}; see {PROG} --help")
    from lrdiff.adapters import read_adapter
    from lrdiff.watermark.publish import check_mark, publish

    adapter = read_adapter(AdapterSpec(path=Path(given.words[0]).expanduser(), weight=1.0))
    check_mark(adapter)
    registry = _registry(adapter, options)
    with logging_to_stderr():
        made = publish(adapter, options.out.expanduser(), options.model or None)
    if registry is not None:
        base, file = made.header.base_fingerprint, made.header.adapter
        registry.attach(made.header.key, decoder_sha256=base, adapter_sha256=file)
        say(f"key {made.header.key}: noted in {registry.name}")
    print(made.path)
    say(f"merged into {len(made.layers)} layers; read back from disk it decodes as base and adapter do")
    say(f"(largest difference {made.rounding:.0e}, of the mark itself {made.change:.2f}, with pixels in -1 to 1)")
    for goal in adapter.artifact.header.extra.get("missed", ()):
        say(f"warning: the mark missed a goal of its training, {goal}; pictures may not be detected")
    say(f"to use it:  {command('lrdiff', 'generate', '--decoder', made.path, '--prompt', 'a photo of a red cube')}")
    say()
    say(LIMITS)
    return 0


def _registry(adapter: Adapter, options: FuseOptions) -> Registry | None:
    """Open the registry that holds the key, before anything is written; None where the key is in none."""
    extra = adapter.artifact.header.extra
    if options.no_registry or not extra.get("registered"):
        return None
    from lrdiff.watermark.keys import open_registry

    registry = open_registry(options.registry or None, options.key_file, create=False)
    registry.get(extra["key"])
    return registry
