"""Lists of prompts: a text file with one on each line."""

from __future__ import annotations

from pathlib import Path

from lrdiff.errors import ConfigError


def read(path: Path, setting: str) -> list[str]:
    """Return the prompts of a file; empty lines are left out.

    Args:
        path: UTF-8 text.
        setting: Who asks, for messages.

    Raises:
        ConfigError: The file cannot be read as UTF-8, or holds none.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{setting}: {path} cannot be read as UTF-8 text ({error})") from error
    prompts = [" ".join(line.split()) for line in lines if line.strip()]
    if not prompts:
        raise ConfigError(f"{setting}: {path} holds no prompt; write one on each line")
    return prompts
