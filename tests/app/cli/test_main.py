"""The console command itself: verbs, exit codes, interrupts, broken pipes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app import cli
from lrdiff import __version__
from lrdiff.errors import Cancelled
from tests.app.cli.conftest import Lrdiff


def run_verb(body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a verb whose main does what `body` says."""
    (tmp_path / "verb_for_test.py").write_text(f"def main(arguments):\n    {body}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "verb_for_test", raising=False)
    monkeypatch.setitem(cli.VERBS, "verb", cli.Verb("verb_for_test", "", ""))
    return cli.main(["verb"])


def test_version(lrdiff: Lrdiff) -> None:
    assert lrdiff("--version") == (0, f"lrdiff {__version__}\n", "")


def test_without_a_command_the_help_goes_to_stderr(lrdiff: Lrdiff) -> None:
    code, out, err = lrdiff()
    assert (code, out) == (2, "")
    assert err.startswith("usage: lrdiff COMMAND")


def test_unknown_commands(lrdiff: Lrdiff) -> None:
    assert lrdiff("trian") == (2, "", "unknown command 'trian'; did you mean train?\n")
    code, _, err = lrdiff("zzz")
    assert (code, err) == (2, f"unknown command 'zzz'; commands: {', '.join(cli.VERBS)}\n")


def test_an_interrupt_is_a_short_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_verb("raise KeyboardInterrupt", tmp_path, monkeypatch) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_cancelled_counts_as_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert issubclass(Cancelled, Exception)
    body = "from lrdiff.errors import Cancelled; raise Cancelled('ended early')"
    assert run_verb(body, tmp_path, monkeypatch) == 130
    assert capsys.readouterr().err == "ended early\n"


def test_a_fault_of_the_program_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        run_verb("1 / 0", tmp_path, monkeypatch)


def test_exit_codes_of_the_process(tmp_path: Path) -> None:
    """A user error is one line and 2; a fault keeps its traceback and is 1; a closed pipe is neither."""

    def run(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=tmp_path)

    program = f"{sys.executable} -m app"
    user = run(f"{program} train lora --optim.lr -1")
    assert (user.returncode, user.stdout) == (2, "")
    assert user.stderr.startswith("flags: optim.lr: ")
    (tmp_path / "verb_for_test.py").write_text("def main(arguments):\n    1 / 0\n")
    script = "import sys; from app import cli; cli.VERBS['v'] = cli.Verb('verb_for_test', '', ''); sys.exit(cli.main())"
    fault = run(f'{sys.executable} -c "{script}" v')
    assert fault.returncode == 1
    assert "Traceback" in fault.stderr
    assert "ZeroDivisionError" in fault.stderr
    pipe = run(f"set -o pipefail; {program} train --help | true; echo ${{PIPESTATUS[0]}}")
    assert pipe.stdout.strip() in ("0", "141")
    assert pipe.stderr == ""
