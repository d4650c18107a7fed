"""Keeps the page as it is first sent: gradio puts it together anew for every visitor, and it is always the same.

That takes 60 ms in which nobody else is answered, since the description of some 700 components is copied and
walked through. What changes is asked for afterwards.
"""

from __future__ import annotations

import asyncio
import gzip

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

QUERIES = (b"", b"__theme=light", b"__theme=dark")
"""What may stand behind the address of the plain page; anything else is left to gradio."""
KEPT = 8
"""Names by which the page may be called at the same time: it holds the name in its links."""

Key = tuple[str, str, bytes]


class FirstPage:
    """ASGI middleware; see the module."""

    def __init__(self, app: ASGIApp) -> None:
        """Stand before gradio's application, behind whatever decides who may see the page."""
        self.app = app
        self._kept: dict[Key, tuple[bytes, bytes]] = {}
        self._turn = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with what is kept, or let the application answer and keep that."""
        key = _key(scope)
        if key is None:
            await self.app(scope, receive, send)
            return
        # Visitors who come at the same time wait for one answer. It is complete before anything is sent, so that
        # nobody with a slow line keeps the others waiting.
        async with self._turn:
            messages = [] if key in self._kept else await self._ask(key, scope, receive)
        if key in self._kept:
            await self._answer(key, scope)(scope, receive, send)
        for message in messages:
            await send(message)

    async def _ask(self, key: Key, scope: Scope, receive: Receive) -> list[Message]:
        """Keep the application's answer, or return it where it is not the page."""
        messages: list[Message] = []

        async def collect(message: Message) -> None:
            messages.append(message)

        await self.app(scope, receive, collect)
        if messages[0].get("status") != 200:
            return messages
        while len(self._kept) >= KEPT:
            del self._kept[next(iter(self._kept))]
        body = b"".join(message.get("body", b"") for message in messages)
        self._kept[key] = body, gzip.compress(body, 6)
        return []

    def _answer(self, key: Key, scope: Scope) -> Response:
        plain, packed = self._kept[key]
        headers = {"Vary": "Accept-Encoding"}
        if "gzip" in Headers(scope=scope).get("accept-encoding", ""):
            return HTMLResponse(packed, headers=headers | {"Content-Encoding": "gzip"})
        return HTMLResponse(plain, headers=headers)


def _key(scope: Scope) -> Key | None:
    """Return what the page depends on, or None for a request whose answer is not kept."""
    if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] != "/":
        return None
    headers = Headers(scope=scope)
    # Behind a proxy the links depend on what it says.
    if scope["query_string"] not in QUERIES or any(name.startswith("x-forwarded") for name in headers):
        return None
    return scope["scheme"], headers.get("host", ""), scope["query_string"]
