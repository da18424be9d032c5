"""This file knows how a command ends that is told to (SIGTERM) while it does nothing that it could save."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM
PATIENCE = 5.0
"""Seconds in which a process that was told to end may put things in order."""


class Terminated(BaseException):
    """The process was told to end; no Exception, so that nobody takes it for a failure to go on from."""


_hearing = [False]
_masks: list[set[int | signal.Signals]] = []
"""The signals that were blocked before a fork, until it is over."""


@contextmanager
def heard(last_words: Callable[[], str]) -> Iterator[None]:
    """Inside it SIGTERM raises Terminated in the main thread, as Ctrl-C raises KeyboardInterrupt.

    A training that catches the signal itself is left alone. A process that has not ended after PATIENCE seconds, because
    its main thread waits for another process in code that is not Python, says its last words and ends with EXIT_CODE.
    Processes that are forked inside it end by the signal as ever.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    over = threading.Event()
    before, fd = signal.signal(signal.SIGTERM, _raise), signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    _hearing[0] = True
    threading.Thread(target=_insist, args=(reader, over, last_words), name="ending", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        _hearing[0] = False
        signal.set_wakeup_fd(fd)
        signal.signal(signal.SIGTERM, before)
        os.close(writer)


def _raise(_: int, __: FrameType | None) -> None:
    raise Terminated


def _insist(reader: int, over: threading.Event, last_words: Callable[[], str]) -> None:
    """End the process when the main thread does not. The bytes that are read are the numbers of signals."""
    with os.fdopen(reader, "rb", buffering=0) as signals:
        while received := signals.read(1):
            is_ours = received[0] == signal.SIGTERM and signal.getsignal(signal.SIGTERM) is _raise
            if is_ours and not over.wait(PATIENCE):
                print(last_words(), file=sys.__stderr__, flush=True)
                os._exit(EXIT_CODE)


def _hold_back() -> None:
    """A signal that comes while a process forks must find the new one ready to end by it, or it would be lost."""
    if _hearing[0]:
        _masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]))


def _let_through() -> None:
    if _masks:
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.pop())


def _forget() -> None:
    """A forked process has neither the thread nor its pipe to itself."""
    if _hearing[0]:
        _hearing[0] = False
        signal.set_wakeup_fd(-1)
        if signal.getsignal(signal.SIGTERM) is _raise:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _let_through()


os.register_at_fork(before=_hold_back, after_in_parent=_let_through, after_in_child=_forget)
