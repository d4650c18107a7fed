"""Lists of prompts: a text file with one on each line."""

from __future__ import annotations

from pathlib import Path

from lrdiff.errors import ConfigError


def read_prompts(path: Path, setting: str) -> list[str]:
    """Return the prompts of a file, white space tidied; empty lines are left out.

    Args:
        path: UTF-8 text.
        setting: Who asks, for messages.

    Raises:
        ConfigError: The file cannot be read as UTF-8, or holds none.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{setting}: {path} cannot be read as UTF-8 text ({error})") from error
    prompts = prompts_in(content)
    if not prompts:
        raise ConfigError(f"{setting}: {path} holds no prompt; write one on each line")
    return prompts


def prompts_in(content: str) -> list[str]:
    """Return the prompts of a text, as `read_prompts` does."""
    return [" ".join(line.split()) for line in content.splitlines() if line.strip()]
