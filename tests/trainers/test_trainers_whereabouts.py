"""Where processes are when one seems to hang, and which one the others wait for."""

from __future__ import annotations

import threading

from torch.distributed import HashStore

from swift.core import phases
from swift.trainers.whereabouts import Whereabouts, collect, mine, overview, publish, withdraw

WAITING = Whereabouts("in step 3", 600.0, "torch/distributed/distributed_c10d.py:1 in barrier", True)
BUSY = Whereabouts("in step 3", 600.0, "plugin.py:9 in sleep", False)


def test_the_main_thread_is_found_from_another_one():
    phases.enter("in step 7")
    found = []
    thread = threading.Thread(target=lambda: found.append(mine()))
    thread.start()
    thread.join()
    assert found[0].phase == "in step 7"
    assert "threading.py" in found[0].place
    assert not found[0].waits


def test_what_the_processes_write_down_is_read_and_who_is_silent_is_told():
    store = HashStore()
    publish(store, 0)
    publish(store, 2)
    found = collect(store, 3, 0.1)
    assert found[0] is not None
    assert found[2] is not None
    assert found[1] is None
    withdraw(store, 2)
    assert collect(store, 3, 0.1)[2] is None


def test_the_ones_that_others_wait_for_are_named_and_nobody_where_it_cannot_be_told():
    assert "The others wait for rank 1. --ddp_timeout" in overview({0: WAITING, 1: BUSY, 2: WAITING})
    assert "The others wait for rank 0, rank 2." in overview({0: None, 1: WAITING, 2: BUSY})
    assert "rank 1: in step 3 for 600 seconds, at plugin.py:9 in sleep\n" in overview({0: WAITING, 1: BUSY})
    for alike in (WAITING, BUSY):
        assert "The others wait" not in overview({0: alike, 1: alike})
