"""This file knows the processes of a run: how they start together, and how they agree."""

from __future__ import annotations

import gc
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from swift.core import environment
from swift.core.errors import RunError, SwiftError
from swift.core.extras import need
from swift.options.general import GeneralOptions

T = TypeVar("T")


class Store(Protocol):
    """Texts by name, which all processes of a run see. What goes wrong raises `torch.distributed.DistError`."""

    def set(self, key: str, value: str, /) -> None:
        """Write a text."""
        ...

    def get(self, key: str, /) -> bytes:
        """The text, waited for."""
        ...

    def check(self, keys: list[str], /) -> bool:
        """Whether all are there."""
        ...

    def delete_key(self, key: str, /) -> bool:
        """Take a text away; whether it was there."""
        ...

    def clone(self) -> Store:
        """The same for another thread."""
        ...


_stores: list[Store] = []
"""Through which the processes of this run have found each other; kept for the whole process, as the group is."""


def join(general: GeneralOptions, device_type: str, sharding: str | None = None) -> None:
    """Join the process group of this run, when it has several processes and there is none yet.

    sharding: deepspeed or fsdp, which need a group even of one process; what DeepSpeed sends goes through it too.

    The back end is `--ddp_backend`, else nccl on CUDA and gloo elsewhere. A process that waits longer than
    `--ddp_timeout` seconds for the others fails.
    """
    if dist.is_initialized() or (environment.world_size() == 1 and sharding is None):
        return
    backend = general.ddp_backend or ("nccl" if device_type == "cuda" else "gloo")
    if device_type == "cuda":
        torch.cuda.set_device(environment.local_rank())
    timeout = timedelta(seconds=general.ddp_timeout)
    try:
        store, place, size = next(rendezvous("env://", timeout=timeout))
        store.set_timeout(timeout)
        dist.init_process_group(backend, store=store, rank=place, world_size=size, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise RunError(f"--ddp_backend {backend} cannot start here: {error}") from error
    _stores[:] = [cast("Store", store)]  # the stub of torch does not know clone
    if sharding == "deepspeed":
        # Weights are divided while they are read, which is before the Trainer would start DeepSpeed.
        need("deepspeed", "--deepspeed").init_distributed(backend, auto_mpi_discovery=False, verbose=False)


def store() -> Store | None:
    """What all processes write to and read from while nothing else of them works; None for one that is alone.

    It may be asked from any thread, also while another waits for it.
    """
    return _stores[0].clone() if _stores else None


def leave() -> None:
    """Leave the process group, so that no process ends while another still talks to it.

    What a training still holds of it goes too, as far as nobody needs it: threads of the group that outlive Python's own
    end would end the process with SIGABRT. Whoever holds a trainer calls this again without it.
    """
    _stores.clear()
    if dist.is_initialized():
        dist.destroy_process_group()
    gc.collect()


def alone() -> bool:
    """Whether this is the only process of the run."""
    return count() == 1


def rank() -> int:
    """The number of this process among those that have joined; 0 when it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many processes have joined; 1 when this one is alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def leads(each_node: bool) -> bool:
    """Whether this process acts for all: it is the first one, with `each_node` the first one of its node."""
    return (environment.local_rank() if each_node else rank()) == 0


def meet() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()


def told(value: T) -> T:
    """What the first process says: `value` of rank 0, on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gathered(value: T) -> list[T]:
    """What every process says, by rank, on every rank."""
    if not dist.is_initialized():
        return [value]
    box: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(box, value)
    return box


def made_once(make: Callable[[], T], timeout: float) -> T:
    """What the first process of every node makes, on all processes of the node; what is made must pickle.

    The others wait for at most `timeout` seconds. An error of the first process ends the others without a word.
    """
    if not dist.is_initialized():
        return make()
    first = dist.get_rank() - environment.local_rank()
    firsts: list[int] = [0] * dist.get_world_size()
    dist.all_gather_object(firsts, first)
    # Groups of gloo, whatever the run itself uses: waiting for hours must not count as a hanging kernel.
    nodes = {
        node: dist.new_group([r for r, of in enumerate(firsts) if of == node], timedelta(seconds=timeout), "gloo")
        for node in sorted(set(firsts))
    }
    group = nodes[first]
    assert isinstance(group, dist.ProcessGroup), "this process is of its own node"
    return _made_by(first, make, group)


def decided(make: Callable[[], T]) -> T:
    """What the first process of all makes, on all processes; what is made must pickle.

    An error of the first process ends the others without a word.
    """
    return _made_by(0, make, None) if dist.is_initialized() else make()


def _made_by(first: int, make: Callable[[], T], group: dist.ProcessGroup | None) -> T:
    made: T | None = None
    error: SwiftError | None = None
    if dist.get_rank() == first:
        try:
            made = make()
        except SwiftError as failure:
            error = failure
    box = [made, error and error.exit_code]
    dist.broadcast_object_list(box, src=first, group=group)
    if error is not None:
        raise error
    if box[1]:
        raise SystemExit(box[1])
    return box[0] if dist.get_rank() != first else made  # type: ignore[return-value]  # made, or an error was raised


def largest(number: int, device: torch.device) -> int:
    """The largest of the numbers that the processes hold."""
    if not dist.is_initialized():
        return number
    held = torch.tensor(number, device=device)
    dist.all_reduce(held, op=dist.ReduceOp.MAX)
    return int(held)
