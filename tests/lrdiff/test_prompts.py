"""Lists of prompts are read line by line, and those that ship are listed like every other asset."""

from __future__ import annotations

from pathlib import Path

import pytest

from lrdiff.errors import ConfigError
from lrdiff.prompts import read_prompts


def test_prompts_are_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffa red  cube \n\n  a blue ball\n", encoding="utf-8")
    assert read_prompts(path, "method.prompts") == ["a red cube", "a blue ball"]
    path.write_text("\n \n")
    with pytest.raises(ConfigError, match=r"method\.prompts: .* holds no prompt"):
        read_prompts(path, "method.prompts")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prompts(tmp_path / "absent.txt", "method.prompts")
