"""Two hundred malformed uploads and requests: each refused in words, none answered with a fault or traceback."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from app import main, pictures
from app.jobs import Queue
from app.site import Site

REQUESTS, UPLOADS = 120, 80


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("malformed")
    site = Site(Queue(root / "runs"), root / "outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(root / "cache"))
        page = main.build(site=site)
        yield main.launch(page, site, "127.0.0.1", 0).rstrip("/")
        page.close(verbose=False)


VALUES: list[Any] = [
    None, True, -1, 1e308, "", "x" * 5000, "\0", "../../etc/passwd", "<script>", [], [[]], {"unknown": 1},
    {"path": "/etc/passwd"},
    {"path": None}, {"path": "\0"}, {"path": ["a"]}, {"meta": {"_type": "gradio.FileData"}, "path": "/etc/passwd"},
    {"url": "http://127.0.0.1:1/x"}, {"steps": -1}, {"adapter": ["/etc/passwd:1"]}, {"decoder": "/etc"},
    {"optim": 3}, {"data": "x"}, {"data": {"images": "/etc"}}, {"width": 10**9}, {"prompt": []}, {"count": 10**9},
    {"model": "/etc"}, {"model": "../.."}, {"model": "a/b"},
]  # fmt: skip
NAMES = ["runs", "run", "train", "stop", "resume", "repeat", "delete", "compare", "adapters", "generate", "verify"]
PATHS = [
    "/gradio_api/file=/etc/passwd", "/gradio_api/file=../../../etc/passwd", "/gradio_api/file=%2e%2e%2fetc%2fpasswd",
    "/gradio_api/file=C:/Windows/win.ini", "/gradio_api/file=http://127.0.0.1:1/", "/gradio_api/file=%00",
    "/report/..%2f..%2fetc%2fpasswd", "/report/../../etc/passwd", "/report/%00", "/report/.trash", "/report/a/b/c",
    "/gradio_api/stream/x/y/z", "/gradio_api/call/none/none", "/static/..%2f",
    "/assets/..%2f..%2fetc%2fpasswd", "/proxy=http://127.0.0.1:1/",
    "/gradio_api/custom_component/x/y/z/../../..", "/%ff", "/file/../etc",
]  # fmt: skip


def requests() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (method, path, what httpx takes): broken JSON, wrong shapes, paths that lead out, one after the other."""
    rng = np.random.default_rng(0)
    for path in PATHS:
        yield "GET", path, {}
    for body in (b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"data": 3}', b'{"data": {}}', b"[" * 2000, b'{"data"'):
        for path in ("/gradio_api/queue/join", "/gradio_api/call/run", "/gradio_api/run/predict", "/gradio_api/upload"):
            yield "POST", path, {"content": body, "headers": {"Content-Type": "application/json"}}
    while True:
        name = NAMES[int(rng.integers(len(NAMES)))]
        data = [VALUES[int(i)] for i in rng.integers(len(VALUES), size=int(rng.integers(0, 5)))]
        yield "POST", f"/gradio_api/call/{name}", {"content": json.dumps({"data": data})}


def test_malformed_requests_are_refused_in_words(url: str, caplog: pytest.LogCaptureFixture) -> None:
    sent = 0
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client, caplog.at_level(logging.ERROR):
        for method, path, rest in requests():
            headers = {"Content-Type": "application/json"} | rest.pop("headers", {})
            answer = client.request(method, path, headers=headers, **rest)
            told = answer.text
            if "/call/" in path and method == "POST" and answer.status_code == 200:
                name = path.rpartition("/")[2]
                told += client.get(f"/gradio_api/call/{name}/{answer.json()['event_id']}").text
            assert answer.status_code < 500, (path, rest, answer.status_code)
            assert "Traceback" not in told and "root:" not in told and 'File "' not in told, (path, rest, told)  # noqa: PT018
            sent += 1
            if sent == REQUESTS:
                break
    # What a function of the page did not foresee would be logged by `told`.
    assert [record.getMessage() for record in caplog.records if record.name == "app.told"] == []


def test_malformed_uploads_are_named_with_their_reason(url: str, photos: list[Path], tmp_path: Path) -> None:
    """Truncated, flipped, renamed, empty and oversized files; what Pillow can still read may stay."""
    rng = np.random.default_rng(1)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "whole.webp")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "whole.gif")
    sources = [path.read_bytes() for path in (*photos, tmp_path / "whole.webp", tmp_path / "whole.gif")]
    suffixes = [".png", ".jpg", ".webp", ".gif", ".tiff", ".bmp", ".heic", ".txt", ".avif", ""]
    files: list[Path] = []
    for number in range(UPLOADS):
        content = bytearray(sources[number % len(sources)])
        match number % 4:
            case 0:
                content = content[: int(rng.integers(0, len(content)))]
            case 1:
                for place in rng.integers(0, len(content), size=20):
                    content[int(place)] = int(rng.integers(256))
            case 2:
                content = bytearray(rng.bytes(int(rng.integers(0, 3000))))
            case _:
                content = content[8:] + content[:8]
        file = tmp_path / f"{number:03d}{suffixes[int(rng.integers(len(suffixes)))]}"
        file.write_bytes(bytes(content))
        files.append(file)
    found = pictures.check(files)
    refused = [picture for picture in found if picture.problem]
    assert len(refused) >= UPLOADS // 2
    assert all(picture.size[0] > 0 for picture in found if not picture.problem)
    said = " ".join(picture.problem for picture in refused)
    assert str(tmp_path) not in said
    assert "Traceback" not in said
    assert pictures.sheet(found)
    # The same files through the server, ten at a time: none is a fault, and none of its folders is told.
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        for start in range(0, UPLOADS, 10):
            batch = files[start : start + 10]
            sent = client.post("/gradio_api/upload", files=[("files", (f.name, f.read_bytes())) for f in batch])
            assert sent.status_code == 200, sent.text
            data = [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in sent.json()]
            for name, words in (("train", [data, {}, ""]), ("verify", [data[0], "", 1e-6, False])):
                event = client.post(f"/gradio_api/call/{name}", json={"data": words})
                assert event.status_code == 200, event.text
                told = client.get(f"/gradio_api/call/{name}/{event.json()['event_id']}").text
                assert "event: error" in told, told
                assert "should not have happened" not in told, told
                assert "Traceback" not in told and str(tmp_path) not in told, told  # noqa: PT018
