"""This file knows how many requests are inside, and turns away those that are too many or come too late."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from swift.serve.refusals import Refusal


class Gate:
    """What requests pass.

    limit: how many may be inside at a time, those that wait for the model among them; -1 does not limit.
    inside: how many there are; is_closed: whether no more are let in, because the server ends.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.inside = 0
        self.is_closed = False

    def close(self) -> None:
        """Let nobody in any more; those inside go on."""
        self.is_closed = True

    @property
    def is_drained(self) -> bool:
        """Whether it is closed and everybody has left."""
        return self.is_closed and not self.inside

    def check(self) -> None:
        """Raises Refusal (503) when the gate is closed."""
        if self.is_closed:
            raise Refusal(503, "The server is shutting down.", code="shutting_down", closes=True)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """A place inside. Raises Refusal: 503 when the gate is closed, 429 when there is no place."""
        self.check()
        if self.limit != -1 and self.inside >= self.limit:
            raise Refusal(
                429, f"{self.inside} requests are being answered or wait, and no more are taken. Try again later.",
                code="too_many_requests",
            )  # fmt: skip
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1
