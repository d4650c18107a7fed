"""`lrdiff sla map`: which blocks of a layer the router calls critical, marginal and negligible, as a picture."""

from __future__ import annotations

from pathlib import Path

from app.block_map_view import sentences
from app.block_maps import MapConfig, look
from app.commands.console import logging_to_stderr, say
from app.commands.flags import read_flags
from app.commands.settings import build
from app.commands.turns import TurnOptions, folder_here, turn
from lrdiff.errors import ConfigError, DataError

PROG = "lrdiff sla map"
ABOUT = """Draw a prompt up to a step with full attention, and show what the router would make of a layer there.

examples:
  lrdiff sla map --prompt "a photo of a red cube" --topk 0.25 --block-q 16 --block-k 16 --out map.png
  lrdiff sla map --model my-transformer --layer transformer_blocks.3.attn1 --at 0.2
"""


class SlaMapOptions(TurnOptions):
    """What is asked of the command and does not decide the map."""

    out: Path = Path("map.png")
    """New picture to write."""


def main(arguments: list[str]) -> int:
    """Run `lrdiff sla map`. The path of the picture goes to stdout, everything else to stderr."""
    given = read_flags(arguments, [SlaMapOptions, MapConfig], prog=PROG, about=ABOUT)
    if given.words:
        raise ConfigError(f"unexpected word {given.words[0]!r}; a prompt follows --prompt, see {PROG} --help")
    options = build(SlaMapOptions, {k: v for k, v in given.values.items() if k in SlaMapOptions.model_fields})
    config = build(MapConfig, {k: v for k, v in given.values.items() if k not in SlaMapOptions.model_fields})
    if options.out.suffix != ".png" or options.out.exists():
        raise ConfigError(f"--out {options.out}: give a new file that ends in .png")
    with logging_to_stderr(), turn(folder_here(), options.share):
        seen = look(config)
    from lrdiff import metadata
    from lrdiff.files import write_bytes
    from lrdiff.png import encode
    from lrdiff.sla.map_picture import map_picture

    record = {"kind": "block map", "config": config.model_dump(mode="json") | {"layer": seen.layer}}
    try:
        write_bytes(options.out, encode(map_picture(seen.found), {"lrdiff": metadata.to_json(record)}))
    except OSError as error:
        raise DataError(f"--out {options.out}: cannot be written ({error.strerror or error})") from error
    for line in sentences(seen):
        say(line)
    print(options.out)
    return 0
