"""This file knows the memory of rows that grow side by side: their keys and values, each row with a length of its own.

Axes: S slots, C places of a slot, A rows that are there, W places that are looked at, H heads, D channels of a head,
B rows of a batch, T tokens.

A row has a slot and writes at its own end, so a batch never carries the padding of rows that are gone: what one step
looks at is as wide as its longest row. A row that leaves gives its slot to the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

STEP = 128
"""Places by which slots grow at least."""

State = tuple[Tensor, Tensor]
"""Keys and values of one layer and one row, [H, T, D] each."""


class Places:
    """Where the rows of a step write and how far they look.

    lengths_A: tokens that each row has.
    count, width: A and W.
    """

    def __init__(self, device: torch.device) -> None:
        self.lengths_A = torch.zeros(0, dtype=torch.long, device=device)
        self.capacity = 0
        self.count = self.width = 0
        self._targets: dict[int, Tensor] = {}

    def begin(self, width: int) -> None:
        """A new step, that looks at so many places."""
        self.count, self.width = len(self.lengths_A), width
        self._targets.clear()

    def targets(self, heads: int) -> Tensor:
        """[A * H] the place of each row's next token for each head, counted through all slots."""
        if heads not in self._targets:
            head_AH = torch.arange(self.count * heads, device=self.lengths_A.device).view(self.count, heads)
            self._targets[heads] = (head_AH * self.capacity + self.lengths_A[:, None]).flatten()
        return self._targets[heads]


class SlotLayer(CacheLayerMixin):
    """The keys and values of one layer, [S, H, C, D]."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places = places

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:  # noqa: ARG002 (as a cache calls it)
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
            memory[slot, :, : row.shape[1]] = row

    def take(self, slot: int, begin: int, end: int) -> State:
        """What a slot holds from `begin` to `end`, as it is there."""
        keys, values = self._memory()
        return keys[slot, :, begin:end], values[slot, :, begin:end]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a slot onto another one."""
        for memory in self._memory():
            memory[target, :, :length] = memory[source, :, :length]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ARG002 (as a model calls it)
        """Write one token per row, [A, H, 1, D]; returns all that may be looked at, [A, H, W, D]."""
        keys, values = self._memory()
        places = self.places
        for memory, states in ((keys, key_states), (values, value_states)):
            heads = memory.shape[1]
            memory.flatten(0, 2).index_copy_(0, places.targets(heads), states.reshape(-1, memory.shape[3]))
        seen = slice(places.count), slice(None), slice(places.width)
        return keys[seen], values[seen]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002 (a step has one token per row)
        """The width that is looked at, from place 0."""
        return self.places.width, 0

    def get_seq_length(self) -> int:
        """Tokens before this one in the longest row."""
        return self.places.width - 1

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def _memory(self) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None, "rows bring their memory"  # noqa: PT018 (both narrow types)
        return self.keys, self.values


def _grown(memory: Tensor | None, like: Tensor, slots: int, capacity: int) -> Tensor:
    grown = torch.zeros(slots, like.shape[0], capacity, like.shape[2], dtype=like.dtype, device=like.device)
    if memory is not None:
        grown[: len(memory), :, : memory.shape[2]] = memory
    return grown


class Slots:
    """Rows that take their next tokens together, and the memory they share.

    lengths: tokens that each row has in memory, A of them.
    cache: what the model is given as its past; good for one token per row.
    """

    def __init__(self, layers: int, device: torch.device) -> None:
        self._places = Places(device)
        self._layers = [SlotLayer(self._places) for _ in range(layers)]
        self.cache = Cache(layers=[*self._layers])
        self.lengths: list[int] = []
        self._slots = 0
        self._device = device

    def __len__(self) -> int:
        return len(self.lengths)

    def add(self, states: Sequence[State]) -> None:
        """A row more, behind the others, with what each layer remembers of it."""
        length = states[0][0].shape[1]
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
            self._slots = self._places.capacity = 0

    def states(self, place: int, begin: int = 0, end: int | None = None) -> list[State]:
        """What each layer remembers of a row, or of a part of it: the memory itself, which the next step changes."""
        stop = self.lengths[place] if end is None else end
        return [layer.take(place, begin, stop) for layer in self._layers]

    def begin_step(self) -> tuple[Tensor, Tensor]:
        """Make ready for one token more of every row: its position [A, 1] and what it may look at [A, W]."""
        width = max(self.lengths) + 1
        if width > self._places.capacity:
            self._make_room(self.states(0), len(self), width)
        self._places.begin(width)
        lengths_A1 = self._places.lengths_A[:, None]
        return lengths_A1, torch.arange(width, device=self._device) <= lengths_A1

    def end_step(self) -> None:
        """Every row has one token more."""
        self.lengths = [length + 1 for length in self.lengths]
        self._places.lengths_A = self._places.lengths_A + 1

    def _relength(self) -> None:
        self._places.lengths_A = torch.tensor(self.lengths, dtype=torch.long, device=self._device)

    def _make_room(self, states: Sequence[State], slots: int, length: int) -> None:
        places = self._places
        if slots <= self._slots and length <= places.capacity:
            return
        if slots > self._slots:
            self._slots = max(slots, self._slots + self._slots // 2)
        if length > places.capacity:
            places.capacity = -(-max(length, places.capacity * 5 // 4) // STEP) * STEP
        for layer, state in zip(self._layers, states, strict=True):
            layer.room(state, self._slots, places.capacity)
