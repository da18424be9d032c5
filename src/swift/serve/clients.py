"""This file knows that clients leave: work for one that has gone is stopped, and what is streamed waits for its reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import TypeVar

from starlette.responses import Response

from swift.core.errors import SwiftError
from swift.core.logs import get_logger
from swift.serve.front import ClientLeft, Receive, Scope, Send
from swift.serve.refusals import Refusal

T = TypeVar("T")
LAST_EVENT = "data: [DONE]\n\n"


async def while_there(receive: Receive, work: Awaitable[T]) -> T:
    """What `work` gives. It is cancelled, and ClientLeft raised, when the client closes the connection before."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientLeft
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """An answer in server-sent events. They are closed with it, whether it ends, fails, or nobody reads on."""

    def __init__(self, events: AsyncGenerator[str, None]) -> None:
        super().__init__(media_type="text/event-stream")
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 (as ASGI calls it)
        """Send all events, each when the one before it is on its way."""
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-cache"
        self.headers["x-accel-buffering"] = "no"  # a proxy of nginx would hold events back
        try:
            await while_there(receive, self._sent(send))
        except ClientLeft:
            return

    async def _sent(self, send: Send) -> None:
        async with aclosing(_told(self._events)) as events:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for event in events:
                await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def begun(receive: Receive, events: AsyncGenerator[str, None]) -> EventStream:
    """The stream of these events, the first of which is there: what goes wrong before it has a status of its own."""
    try:
        first = await while_there(receive, anext(events))
    except BaseException:  # also a client that has left: its request must not go on
        await events.aclose()
        raise
    return EventStream(_again(first, events))


async def _again(first: str, events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    async with aclosing(events):
        yield first
        async for event in events:
            yield event


async def _told(events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """The events; what goes wrong between them is an event itself, after which there is none."""
    async with aclosing(events):
        try:
            async for event in events:
                yield event
        except SwiftError as error:
            yield event_of(Refusal(500, str(error)).body)
        except Exception:  # noqa: BLE001 (the boundary of a request: its status has been sent, and its client has to be told)
            get_logger().exception("An answer broke off.")
            yield event_of(Refusal(500, "The answer broke off: the server's log says why.").body)


def event_of(json: str) -> str:
    """One event that carries this JSON."""
    return f"data: {json}\n\n"
