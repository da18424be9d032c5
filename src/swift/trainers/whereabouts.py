"""This file knows where each process of a run is when one of them seems to hang, and which one the others wait for.

A process that waits for others looks as stuck as the one they wait for. Each writes down where it is; the first one reads
it all. The store through which the processes found each other holds it, for it works while nothing else does.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from swift.core import phases
from swift.trainers.processes import Store

_KEY = "whereabouts"
_WAITING = ("distributed", "autograd", "nn/parallel")
"""Parts of torch in which a process may be waiting for others: a collective, and gradients that are summed over all."""
_TORCH = Path(torch.__file__).parent


@dataclass(frozen=True)
class Whereabouts:
    """What the main thread of a process is doing.

    seconds: for how long this phase has been going on. place: file, line and function. waits: whether it may be waiting
    for others there.
    """

    phase: str
    seconds: float
    place: str
    waits: bool

    def __str__(self) -> str:
        waits = ", where it may be waiting for others" if self.waits else ""
        return f"{self.phase} for {self.seconds:.0f} seconds, at {self.place}{waits}"


def mine() -> Whereabouts:
    """Those of this process. It is asked from another thread than the main one."""
    phase, main = phases.current(), threading.main_thread().ident
    frame = sys._current_frames().get(main or 0)
    last = traceback.extract_stack(frame)[-1]
    waits = any(Path(last.filename).is_relative_to(_TORCH / part) for part in _WAITING)
    return Whereabouts(
        phase.name, time.monotonic() - phase.since, f"{last.filename}:{last.lineno} in {last.name}", waits
    )


def publish(store: Store, rank: int) -> None:
    """Write down where this process is."""
    store.set(f"{_KEY}/{rank}", json.dumps(asdict(mine())))


def withdraw(store: Store, rank: int) -> None:
    """It is there no longer."""
    store.delete_key(f"{_KEY}/{rank}")


def collect(store: Store, count: int, patience: float) -> list[Whereabouts | None]:
    """Where the processes are, by rank; None for one that has not said so within `patience` seconds."""
    keys = [f"{_KEY}/{rank}" for rank in range(count)]
    deadline = time.monotonic() + patience
    while not store.check(keys) and time.monotonic() < deadline:
        time.sleep(0.2)
    return [Whereabouts(**json.loads(store.get(key))) if store.check([key]) else None for key in keys]


def overview(found: Mapping[int, Whereabouts | None]) -> str:
    """A line for each process, and one that names those the others wait for, where it can be told."""
    lines = [
        f"  rank {rank}: {place or 'says nothing: it has ended, is stopped, or is not late yet'}"
        for rank, place in found.items()
    ]
    busy = [rank for rank, place in found.items() if place is None or not place.waits]
    if 0 < len(busy) < len(found):
        named = ", ".join(f"rank {rank}" for rank in busy)
        lines.append(f"The others wait for {named}. --ddp_timeout says after how many seconds that ends the run.")
    return "\n".join(lines)
