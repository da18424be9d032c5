"""This file knows when a run seems to hang, and shows where: the stacks of every process, from each itself."""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from contextlib import suppress
from types import TracebackType

from torch.distributed import DistError

from swift.core import environment, phases
from swift.trainers import processes, whereabouts

_STANDARD_ERROR = 2
_GRACE = 5.0
"""Seconds after which the stacks are shown even when no Python can run, because something holds its lock."""


class Watchdog:
    """Shows the stacks of all threads when one phase (`core/phases.py`) takes longer than `limit` seconds.

    Each phase is shown once, and nothing is ended: a phase may be long for a good reason, and `--ddp_timeout` ends a wait
    that is too long. The first process also tells which one the others wait for. What takes long by design,
    as the preparation of rows, begins a phase of its own whenever it has come further. Used as a context; a limit of 0
    watches nothing.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._shown: phases.Phase | None = None
        self._is_published = False

    @classmethod
    def of_environment(cls) -> Watchdog:
        """With the limit of SWIFT_WATCHDOG."""
        return cls(environment.SWIFT_WATCHDOG.integer() or 0)

    def __enter__(self) -> Watchdog:
        if self.limit > 0:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        if self.limit > 0:
            self._end.set()
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        armed: phases.Phase | None = None
        while not self._end.wait(min(1.0, self.limit / 4)):
            phase = phases.current()
            left = self.limit - (time.monotonic() - phase.since)
            if phase is not armed:
                armed = phase
                self._move_on()
                faulthandler.dump_traceback_later(max(left, 0) + _GRACE, file=_STANDARD_ERROR)
            if left <= 0 and phase is not self._shown:
                self._shown = phase
                faulthandler.cancel_dump_traceback_later()
                self._show(phase)

    def _show(self, phase: phases.Phase) -> None:
        who = f" rank {environment.rank()}" if environment.world_size() > 1 else ""
        print(
            f"[swift{who}] warning: {phase.name} for more than {self.limit:g} seconds "
            f"({environment.SWIFT_WATCHDOG.name}); this is where every thread is:",
            file=sys.__stderr__, flush=True,
        )  # fmt: skip
        faulthandler.dump_traceback(file=_STANDARD_ERROR, all_threads=True)
        self._say_where()

    def _say_where(self) -> None:
        """Write down where this process is; the first one says where all are."""
        store = processes.store()
        if store is None or environment.world_size() == 1:
            return
        rank = environment.rank()
        try:
            whereabouts.publish(store, rank)
            self._is_published = True
            if rank:
                return
            found = whereabouts.collect(store, environment.world_size(), _GRACE)
            told = whereabouts.overview(dict(enumerate(found)))
        except DistError as error:
            told = f"  they cannot be asked: {error}"
        print(f"[swift rank {rank}] warning: where the processes are:\n{told}", file=sys.__stderr__, flush=True)

    def _move_on(self) -> None:
        """What was written down holds no longer."""
        store = processes.store() if self._is_published else None
        self._is_published = False
        if store is not None:
            with suppress(DistError):  # whoever asks finds what is older, with its age
                whereabouts.withdraw(store, environment.rank())
