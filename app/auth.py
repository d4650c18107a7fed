"""The gate in front of everything the page serves: pages, files and API alike.

Without accounts it refuses what other sites send here (CSRF) and what is too large. With accounts it also asks every
request for a session cookie or a token: there is no list of open routes but the log-in itself.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import text_auth as text
from app.accounts import Accounts
from app.login import login_page

log = logging.getLogger(__name__)

COOKIE = "lrdiff_session"
SESSION_SECONDS = 12 * 3600
FAILURES, FAILURES_IN_ALL, WINDOW_SECONDS = 5, 50, 15 * 60
"""Wrong log-ins that one address, and all together, may make within the window."""
MAX_FORM = 4096
READING = frozenset({"GET", "HEAD", "OPTIONS"})
STARTING = ("GET", "/gradio_api/startup-events")
"""What the server asks itself when it starts; it answers True and nothing else."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "same-origin",
    # gradio's own scripts need inline code; nothing at all is fetched from, or sent to, another host.
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; form-action 'self'; "
    "frame-ancestors 'self'; base-uri 'self'; object-src 'none'",
}


class Attempts:
    """Counts wrong log-ins per address and in all, and says how long to wait."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: deque[tuple[float, str]] = deque(maxlen=FAILURES_IN_ALL)

    def wait(self, address: str) -> float:
        """Return the seconds until an address may try again; 0 when it may now."""
        now = self._clock()
        while self._failures and now - self._failures[0][0] > WINDOW_SECONDS:
            self._failures.popleft()
        own = [moment for moment, who in self._failures if who == address]
        moments = [own[-FAILURES]] if len(own) >= FAILURES else []
        moments += [self._failures[0][0]] if len(self._failures) >= FAILURES_IN_ALL else []
        return max((moment + WINDOW_SECONDS - now for moment in moments), default=0.0)

    def failed(self, address: str) -> None:
        """Remember a wrong log-in."""
        self._failures.append((self._clock(), address))

    def succeeded(self, address: str) -> None:
        """Forget the newest attempt of an address: it was counted before it was known to be right."""
        for index in reversed(range(len(self._failures))):
            if self._failures[index][1] == address:
                del self._failures[index]
                return


class Sessions:
    """Who is logged in, in memory: a server that starts again asks again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends: dict[bytes, float] = {}

    def open(self) -> str:
        """Return the cookie's value of a new session."""
        now = self._clock()
        self._ends = {key: end for key, end in self._ends.items() if end > now}
        value = secrets.token_urlsafe(32)
        self._ends[_key(value)] = now + SESSION_SECONDS
        return value

    def has(self, value: str) -> bool:
        """Tell whether a cookie's value names a session that has not ended."""
        return self._ends.get(_key(value), 0.0) > self._clock()

    def close(self, value: str) -> None:
        """End a session."""
        self._ends.pop(_key(value), None)


def _key(value: str) -> bytes:
    return hashlib.sha256(value.encode("utf-8", "surrogatepass")).digest()


