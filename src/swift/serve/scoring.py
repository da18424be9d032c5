"""This file knows how a model that reads is asked by many at once: what waits while it works is read together next.

The model belongs to one thread. Texts of different requests share batches; a request whose client left is not read.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from torch import Tensor

from swift.chat.render import Sample

Outputs = Callable[[Sequence[Sample]], Tensor]
"""What a model puts out for texts, in their order."""
Waiting = tuple[list[Sample], "Future[Tensor]"]


class ScoringQueue:
    """Texts that wait for a model, and the thread in which it works.

    at_once: how many texts are handed over at a time; those of one request stay together.
    """

    def __init__(self, outputs: Outputs, at_once: int) -> None:
        self._outputs = outputs
        self._at_once = at_once
        self._waiting: deque[Waiting] = deque()
        self._news = threading.Condition()
        self._is_open = True
        self._thread = threading.Thread(target=self._work, name="swift-scoring", daemon=True)
        self._thread.start()

    async def outputs(self, samples: Sequence[Sample]) -> Tensor:
        """What the model puts out for these texts."""
        future: Future[Tensor] = Future()
        with self._news:
            self._waiting.append((list(samples), future))
            self._news.notify()
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the thread; what still waits is given up."""
        with self._news:
            self._is_open = False
            self._news.notify()
        self._thread.join()
        for _, future in self._waiting:
            future.cancel()

    def _work(self) -> None:
        while batch := self._next():
            samples = [sample for some, _ in batch for sample in some]
            try:
                outputs = self._outputs(samples)
            except Exception as error:  # noqa: BLE001 (the thread outlives a request that fails; its client is told)
                for _, future in batch:
                    future.set_exception(error)
                continue
            for some, future in batch:
                future.set_result(outputs[: len(some)])
                outputs = outputs[len(some) :]

    def _next(self) -> list[Waiting]:
        """The requests that are read together next; [] at the end."""
        batch: list[Waiting] = []
        count = 0
        with self._news:
            while not batch:
                while not self._waiting and self._is_open:
                    self._news.wait()
                if not self._is_open:
                    return []
                while self._waiting and (not batch or count + len(self._waiting[0][0]) <= self._at_once):
                    samples, future = self._waiting.popleft()
                    if future.set_running_or_notify_cancel():
                        batch.append((samples, future))
                        count += len(samples)
        return batch
