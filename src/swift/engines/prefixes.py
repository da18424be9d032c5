"""This file knows what prompts have in common: beginnings that were computed once are remembered, and given to others.

A text is cut into blocks of tokens. A block is known by its own tokens and all before it, so two prompts that begin alike
share their first blocks, and what either says later does not matter.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch

from swift.engines.slots import State

BLOCK = 32
"""Tokens of a block."""
BYTES = 512 * 2**20
"""Memory for beginnings that are remembered."""


@dataclass(frozen=True, slots=True)
class Block:
    """What every layer remembers of one block."""

    layers: list[State]

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(part.numel() * part.element_size() for states in self.layers for part in states)


class Prefixes:
    """The beginnings of texts that were computed lately, up to `limit` bytes; the least used ones go first.

    age: how often everything was forgotten. What was begun at another age is not worth remembering.
    """

    def __init__(self, limit: int = BYTES) -> None:
        self.limit = limit
        self.size = 0
        self.age = 0
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()

    def find(self, keys: Sequence[bytes]) -> list[Block]:
        """The blocks that are known, from the first one on without a gap."""
        found: list[Block] = []
        for key in keys:
            block = self._blocks.get(key)
            if block is None:
                break
            self._blocks.move_to_end(key)
            found.append(block)
        return found

    def remember(self, keys: Sequence[bytes], states: Callable[[int, int], list[State]]) -> None:
        """Keep the blocks of a text that are not known yet; `states(begin, end)` is what layers remember of its tokens."""
        for number, key in enumerate(keys):
            if key not in self._blocks:
                made = Block([(k.clone(), v.clone()) for k, v in states(number * BLOCK, (number + 1) * BLOCK)])
                self._blocks[key] = made
                self.size += made.size
        # The end of a text counts as used before its beginning, so that it is forgotten first: without what is before,
        # it is worth nothing.
        for key in reversed(keys):
            self._blocks.move_to_end(key)
        while self.size > self.limit:
            _, forgotten = self._blocks.popitem(last=False)
            self.size -= forgotten.size

    def clear(self) -> None:
        """Forget everything: the weights have changed."""
        self._blocks.clear()
        self.size = 0
        self.age += 1


def block_keys(token_ids: Sequence[int], world: str) -> list[bytes]:
    """The keys of the whole blocks of a text; `world` is what else the memory depends on: the adapter.

    A cryptographic digest, because a caller who found two texts with one key would be answered as if to the other.
    """
    keys: list[bytes] = []
    before = world.encode()
    for start in range(0, len(token_ids) - BLOCK + 1, BLOCK):
        before = sha256(before + array("q", token_ids[start : start + BLOCK]).tobytes()).digest()
        keys.append(before)
    return keys


def joined(blocks: Sequence[Block]) -> list[State]:
    """The blocks of a beginning as one."""
    layers = zip(*(block.layers for block in blocks), strict=True)
    return [
        (torch.cat([keys for keys, _ in layer], dim=1), torch.cat([values for _, values in layer], dim=1))
        for layer in layers
    ]
