"""This file knows what every request passes before a route sees it: the key, the body within its limits, the gate.

A body is read whole before it takes a place, so that whoever writes slowly keeps nobody out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from swift.serve.auth import OPEN_PATHS, Key
from swift.serve.gate import Gate
from swift.serve.meters import Meters
from swift.serve.refusals import Refusal

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LINGER_BYTES = 64 << 20
LINGER_SECONDS = 5.0
"""How much of a body that was refused is still read, and how long, so that the client can read why."""


class ClientLeft(Exception):  # noqa: N818 (nobody is there to be told of a fault)
    """The client has closed the connection."""


@dataclass(frozen=True)
class BodyLimits:
    """How large a body may be in bytes, and how many seconds it may take: between two pieces, and in all."""

    size: int
    pause: float = 10.0
    total: float = 120.0


class Front:
    """The outermost part of the app."""

    def __init__(self, app: App, key: Key, gate: Gate, limits: BodyLimits, meters: Meters) -> None:
        self._app = app
        self._key = key
        self._gate = gate
        self._limits = limits
        self._meters = meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        try:
            await self._passed(scope, receive, answer)
        except Refusal as refusal:
            await answer.refuse(refusal)
            if refusal.closes:
                await _drained(receive)
            await answer.end()
        except ClientLeft:
            pass
        except asyncio.CancelledError:
            if not self._gate.is_closed:
                raise
            await answer.cut()
        finally:
            self._meters.answered(scope["path"], answer.status)

    async def _passed(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        is_open = scope["path"] in OPEN_PATHS
        if not is_open:
            self._key.check(headers.get(b"authorization"))
        if is_open or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        self._gate.check()
        body = await read_body(receive, headers, self._limits)
        with self._gate.entered():
            await self._app(scope, _replayed(body, receive), send)


async def read_body(receive: Receive, headers: dict[bytes, bytes], limits: BodyLimits) -> bytes:
    """The body of a request. Raises Refusal when it is too large (413) or too slow (408), ClientLeft when it ends."""
    _check_headers(headers, limits.size)
    deadline = time.monotonic() + limits.total
    chunks: list[bytes] = []
    size = 0
    while True:
        pause = min(limits.pause, deadline - time.monotonic())
        try:
            event = await asyncio.wait_for(receive(), max(pause, 0.001))
        except asyncio.TimeoutError:
            raise Refusal(408, "The body did not come in time.", code="slow_body", closes=True) from None
        if event["type"] == "http.disconnect":
            raise ClientLeft
        chunks.append(event.get("body", b""))
        size += len(chunks[-1])
        if size > limits.size:
            raise _too_large(limits.size)
        if not event.get("more_body", False):
            return b"".join(chunks)


def _check_headers(headers: dict[bytes, bytes], limit: int) -> None:
    """Refuse by its headers a body that is too large, compressed, or says that it is no JSON."""
    length = headers.get(b"content-length", b"")
    if length.isdigit() and int(length[:19]) > limit:
        raise _too_large(limit)
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind and kind != b"application/json" and not kind.endswith(b"+json"):
        raise Refusal(415, "The body must be JSON: send `Content-Type: application/json`.", closes=True)
    if headers.get(b"content-encoding", b"identity").lower() not in (b"identity", b""):
        raise Refusal(415, "The body must not be compressed.", closes=True)


def _too_large(limit: int) -> Refusal:
    return Refusal(
        413, f"The body is larger than {limit / (1 << 20):g} MiB (--max_body_size).", code="body_too_large", closes=True
    )


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body once more, in one piece, and then what comes after it."""
    is_read = False

    async def again() -> Event:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _drained(receive: Receive) -> None:
    """Read on for a while what is not wanted: closing at once could lose the answer on its way."""
    deadline, size = time.monotonic() + LINGER_SECONDS, 0
    while size < LINGER_BYTES and time.monotonic() < deadline:
        try:
            event = await asyncio.wait_for(receive(), LINGER_SECONDS)
        except asyncio.TimeoutError:
            return
        size += len(event.get("body", b""))
        if event["type"] == "http.disconnect" or not event.get("more_body", False):
            return


class _Answer:
    """What goes out; status: that of the answer, 0 before it has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def __call__(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            self.status = event["status"]
        await self._send(event)

    async def refuse(self, refusal: Refusal) -> None:
        """Say no, without ending the answer."""
        body = refusal.body.encode()
        headers = {**refusal.headers, "content-length": str(len(body))}
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self({"type": "http.response.start", "status": refusal.status, "headers": pairs})
        await self({"type": "http.response.body", "body": body, "more_body": True})

    async def cut(self) -> None:
        """Say that the server has ended; what has begun is a stream, to which that is one more event."""
        refusal = Refusal(
            503, "The server was ended before the answer was complete.", code="shutting_down", closes=True
        )
        if self.status:
            await self({"type": "http.response.body", "body": f"data: {refusal.body}\n\n".encode(), "more_body": True})
        else:
            await self.refuse(refusal)
        await self.end()

    async def end(self) -> None:
        """End the answer."""
        await self({"type": "http.response.body", "body": b"", "more_body": False})
