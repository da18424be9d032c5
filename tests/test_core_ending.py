"""A process that is told to end: it raises, it leaves others alone, and what it has forked ends as ever."""

from __future__ import annotations

import os
import signal
import time

import pytest

from swift.core import ending


def test_it_raises_once_and_everything_is_as_before_afterwards():
    def told_to_end():
        with ending.heard(lambda: ""):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ending.Terminated):
        told_to_end()
    assert signal.getsignal(signal.SIGTERM) is before


def test_who_catches_the_signal_himself_is_left_alone(monkeypatch):
    monkeypatch.setattr(ending, "PATIENCE", 0.1)
    caught = []
    with ending.heard(lambda: ""):
        own = signal.signal(signal.SIGTERM, lambda number, _: caught.append(number))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)  # five times the patience, and the process lives
        signal.signal(signal.SIGTERM, own)
    assert caught == [signal.SIGTERM]


def test_a_forked_process_ends_by_the_signal_and_its_parent_does_not(monkeypatch):
    monkeypatch.setattr(ending, "PATIENCE", 0.1)
    statuses = []
    with ending.heard(lambda: ""):
        for _ in range(20):  # the signal comes before the new process runs, or while it does
            pid = os.fork()
            if not pid:
                time.sleep(20)
                os._exit(0)
            os.kill(pid, signal.SIGTERM)
            statuses.append(os.waitpid(pid, 0)[1])
        time.sleep(0.3)
    assert {os.WTERMSIG(status) for status in statuses} == {signal.SIGTERM}
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
