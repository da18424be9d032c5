"""This file knows where structures are compiled for those who wait in an event loop: beside it, and not for ever.

A large JSON schema takes seconds. In the loop it would hold up everybody's stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from swift.core.errors import EngineError

T = TypeVar("T")
SECONDS = 20.0
"""How long a structure may be compiled."""


class Compiling:
    """A thread that compiles one structure after the other."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="swift-structures")

    async def do(self, work: Callable[[], T]) -> T:
        """What `work` gives. Raises EngineError when it has not after SECONDS; the time until it is begun does not count."""
        future = self._thread.submit(work)
        waiting = asyncio.wrap_future(future)
        try:
            while not waiting.done():
                is_begun = future.running()
                await asyncio.wait([waiting], timeout=SECONDS)
                if is_begun and not waiting.done():
                    raise EngineError(f"The structure of the reply takes more than {SECONDS:g} seconds to compile.")
            return waiting.result()
        finally:
            waiting.cancel()

    def close(self) -> None:
        """End the thread; what waits for it is not done."""
        self._thread.shutdown(wait=False, cancel_futures=True)
