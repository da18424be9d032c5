"""This file knows how work of an event loop is asked for from elsewhere: the loop has a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
Heard = Callable[[Any], None]
"""Is told each item of a stream, then END, or the error that ended it."""
END = object()


class Background:
    """An event loop that runs in a thread until it is closed. An engine that binds itself to a loop lives in it, and
    may be asked by code without a loop, and by code of any other loop."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop itself, for engines that want to know where they live."""
        return self._loop

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of some work, waited for. Who is interrupted while he waits wants it no more: it is ended."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # also Ctrl-C: what nobody waits for any more must not go on
            future.cancel()
            raise

    def follow(self, items: AsyncIterator[Any], hear: Heard) -> Future[None]:
        """Run through a stream, telling what comes. Cancelling the future ends the stream."""
        return asyncio.run_coroutine_threadsafe(_told(items, hear), self._loop)

    def close(self) -> None:
        """End what still runs, then the loop and its thread."""
        self.do(_cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


def begun(items: Generator[Any, None, None]) -> Generator[Any, None, None]:
    """A generator that has come to its first `yield`, of which nothing is told: what stands before it is done now, and what
    its `finally` does is done even when nobody ever asks for an item."""
    next(items)
    return items


async def together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of several tasks; when one of them fails, the others are ended first."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:  # also a cancellation: none of them may go on behind our back
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def _told(items: AsyncIterator[Any], hear: Heard) -> None:
    try:
        async for item in items:
            hear(item)
    except Exception as error:  # noqa: BLE001 (whoever listens is told, in his own thread)
        hear(error)
    else:
        hear(END)


async def _cancel_all() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
