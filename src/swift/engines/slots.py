"""This file knows the memory of rows that grow side by side: their keys and values, each row with a length of its own.

Axes: S slots, C places of a slot, A rows that are there, W places that are looked at, H heads, D channels of a head,
B rows of a batch, T tokens.

A row has a slot and writes at its own end, so a batch never carries the padding of rows that are gone: what one step
looks at is as wide as its longest row. A row that leaves gives its slot to the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

STEP = 128
"""Places by which slots grow at least."""

State = tuple[Tensor, Tensor]
"""Keys and values of one layer and one row, [T, H, D] each."""


@dataclass(slots=True)
class Places:
    """Where the rows of a step write and how far they look.

    targets: [A] the place of each row's next token, counted through all slots.
    count, width: A and W.
    """

    targets: Tensor
    count: int = 0
    width: int = 0


class SlotLayer(CacheLayerMixin):
    """The keys and values of one layer, [S, C, H, D]: a token's heads side by side, so that a step writes rows of memory."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places = places

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Memory is made by `Slots.add`, before any forward pass."""
        raise AssertionError("a step needs rows, and rows bring their memory")

    def room(self, states: State, slots: int, capacity: int) -> None:
        """Have this many slots of this many places; what was there stays."""
        self.keys = _grown(self.keys, states[0], slots, capacity)
        self.values = _grown(self.values, states[1], slots, capacity)
        self.is_initialized = True

    def put(self, slot: int, states: State) -> None:
        """Fill a slot from its beginning."""
        for memory, row in zip(self._memory(), states, strict=True):
            memory[slot, : len(row)] = row

    def take(self, slot: int, begin: int, end: int) -> State:
        """What a slot holds from `begin` to `end`, as it is there."""
        keys, values = self._memory()
        return keys[slot, begin:end], values[slot, begin:end]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a slot onto another one."""
        for memory in self._memory():
            memory[target, :length] = memory[source, :length]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Write one token per row, [A, H, 1, D]; returns all that may be looked at, [A, H, W, D]."""
        seen = []
        for memory, states in zip(self._memory(), (key_states, value_states), strict=True):
            memory.flatten(0, 1).index_copy_(0, self.places.targets, states.squeeze(2))
            seen.append(memory[: self.places.count, : self.places.width].transpose(1, 2))
        return seen[0], seen[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002 - a step has one token per row
        """The width that is looked at, from place 0."""
        return self.places.width, 0

    def get_seq_length(self) -> int:
        """Tokens before this one in the longest row."""
        return self.places.width - 1

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def _memory(self) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None, "rows bring their memory"  # noqa: PT018
        return self.keys, self.values


def _grown(memory: Tensor | None, like: Tensor, slots: int, capacity: int) -> Tensor:
    grown = torch.zeros(slots, capacity, *like.shape[1:], dtype=like.dtype, device=like.device)
    if memory is not None:
        grown[: len(memory), : memory.shape[1]] = memory
    return grown


class Slots:
    """Rows that take their next tokens together, and the memory they share.

    lengths: tokens that each row has in memory, A of them.
    cache: what the model is given as its past; good for one token per row.
    """

    def __init__(self, layers: int, device: torch.device) -> None:
        self._places = Places(torch.zeros(0, dtype=torch.long, device=device))
        self._layers = [SlotLayer(self._places) for _ in range(layers)]
        self.cache = Cache(layers=[*self._layers])
        self.lengths: list[int] = []
        self._lengths_A = torch.zeros(0, dtype=torch.long, device=device)
        self._slots = self._capacity = 0
        self._device = device

    def __len__(self) -> int:
        return len(self.lengths)

    def add(self, states: Sequence[State]) -> None:
        """A row more, behind the others, with what each layer remembers of it."""
        length = len(states[0][0])
        self._make_room(states, len(self) + 1, length + 1)
        for layer, state in zip(self._layers, states, strict=True):
            layer.put(len(self), state)
        self.lengths.append(length)
        self._relength()

    def remove(self, place: int) -> None:
        """Let a row go; the last one takes its place."""
        last = len(self) - 1
        if place != last:
            for layer in self._layers:
                layer.move(last, place, self.lengths[last])
            self.lengths[place] = self.lengths[last]
        self.lengths.pop()
        self._relength()
        if not self.lengths:
            for layer in self._layers:
                layer.keys = layer.values = None
            self._slots = self._capacity = 0

    def states(self, place: int, begin: int = 0, end: int | None = None) -> list[State]:
        """What each layer remembers of a row, or of a part of it: the memory itself, which the next step changes."""
        stop = self.lengths[place] if end is None else end
        return [layer.take(place, begin, stop) for layer in self._layers]

    def begin_step(self) -> tuple[Tensor, Tensor]:
        """Make ready for one token more of every row: its position [A, 1] and what it may look at [A, W]."""
        places = self._places
        places.count, places.width = len(self), max(self.lengths) + 1
        if places.width > self._capacity:
            self._make_room(self.states(0), len(self), places.width)
        numbers = torch.arange(max(places.width, places.count), device=self._device)
        places.targets = numbers[: places.count] * self._capacity + self._lengths_A
        return self._lengths_A[:, None], numbers[: places.width] <= self._lengths_A[:, None]

    def end_step(self) -> None:
        """Every row has one token more."""
        self.lengths = [length + 1 for length in self.lengths]
        self._lengths_A = self._lengths_A + 1

    def _relength(self) -> None:
        self._lengths_A = torch.tensor(self.lengths, dtype=torch.long, device=self._device)

    def _make_room(self, states: Sequence[State], slots: int, length: int) -> None:
        if slots <= self._slots and length <= self._capacity:
            return
        if slots > self._slots:
            self._slots = max(slots, self._slots + self._slots // 2)
        if length > self._capacity:
            self._capacity = -(-max(length, self._capacity * 5 // 4) // STEP) * STEP
        for layer, state in zip(self._layers, states, strict=True):
            layer.room(state, self._slots, self._capacity)