class Gate:
    """ASGI middleware; see the module."""

    def __init__(self, app: ASGIApp, accounts: Accounts | None, max_body: int) -> None:
        """Stand before an application.

        Args:
            app: The application.
            accounts: Who may come in; None lets everybody who reaches this address in.
            max_body: Bytes of the largest request.
        """
        self.app, self.accounts, self.max_body = app, accounts, max_body
        self.attempts, self.sessions = Attempts(), Sessions()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let the application do it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            # The page uses no websockets, so there is nobody to let through.
            await send({"type": "websocket.close", "code": 1008})
            return

        has_started = False

        async def hardened(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        request = Request(scope, receive)
        answer = self._refusal(request) or await self._identify(request)
        try:
            await (answer or self.app)(scope, receive, hardened)
        except Exception:
            # What the page's functions raise is answered before it comes here: this request was not even understood.
            log.exception("%s %s could not be answered", request.method, request.scope["path"][:200])
            if has_started:
                await send({"type": "http.response.body", "body": b""})
            else:
                await _no(400, text.NOT_UNDERSTOOD)(scope, receive, hardened)

    def _refusal(self, request: Request) -> Response | None:
        """Return the answer to a request that nobody may make."""
        if any(ord(letter) < 32 for letter in request.scope["path"]):
            return _no(400, text.BAD_PATH)
        if request.method in READING:
            return None
        site = request.headers.get("sec-fetch-site", "none")
        origin = request.headers.get("origin")
        host = request.headers.get("host", "")
        if site not in ("none", "same-origin") or (origin is not None and urlsplit(origin).netloc != host):
            return _no(403, text.FOREIGN)
        length = request.headers.get("content-length")
        if length is None and "transfer-encoding" in request.headers:
            return _no(411, text.NO_LENGTH)
        if length is not None and (not length.isdigit() or int(length) > self.max_body):
            return _no(413, text.TOO_LARGE.format(limit=self.max_body // 10**6))
        return None

    async def _identify(self, request: Request) -> Response | None:
        """Return the answer to somebody who is not logged in, or wants to log in or out."""
        if self.accounts is None:
            return None
        path, method = request.scope["path"], request.method
        if (path, method) == ("/login", "POST"):
            return await self._log_in(request)
        cookie = request.cookies.get(COOKIE, "")
        if (path, method) == ("/logout", "POST"):
            self.sessions.close(cookie)
            answer = RedirectResponse("/login", status_code=303)
            answer.delete_cookie(COOKIE)
            return answer
        if (method, path) == STARTING or (cookie and self.sessions.has(cookie)):
            return RedirectResponse("/", status_code=303) if path == "/login" else None
        if (path, method) == ("/login", "GET"):
            return HTMLResponse(login_page())
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._check_token(request, token.strip())
        if path == "/" and method in READING:
            return RedirectResponse("/login", status_code=303)
        return _no(401, text.LOGGED_OUT)

    def _check_token(self, request: Request, token: str) -> Response | None:
        assert self.accounts is not None
        address = _address(request)
        seconds = self.attempts.wait(address)
        if seconds:
            return _wait(seconds)
        if self.accounts.holds(token):
            return None
        self.attempts.failed(address)
        return _no(401, text.WRONG)

    async def _log_in(self, request: Request) -> Response:
        assert self.accounts is not None
        address = _address(request)
        seconds = self.attempts.wait(address)
        if seconds:
            return _wait(seconds, page=True)
        # Counted before it is checked: many at once are no way around the limit.
        self.attempts.failed(address)
        name, password = await _credentials(request)
        if not await run_in_threadpool(self.accounts.knows, name, password):
            return HTMLResponse(login_page(text.WRONG, name), status_code=401)
        self.attempts.succeeded(address)
        answer = RedirectResponse("/", status_code=303)
        secure = request.url.scheme == "https"
        answer.set_cookie(
            COOKIE, self.sessions.open(), SESSION_SECONDS, httponly=True, samesite="strict", secure=secure
        )
        return answer


async def _credentials(request: Request) -> tuple[str, str]:
    """Return name and password of a log-in form; empty where it is none."""
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_FORM:
                return "", ""
    except ClientDisconnect:
        return "", ""
    fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=10)
    return fields.get("name", [""])[0].strip(), fields.get("password", [""])[0]


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _no(status: int, message: str) -> Response:
    return JSONResponse({"detail": message}, status_code=status)


def _wait(seconds: float, page: bool = False) -> Response:
    minutes = f"{int(seconds // 60) + 1} min"
    headers = {"Retry-After": str(int(seconds) + 1)}
    message = text.WAIT.format(minutes=minutes)
    if page:
        return HTMLResponse(login_page(message), status_code=429, headers=headers)
    return JSONResponse({"detail": message}, status_code=429, headers=headers)
