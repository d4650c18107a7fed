"""`lrdiff generate`: base model + adapters + prompts -> images."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.commands.console import logging_to_stderr, say
from app.commands.flags import read_flags
from app.commands.settings import build, read_file
from app.commands.turns import TurnOptions, folder_here, turn
from lrdiff.errors import ConfigError
from lrdiff.generate_config import GenerateConfig, plan

if TYPE_CHECKING:
    from lrdiff.generate import Progress

PROG = "lrdiff generate"
ABOUT = """Draw images. One is made for every scale, prompt and seed; each carries its parameters inside.

examples (a flag that takes several values may also be given several times):
  lrdiff generate --adapter runs/mug:0.8 --prompt "a photo of sks mug" "a photo of sks mug in snow" --count 4
  lrdiff generate --adapter runs/mug:0.8 runs/plain:1@0.5-1    the second acts in the last half of the steps only
  lrdiff generate --config images/0001-seed0.png --seed 7      the same image with another seed
"""


class GenerateOptions(TurnOptions):
    """What is asked of the command and does not belong to the generation's configuration."""

    config: Path | None = None
    """Settings from a TOML or JSON file, or out of a PNG that lrdiff made. Flags go over them."""


def main(arguments: list[str]) -> int:
    """Run `lrdiff generate`. The paths of the images go to stdout, everything else to stderr."""
    given = read_flags(arguments, [GenerateOptions, GenerateConfig], prog=PROG, about=ABOUT)
    if given.words:
        raise ConfigError(f"unexpected word {given.words[0]!r}; a prompt follows --prompt, see {PROG} --help")
    options = build(GenerateOptions, {k: v for k, v in given.values.items() if k in GenerateOptions.model_fields})
    flags = {k: v for k, v in given.values.items() if k not in GenerateOptions.model_fields}
    config = build(GenerateConfig, flags, _from_file(options.config) if options.config else None, options.config)
    from lrdiff.generate import generate

    began = time.monotonic()
    count = len(plan(config))
    with logging_to_stderr(), turn(folder_here(), options.share):
        paths = generate(config, _show if sys.stderr.isatty() else None)
    for path in paths:
        print(path)
    seconds = time.monotonic() - began
    say(f"{count} image{'s' if count > 1 else ''} in {seconds:.1f} s, loading included: {config.out}")
    return 0


def _from_file(path: Path) -> dict[str, Any]:
    if path.suffix.lower() != ".png":
        return read_file(path)
    from lrdiff.metadata import read_parameters

    record = read_parameters(path.expanduser())
    if "config" not in record:
        raise ConfigError(f"--config: {path} was not made by lrdiff, so its settings are not complete")
    return record["config"]


def _show(progress: Progress) -> None:
    """Draw one line that is written over again and again."""
    done = len(progress.saved)
    end = "\n" if done >= progress.images else ""
    text = f"\rimages {done}/{progress.images}  step {progress.step}/{progress.steps} of this batch  "
    sys.stderr.write(text + end)
    sys.stderr.flush()
