"""Work that several processes of a gloo group do together: forked from the test, so that nothing is imported again."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def in_processes(count: int, work: Callable[[int], Any], folder: Path) -> list[Any]:
    """What `work(rank)` returns in `count` processes that form a gloo group, by rank."""
    context = get_context("fork")
    folder.mkdir(exist_ok=True)
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    processes = [
        context.Process(target=_member, args=(rank, count, work, folder / "store", end))
        for rank, (_, end) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    answers = [pickle.loads(receiver.recv_bytes()) for receiver, _ in pipes]
    for process in processes:
        process.join()
    (folder / "store").unlink(missing_ok=True)
    problems = [answer for answer in answers if isinstance(answer, _Problem)]
    assert not problems, problems[0]
    return answers


class _Problem(str):
    """What went wrong in a process."""


def _member(rank: int, count: int, work: Callable[[int], Any], store: Path, end: Connection) -> None:
    import torch.distributed as dist
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):  # what the test itself has trained with
        state._shared_state.clear()
    place = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update(GLOO_SOCKET_IFNAME="lo", ACCELERATE_USE_CPU="true", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count)
    try:
        answer = work(rank)
    except Exception:  # noqa: BLE001 (raised by the test)
        answer = _Problem(f"rank {rank}: {traceback.format_exc()}")
    end.send_bytes(pickle.dumps(answer))  # by value: the process ends before it is read
    if not isinstance(answer, _Problem):
        dist.barrier()
    os._exit(0)
