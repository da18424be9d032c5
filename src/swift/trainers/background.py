"""This file knows how a checkpoint is written while training goes on: a copy in host memory, a thread, one at a time.

Copying is all that training waits for. Writing to files, hashing them and waiting for the disk let go of Python's lock,
so a thread does them beside the steps that follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn


class Saver:
    """Does one piece of work at a time: at once, or with `background` in a thread.

    What goes wrong in the thread is raised by the next call of `check`, `wait` or `submit`, once.
    """

    def __init__(self, background: bool) -> None:
        self.background = background
        self._pool = ThreadPoolExecutor(1, "checkpoint") if background else None
        self._running: Future[None] | None = None

    def submit(self, work: Callable[[], None]) -> None:
        """Do the work, after what is still being done."""
        self.wait()
        if self._pool is None:
            work()
        else:
            self._running = self._pool.submit(work)

    def check(self) -> None:
        """Raise what went wrong, without waiting."""
        if self._running is not None and self._running.done():
            self.wait()

    def wait(self) -> None:
        """Wait until nothing is being done, and raise what went wrong."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def finish(self) -> None:
        """Wait as `wait` does, and end the thread."""
        try:
            self.wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown()


class Snapshot:
    """Copies of tensors in host memory, in buffers that are used again for the next copy of the same tensors.

    The copy before must not be needed any more when the next one is taken. Of an accelerator, the buffers are pinned.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def reserve(self, tree: Any, kept: frozenset[int]) -> Callable[[], None]:
        """The work of making the buffers for `take`, which can be done in a thread: the first copy then waits for none."""
        shapes: dict[str, Tensor] = {}
        seen: set[tuple[Any, ...]] = set()

        def note(tensor: Tensor, name: str) -> Tensor:
            if tensor.data_ptr() not in kept and _memory(tensor) not in seen:
                seen.add(_memory(tensor))
                shapes[name] = torch.empty_like(tensor, device="meta")
            return tensor

        _walk(tree, "", note)
        pinned = torch.accelerator.is_available()

        def make() -> None:
            self._buffers |= {name: _buffer(shape, pinned) for name, shape in shapes.items()}

        return make

    def take(self, tree: Any, kept: frozenset[int] = frozenset()) -> Any:
        """The same dictionaries and lists, with a copy of every tensor; tensors of one memory have one copy.

        kept: addresses of memory that nobody changes; such tensors are not copied.
        """
        taken: dict[tuple[Any, ...], Tensor] = {}

        def copied(tensor: Tensor, name: str) -> Tensor:
            if tensor.data_ptr() in kept:
                return tensor.detach()
            if _memory(tensor) not in taken:
                taken[_memory(tensor)] = self._fill(name, tensor.detach())
            return taken[_memory(tensor)]

        tree = _walk(tree, "", copied)
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        return tree

    def _fill(self, name: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = self._buffers[name] = _buffer(tensor, tensor.device.type != "cpu")
        return buffer.copy_(tensor, non_blocking=True)


def unchanging(model: nn.Module, optimizer: torch.optim.Optimizer) -> frozenset[int]:
    """The addresses of the parameters that no step of this optimizer can change."""
    learnt = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    frozen = (each for each in model.parameters() if not each.requires_grad and id(each) not in learnt)
    return frozenset(each.data_ptr() for each in frozen)


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    """What two tensors have in common that are one, such as tied embeddings."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _buffer(like: Tensor, pinned: bool) -> Tensor:
    """Host memory of this shape, every page of which is there."""
    return torch.empty(like.shape, dtype=like.dtype, device="cpu", pin_memory=pinned).zero_()


def _walk(value: Any, name: str, change: Callable[[Tensor, str], Tensor]) -> Any:
    """The tree with every tensor changed; a tensor is named by the way to it."""
    if isinstance(value, Tensor):
        return change(value, name)
    if isinstance(value, Mapping):
        return {key: _walk(inner, f"{name}/{key}", change) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        walked = [_walk(inner, f"{name}/{i}", change) for i, inner in enumerate(value)]
        return walked if isinstance(value, list) else tuple(walked)
    return value
