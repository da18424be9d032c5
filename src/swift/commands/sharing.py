"""This file knows how the processes of one inference share its rows, and bring their results together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from swift.core import environment
from swift.options.general import GeneralOptions

T = TypeVar("T")


@contextmanager
def sharing(options: GeneralOptions) -> Iterator[None]:
    """A group of the processes torchrun has started; nothing when there is one. Replies travel as Python objects."""
    if environment.world_size() == 1:
        yield
        return
    backend = options.ddp_backend or "gloo"
    if backend == "nccl":  # objects travel through the memory of the process's own GPU
        torch.cuda.set_device(environment.local_rank())
    dist.init_process_group(backend, timeout=timedelta(seconds=options.ddp_timeout))
    try:
        yield
    finally:
        dist.destroy_process_group()


def agreed(found: T) -> T:
    """What the first process has found, a path or what is in a file: clocks differ, and files grow."""
    if environment.world_size() == 1:
        return found
    shared: list[Any] = [found]
    dist.broadcast_object_list(shared)
    return shared[0]


def part(items: Sequence[T], rank: int, world_size: int) -> Sequence[T]:
    """A contiguous part of nearly equal length for each process; together they are the whole, in order."""
    return items[rank * len(items) // world_size : (rank + 1) * len(items) // world_size]


def gathered(found: list[T]) -> list[T]:
    """What all processes have found, in the order of their parts; on the first process, the others get nothing."""
    if environment.world_size() == 1:
        return found
    parts: list[Any] | None = [None] * environment.world_size() if environment.rank() == 0 else None
    dist.gather_object(found, parts)
    return [each for part in parts or [] for each in part]
