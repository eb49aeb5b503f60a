"""What every request passes first: who may ask, how much they may send, and what browsers are told to refuse."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from surgery_r1.serve.refusal import Refusal

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}
#: A body that is refused is read to its end up to so many times the limit, and so many seconds: whoever sends it
#: would otherwise see a broken connection and not why.
_DRAINED = 4
_DRAIN_SECONDS = 10.0


class Guard:
    """Middleware: Host, Origin, token and size of a request are checked before anything reads it.

    Args:
        app: what answers the requests that pass.
        body_bytes: of a body.
        token: that requests below ``/v1/`` must bring; empty for none.
        hosts: names under which the server may be asked, beside ``localhost`` and addresses: another name would be a
            page elsewhere that had its own name lead here (DNS rebinding).
    """

    def __init__(self, app: Any, *, body_bytes: int, token: str = "", hosts: Iterable[str] = ()) -> None:
        self._app, self._limit, self._token = app, body_bytes, token.encode()
        self._hosts = {"localhost", *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        exchange = _Exchange(headers, receive, send, self._limit)
        try:
            self._check(scope["path"], headers)
            await self._app(scope, exchange.receive, exchange.send)
        except Refusal as refusal:
            if exchange.answered:
                raise
            await exchange.refuse(refusal)
        except Exception:
            # It has been answered and told where it was caught; uvicorn would print what was asked with it.
            if not exchange.answered:
                raise

    def _check(self, path: str, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        if not self._known(host):
            fix = "use the address that the command printed, or allow the name with --host-name"
            raise Refusal(421, "host", "the Host header names no host of this server", fix)
        if path.startswith("/v1/"):
            origin = headers.get("origin")
            crossed = origin is not None and _place(origin) != host.lower()
            if crossed or headers.get("sec-fetch-site") in ("cross-site", "same-site"):
                raise Refusal(403, "cross_site", "a page of another site asks", "ask from the server's own page")
            self._check_token(headers.get("authorization", ""))
        try:
            length = int(headers.get("content-length", "0"))
        except ValueError:
            raise Refusal(400, "bad_request", "content-length is no number", "leave it out") from None
        if length > self._limit:
            raise _too_large(self._limit)

    def _known(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.lower() in self._hosts
        return True

    def _check_token(self, given: str) -> None:
        if not self._token:
            return
        scheme, _, token = given.partition(" ")
        # Compared in constant time, so that nobody can find it letter by letter.
        right = hmac.compare_digest(token.strip().encode("latin-1", "replace"), self._token)
        if scheme.lower() != "bearer" or not right:
            fix = "send Authorization: Bearer TOKEN, with the token that the server was started with"
            raise Refusal(401, "token", "no valid token", fix, {"WWW-Authenticate": "Bearer"})


def _place(origin: str) -> str | None:
    """Host and port of an origin; None for what is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _too_large(limit: int) -> Refusal:
    return Refusal(413, "body_too_large", f"a body of more than {limit:,} bytes", "send a smaller image")


class _Exchange:
    """One request and its response: counts what comes in, and adds headers to what goes out."""

    def __init__(self, headers: dict[str, str], receive: Receive, send: Send, limit: int) -> None:
        self._receive, self._send, self._limit = receive, send, limit
        self._read = 0
        self._whole = "content-length" not in headers and "transfer-encoding" not in headers
        # Who asks first whether to send the body need not send it.
        self._waits = "100-continue" in headers.get("expect", "").lower()
        self.answered = False

    async def receive(self) -> Message:
        """The next part of the body; :class:`Refusal` where there are too many."""
        message = await self._next()
        if self._read > self._limit:
            raise _too_large(self._limit)
        return message

    async def _next(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            self._waits = False
            self._whole = not message.get("more_body", False)
        else:
            self._whole = True
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the response, once the request has been read."""
        if message["type"] == "http.response.start":
            await self._drain()
            self.answered = True
            own = {name.lower() for name, _ in message["headers"]}
            added = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in own]
            message = {**message, "headers": [*message["headers"], *added]}
        await self._send(message)

    async def _drain(self) -> None:
        until = time.monotonic() + _DRAIN_SECONDS
        while not self._whole and not self._waits and self._read < _DRAINED * self._limit:
            try:
                await asyncio.wait_for(self._next(), max(0.0, until - time.monotonic()))
            except TimeoutError:
                # Whoever sends no more waits for the response, or for nothing.
                return

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with a refusal."""
        body = json.dumps(refusal.body()).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **refusal.headers}
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body})
