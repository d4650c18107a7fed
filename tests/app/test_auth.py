"""The gate: nothing without logging in, few guesses, no requests from other sites, no secrets for others to read."""

from __future__ import annotations

import http.client
import io
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app import accounts, main
from app.accounts import Accounts, add_user, fits, hashed, open_accounts, read_users
from app.auth import FAILURES, FAILURES_IN_ALL, WINDOW_SECONDS, Attempts, Sessions
from app.cli import main as cli
from app.jobs import Queue
from app.site import Site
from lrdiff.errors import ConfigError

PASSWORD, TOKEN = "correct horse battery", "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("gated")
    site = Site(Queue(root / "runs"), root / "outputs")
    (root / "token").write_text(TOKEN)
    (root / "token").chmod(0o600)
    add_user(root / "users.json", "anna", PASSWORD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(root / "cache"))
        page = main.build(site=site)
        url = main.launch(page, site, "127.0.0.1", 0, open_accounts(root / "users.json", root / "token"))
        (site.outputs / "note.txt").write_text("open")
        yield url.rstrip("/")
        page.close(verbose=False)


@pytest.fixture
def visitor(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, trust_env=False) as client:
        yield client


ROUTES = [
    ("GET", "/config"),
    ("GET", "/gradio_api/info"),
    ("GET", "/gradio_api/openapi.json"),
    ("GET", "/gradio_api/file=outputs/note.txt"),
    ("GET", "/gradio_api/heartbeat/x"),
    ("GET", "/gradio_api/queue/data?session_hash=x"),
    ("GET", "/gradio_api/startup-events/"),
    ("POST", "/gradio_api/startup-events"),
    ("POST", "/gradio_api/queue/join"),
    ("POST", "/gradio_api/upload"),
    ("POST", "/gradio_api/call/runs"),
    ("POST", "/gradio_api/run/runs"),
    ("GET", "/theme.css"),
    ("GET", "/assets/index.js"),
    ("GET", "/report/any"),
    ("GET", "/login/../config"),
    ("GET", "/monitoring/summary"),
    ("PUT", "/"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_asks_who_is_there(visitor: httpx.Client, method: str, path: str) -> None:
    answer = visitor.request(method, path)
    assert answer.status_code == 401, path
    assert "Log in first" in answer.text


def test_a_visitor_logs_in_and_out(visitor: httpx.Client) -> None:
    assert visitor.get("/").headers["location"] == "/login"
    assert "autocomplete=current-password" in visitor.get("/login").text
    wrong = visitor.post("/login", data={"name": "anna", "password": "wrong"})
    assert (wrong.status_code, "do not fit" in wrong.text, visitor.cookies) == (401, True, httpx.Cookies())
    right = visitor.post("/login", data={"name": "anna", "password": PASSWORD})
    assert right.status_code == 303
    assert {"HttpOnly", "SameSite=strict"} <= set(right.headers["set-cookie"].split("; "))
    assert [visitor.get(path).status_code for path in ("/config", "/", "/")] == [200] * 3
    kept = dict(visitor.cookies)
    assert visitor.post("/logout").headers["location"] == "/login"
    assert visitor.get("/").headers["location"] == "/login", "what is kept of the page is for those who are logged in"
    assert visitor.get("/config", cookies=kept).status_code == 401


def test_a_program_sends_the_token(visitor: httpx.Client) -> None:
    assert visitor.get("/gradio_api/info", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert visitor.get("/gradio_api/info", headers={"Authorization": f"Bearer {TOKEN}x"}).status_code == 401
    assert visitor.get("/gradio_api/info", headers={"Authorization": f"Basic {TOKEN}"}).status_code == 401


def test_guessing_is_slowed_down_for_everything(url: str) -> None:
    """Last of this module's server: the address is then shut out."""
    with httpx.Client(base_url=url, trust_env=False) as guesser:
        codes = [guesser.post("/login", data={"name": "anna", "password": str(n)}).status_code for n in range(8)]
        assert codes[-3:] == [429] * 3
        right = guesser.post("/login", data={"name": "anna", "password": PASSWORD})
        assert (right.status_code, int(right.headers["retry-after"]) > 60) == (429, True)
        assert guesser.get("/config", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 429


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_requests_of_other_sites_are_refused(visitor: httpx.Client, headers: dict[str, str], status: int) -> None:
    assert visitor.post("/gradio_api/queue/join", headers=headers).status_code == status


def test_what_is_too_large_is_refused_before_it_is_sent(url: str) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.putrequest("POST", "/gradio_api/upload")
    connection.putheader("Content-Length", "999999999999")
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_a_request_without_a_length_is_refused(visitor: httpx.Client) -> None:
    assert visitor.post("/gradio_api/upload", content=iter([b"x"])).status_code == 411


def test_answers_carry_the_headers_that_keep_a_browser_careful(visitor: httpx.Client) -> None:
    headers = visitor.get("/login").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'self'" in headers["content-security-policy"]


def test_the_window_of_wrong_attempts_slides() -> None:
    time = [0.0]
    attempts = Attempts(lambda: time[0])
    for _ in range(FAILURES):
        assert attempts.wait("a") == 0
        attempts.failed("a")
    assert attempts.wait("a") == WINDOW_SECONDS
    assert attempts.wait("b") == 0
    time[0] = WINDOW_SECONDS + 1
    assert attempts.wait("a") == 0
    for number in range(FAILURES_IN_ALL):
        attempts.failed(str(number))
    assert attempts.wait("new") > 0


def test_a_session_ends() -> None:
    time = [0.0]
    sessions = Sessions(lambda: time[0])
    value = sessions.open()
    assert sessions.has(value)
    assert not sessions.has(value + "x")
    time[0] = 13 * 3600
    assert not sessions.has(value)


def test_passwords_are_salted_and_hashed() -> None:
    first, second = hashed(PASSWORD), hashed(PASSWORD)
    assert first != second
    assert PASSWORD not in first
    assert fits(PASSWORD, first)
    assert not fits(PASSWORD + " ", first)
    nobody = Accounts({"anna": first})
    assert not nobody.knows("bert", PASSWORD)
    assert not nobody.knows("", PASSWORD)
    assert PASSWORD not in repr(nobody)


def test_users_are_added_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "users.json"
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{PASSWORD}\n"))
    assert cli(["app", "add-user", "anna", "--users", str(path)]) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert PASSWORD not in path.read_text() + "".join(capsys.readouterr())
    assert fits(PASSWORD, read_users(path)["anna"])
    monkeypatch.setattr("sys.stdin", io.StringIO("short\n"))
    assert cli(["app", "add-user", "anna", "--users", str(path)]) == 2
    assert "too short" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"users": {}}', "holds no users"),
        ("[]", "is no file of users"),
        ('{"users": {"anna": "plain"}}', "is no file of users"),
        ('{"users": {"an na": "scrypt$2$2$2$00$00"}}', "is no file of users"),
    ],
)
def test_a_bad_file_of_users_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "users.json"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=message):
        open_accounts(path, None)


def test_secrets_that_others_can_read_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        open_accounts(None, path)
    path.chmod(0o600)
    path.write_text("short")
    with pytest.raises(ConfigError, match=f"at least {accounts.MINIMUM_TOKEN}"):
        open_accounts(None, path)
    assert open_accounts(None, None) is None
