"""The page as a server: what programs may call, what stays private, which files and addresses it answers for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from app import main
from app.jobs import Queue
from app.site import Site
from lrdiff.errors import ConfigError, DataError
from lrdiff.metadata import read_parameters
from tests.app.conftest import wait_for

NAMES = ["runs", "run", "train", "stop", "resume", "repeat", "delete", "compare", "adapters", "generate", "verify"]


@dataclass(frozen=True)
class Server:
    site: Site
    url: str
    client: Client


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Return a served page with a program connected to it, and the real trainer behind it."""
    root = tmp_path_factory.mktemp("site")
    site = Site(Queue(root / "runs", interval=0.1), root / "outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("GRADIO_TEMP_DIR", str(root / "cache"))
        page = main.build(site=site)
        url = main.launch(page, site, "127.0.0.1", 0)
        site.queue.start()
        yield Server(site, url, Client(url, verbose=False, download_files=root / "downloads"))
        site.queue.close()
        page.close(verbose=False)


def test_only_the_named_operations_are_public(server: Server) -> None:
    listed: Any = server.client.view_api(return_format="dict", print_info=False)
    assert set(listed["named_endpoints"]) == {f"/{name}" for name in NAMES}
    assert listed["unnamed_endpoints"] == {}


def test_a_program_trains_watches_and_generates(
    server: Server, photos: list[Path], settings: Callable[..., dict[str, Any]]
) -> None:
    client, site = server.client, server.site
    config = settings(steps=3)
    name = client.predict([handle_file(str(path)) for path in photos], config, "mug", api_name="/train")
    assert name == "tensor-lora-mug-001"
    wait_for(lambda: client.predict(name, api_name="/run")["state"] not in ("queued", "running"))
    status = client.predict(name, api_name="/run")
    assert (status["state"], status["step"], status["total"]) == ("finished", 3, 3)
    assert [line["name"] for line in client.predict(api_name="/runs")] == [name]
    copies = {path.name: path.read_bytes() for path in (site.queue.root / name / "images").iterdir()}
    assert copies == {path.name: path.read_bytes() for path in photos}

    wish = {"model": config["model"], "adapter": [f"{status['adapter']}:1"], "prompt": ["a photo of sks cube"]}
    files = client.predict(wish | {"steps": 2, "seed": 5, "count": 2, "device": "cpu"}, api_name="/generate")
    downloaded = [Path(file["path"] if isinstance(file, dict) else file).read_bytes() for file in files]
    assert sorted(downloaded) == sorted(path.read_bytes() for path in site.outputs.glob("*.png"))
    assert {read_parameters(content)["seed"] for content in downloaded} == {5, 6}


@pytest.mark.parametrize(
    ("operation", "arguments", "message"),
    [
        ("/run", ["../outside"], "there is no run"),
        ("/stop", ["absent"], "there is no run"),
        ("/train", [[], {}, ""], "Add pictures first"),
        ("/generate", [{"steps": 0}], "steps: Must be greater than 0"),
        ("/generate", [{"unknown": 1}], "unknown: There is no such setting"),
        ("/generate", [{"model": "absent-model"}], "no such folder and no such shipped model"),
    ],
)
def test_a_wrong_request_is_answered_in_words(
    server: Server, operation: str, arguments: list[Any], message: str
) -> None:
    with pytest.raises(AppError, match=message):
        server.client.predict(*arguments, api_name=operation)


def test_a_bad_setting_of_a_run_is_named(server: Server, photos: list[Path]) -> None:
    with pytest.raises(AppError, match=r"optim\.lr: Must be greater than 0"):
        server.client.predict([handle_file(str(photos[0]))], {"optim": {"lr": -1}}, "", api_name="/train")


def test_a_file_of_the_server_is_not_taken_for_an_upload(server: Server, photos: list[Path]) -> None:
    with pytest.raises(AppError, match="was not uploaded"):
        server.client.predict([{"path": str(photos[0])}], {}, "", api_name="/train")
    assert not any("photo-of-sks" in run.path.name for run, _ in server.site.queue.runs())


def test_only_runs_and_outputs_are_served(server: Server, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    inside = server.site.outputs / "note.txt"
    inside.write_text("open")
    link = server.site.outputs / "link.txt"
    link.symlink_to(secret)

    def get(path: object) -> httpx.Response:
        return httpx.get(f"{server.url}gradio_api/file={path}", trust_env=False)

    assert (get(inside).status_code, get(inside).text) == (200, "open")
    for path in (secret, link, f"{server.site.outputs}/../secret.txt", "/etc/passwd", "pyproject.toml"):
        assert get(path).status_code == 403, path


@pytest.mark.parametrize("name", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example"])
def test_a_foreign_name_for_this_machine_is_refused(server: Server, name: str) -> None:
    """Else a page of another site, whose name points here, could read runs and start them."""
    for path in ("", "gradio_api/info", "config"):
        answer = httpx.get(f"{server.url}{path}", headers={"Host": name}, trust_env=False)
        assert answer.status_code == 400, path
    port = server.url.rstrip("/").rpartition(":")[2]
    assert httpx.get(server.url, headers={"Host": f"localhost:{port}"}, trust_env=False).status_code == 200


def test_the_page_is_kept_for_every_name_it_is_called_by(server: Server) -> None:
    def get(**headers: str) -> httpx.Response:
        return httpx.get(server.url, headers=headers, trust_env=False)

    port = server.url.rstrip("/").rpartition(":")[2]
    first, again = get(**{"Accept-Encoding": "identity"}), get(**{"Accept-Encoding": "identity"})
    assert first.content == again.content
    assert "Accept-Encoding" in again.headers["vary"], "the second answer is the kept one"
    packed = get(**{"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.content == first.content
    assert int(packed.headers["content-length"]) < len(first.content) / 4
    named = get(Host=f"localhost:{port}")
    assert f"http://localhost:{port}" in named.text
    assert f"http://localhost:{port}" not in first.text
    assert "https://127.0.0.1" in get(**{"X-Forwarded-Proto": "https"}).text
    assert "https://127.0.0.1" not in get().text


def test_folders_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    site = Site(Queue(tmp_path / "runs"), tmp_path / "file" / "outputs")
    with pytest.raises(DataError, match="cannot write there"):
        main.launch(main.build(site=site), site, "127.0.0.1", 0)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org"])
def test_other_addresses_than_this_machine_are_refused(host: str) -> None:
    with pytest.raises(ConfigError, match=f"--host {host}: others can reach this address"):
        main.serve(host, 0)


def test_a_taken_port_is_named(server: Server, tmp_path: Path) -> None:
    site = Site(Queue(tmp_path / "runs"), tmp_path / "outputs")
    port = int(server.url.rstrip("/").rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"--port {port}: in use"):
        main.launch(main.build(site=site), site, "127.0.0.1", port)


def test_a_proxy_for_other_addresses_is_not_asked_for_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "intranet")
    monkeypatch.delenv("no_proxy", raising=False)
    site = Site(Queue(tmp_path / "runs"), tmp_path / "outputs")
    page = main.build(site=site)
    url = main.launch(page, site, "127.0.0.1", 0)
    with httpx.Client(trust_env=False) as visitor:
        assert visitor.get(url).status_code == 200
    page.close(verbose=False)
    assert os.environ["NO_PROXY"] == "intranet"
    assert "no_proxy" not in os.environ


def test_a_page_that_cannot_be_reached_says_what_stood_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise httpx.ConnectError("Connection refused")

    monkeypatch.setattr("gradio.blocks.httpx.get", refuse)
    site = Site(Queue(tmp_path / "runs"), tmp_path / "outputs")
    with pytest.raises(ConfigError, match=r"--host 127.0.0.1: .* cannot reach it \(Connection refused\)"):
        main.launch(main.build(site=site), site, "127.0.0.1", 0)


def test_making_the_page_writes_and_starts_nothing(tmp_path: Path) -> None:
    page = main.build(tmp_path / "runs", tmp_path / "outputs")
    assert list(tmp_path.iterdir()) == []
    assert page.analytics_enabled is False
