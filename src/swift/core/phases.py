"""This file knows what this process is doing at the moment: one phase at a time, with the time it began.

Errors and the watchdog name it. It is kept for the whole process, as the log is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from swift.core import environment


@dataclass(frozen=True)
class Phase:
    """Something that should come to an end: what it is in words, and when it began (`time.monotonic`)."""

    name: str
    since: float


_current = [Phase("starting", time.monotonic())]


def current() -> Phase:
    """The phase of this moment."""
    return _current[0]


def enter(name: str) -> None:
    """Begin a phase, which ends the one before."""
    _current[0] = Phase(name, time.monotonic())


def where() -> str:
    """This process and its phase in words, for an error of one among several: `rank 1, while in step 12`."""
    return f"rank {environment.rank()}, while {current().name}"
