"""Files that are complete or absent."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lrdiff.files import replacing, write_bytes, write_json
from tests.disk import full_disk


def test_success_replaces_in_one_step_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("umask", "rights"), [(0o022, 0o644), (0o077, 0o600)])
def test_files_have_the_rights_that_the_umask_leaves(tmp_path: Path, umask: int, rights: int) -> None:
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "a.bin", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == rights


@pytest.mark.parametrize("before", [None, b"old"])
def test_failure_leaves_the_old_file_and_no_rubbish(tmp_path: Path, before: bytes | None) -> None:
    path = tmp_path / "a.bin"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(UnicodeEncodeError), replacing(path) as temporary, temporary.open("w", encoding="ascii") as file:
        file.write("half ü")
    assert (path.read_bytes() if path.exists() else None) == before
    assert [entry.name for entry in tmp_path.iterdir()] == (["a.bin"] if before else [])


def test_a_folder_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for folder in (tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(OSError, match=r"."):
            write_bytes(folder / "a.bin", b"x")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    # A limit on the file size fails in the middle of a write, as a full disk does.
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with full_disk(10_000), pytest.raises(OSError, match=r"."):
        write_bytes(path, bytes(1_000_000))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_readable_utf8_and_refuses_nan(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"name": "Größe", "path": Path("x/y"), "n": [1, 2.5, None]})
    assert "Größe" in path.read_text(encoding="utf-8")
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "Größe", "path": "x/y", "n": [1, 2.5, None]}
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            write_json(path, {"n": bad})
    assert json.loads(path.read_text(encoding="utf-8"))["n"] == [1, 2.5, None]


def test_a_reader_in_a_tight_loop_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"n": 0, "filler": "x" * 50_000})
    done = threading.Event()

    def write() -> None:
        number = 0
        while not done.is_set():
            number += 1
            write_json(path, {"n": number, "filler": "x" * 50_000})

    writer = threading.Thread(target=write)
    writer.start()
    seen: set[int] = set()
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        record = json.loads(path.read_bytes())
        assert len(record["filler"]) == 50_000
        seen.add(record["n"])
    done.set()
    writer.join()
    assert len(seen) > 5


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"n": 1})
    code = (
        "import os, signal, sys; from pathlib import Path; from lrdiff.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('{\"n\": ')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert result.returncode == -signal.SIGKILL
    assert json.loads(path.read_text()) == {"n": 1}
