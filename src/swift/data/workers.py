"""This file knows how work is shared among processes: a function of picklable things, results in the order of the work.

The processes are forked where the system can do that safely, so that they start at once and share what is loaded
already; elsewhere they are spawned and get the function as a copy. They use no thread, no accelerator and no random
state of their own. None of them outlives the one that started it: whether it ends, fails, is interrupted or is killed.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, NamedTuple, TypeVar

from swift.core.errors import RunError
from swift.core.logs import get_logger

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 4
"""How many results per process may be waiting for an earlier one."""
SELDOM = 100_000
"""New objects after which the garbage collector looks for cycles where rows are prepared. Rows make many objects and no
cycles; at the usual 700, looking took a tenth of the time."""
_LOOKS_EVERY = 1.0
"""Seconds after which an idle process looks whether the one that started it is still there."""


def ordered(work: Callable[[T], R], tasks: Iterable[T], processes: int) -> Iterator[R]:
    """`work` of every task, in the order of the tasks, by processes that live for this alone; see `Crew`."""
    with Crew(work, processes) as crew:
        yield from crew.results(tasks)


class _Answer(NamedTuple):
    """What a process sends back: the result or the error of its task, and what was logged meanwhile."""

    result: Any
    error: BaseException | None
    trace: str
    logged: list[tuple[int, str]]


class Crew(Generic[T, R]):
    """So many processes that do one kind of work; 1 is this process itself. They start when there is work to do.

    What the work logs is logged here, each message once.
    """

    def __init__(self, work: Callable[[T], R], processes: int) -> None:
        self._work = work
        self._count = processes
        self._processes: list[Any] = []
        self._ends: list[Connection] = []
        self._told: set[tuple[int, str]] = set()

    def results(self, tasks: Iterable[T]) -> Iterator[R]:
        """The work of all tasks, in their order; to be read to its end before the next call.

        An exception of the work is raised here; RunError when a process dies. When it is not read to its end, for one
        of these or another reason, the processes end, since the results they are at belong to nobody.
        """
        if self._count == 1:
            yield from map(self._work, tasks)
            return
        is_finished = False
        try:
            yield from self._shared(tasks)
            is_finished = True
        finally:
            if not is_finished:
                self.dismiss()

    def dismiss(self) -> None:
        """End all processes, whatever they are doing."""
        for process, end in zip(self._processes, self._ends, strict=True):
            end.close()
            process.terminate()
        for process in self._processes:
            process.join()
            process.close()
        self._processes.clear()
        self._ends.clear()

    def __enter__(self) -> Crew[T, R]:
        return self

    def __exit__(self, *_: object) -> None:
        self.dismiss()

    def _shared(self, tasks: Iterable[T]) -> Iterator[R]:
        self._start()
        coming = iter(tasks)
        ready: dict[int, R] = {}
        busy: dict[Connection, int] = {}
        given, due = 0, 0
        following = next(coming, None)
        while following is not None or busy or ready:
            for end in self._ends:
                if following is None or given >= due + AHEAD * self._count:
                    break
                if end not in busy:
                    self._send(end, following)
                    busy[end] = given
                    given, following = given + 1, next(coming, None)
            if due in ready:
                yield ready.pop(due)
                due += 1
                continue
            for end in wait(list(busy)):
                assert isinstance(end, Connection), "nothing else was waited for"
                ready[busy.pop(end)] = self._receive(end)

    def _start(self) -> None:
        method = "fork" if sys.platform == "linux" else "spawn"
        context = multiprocessing.get_context(method)
        for _ in range(self._count - len(self._processes)):
            ours, theirs = context.Pipe()
            # A forked process holds copies of our ends too, and must close them to notice when we are gone.
            others = (*self._ends, ours) if method == "fork" else ()
            process = context.Process(target=_serve, args=(self._work, theirs, others, os.getpid()), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._ends.append(ours)

    def _send(self, end: Connection, task: T) -> None:
        try:
            end.send(task)
        except (BrokenPipeError, ConnectionResetError):
            raise self._death(end) from None

    def _receive(self, end: Connection) -> R:
        try:
            answer: _Answer = end.recv()
        except (EOFError, ConnectionResetError):
            raise self._death(end) from None
        for record in answer.logged:
            if record not in self._told:
                self._told.add(record)
                get_logger().log(record[0], "%s", record[1])
        if answer.error is not None:
            raise answer.error from RunError(f"in a process of its own:\n{answer.trace}")
        return answer.result

    def _death(self, end: Connection) -> RunError:
        process = self._processes[self._ends.index(end)]
        process.join()
        code = process.exitcode
        how = f"by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"with exit code {code}"
        hint = " Memory may have run out: use fewer processes." if code == -signal.SIGKILL else ""
        return RunError(f"A process that prepares rows (--dataset_num_proc) ended {how}.{hint}")


class _Collector(logging.Handler):
    """Keeps what is logged, to be sent home."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append((record.levelno, record.getMessage()))


def _serve(work: Callable[[Any], Any], end: Connection, others: Sequence[Connection], parent: int) -> None:
    """The life of a process: one task after the other, until nobody is there to send one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in others:
        other.close()
    collector = _Collector()
    logger = get_logger()
    logger.handlers[:] = [collector]
    gc.freeze()  # what was there before stays: looking at it again and again would copy it page by page
    gc.set_threshold(SELDOM, *gc.get_threshold()[1:])
    while True:
        while not end.poll(_LOOKS_EVERY):
            if os.getppid() != parent:
                return
        try:
            task = end.recv()
            end.send_bytes(_answer(work, task, collector))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return


def _answer(work: Callable[[Any], Any], task: Any, collector: _Collector) -> bytes:
    collector.records.clear()
    try:
        answer = _Answer(work(task), None, "", collector.records)
    except Exception as error:  # noqa: BLE001 (it is raised again where the work was given out)
        answer = _Answer(None, error, traceback.format_exc(), collector.records)
    try:
        sent = pickle.dumps(answer, protocol=pickle.HIGHEST_PROTOCOL)
        if answer.error is not None:
            pickle.loads(sent)  # an exception that wants other arguments than it keeps can be sent and not be received
    except Exception as error:  # noqa: BLE001 (what pickle calls may raise anything; it must not end the process)
        words = answer.trace or f"the result cannot be sent: {error}"
        return pickle.dumps(_Answer(None, RunError(words), words, answer.logged))
    return sent
