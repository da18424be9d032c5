"""This file knows which process computes what when several processes share one sequence.

Axes: T tokens of a row.

P processes share a row. U of them exchange tokens for heads around attention (Ulysses, arXiv 2309.14509), which needs
key-value heads to divide; R = P / U groups of them pass keys and values around a ring (arXiv 2310.01889), which needs
nothing. The processes of a training are numbered so that neighbours share a row: rank = (row P) + (place in ring) U +
(place in Ulysses).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, new_group

from swift.core.errors import UsageError

OF_TOKENS = ("input_ids", "position_ids")
"""What a model is fed with, one value per token."""


@dataclass(frozen=True)
class Shape:
    """How P processes share a row: `ulysses` by heads times `ring` by tokens."""

    ulysses: int
    ring: int

    @property
    def size(self) -> int:
        """How many processes share a row."""
        return self.ulysses * self.ring

    @property
    def multiple(self) -> int:
        """What the number of tokens of a row must be a multiple of: a ring cuts a row into two pieces per place."""
        return self.size * (2 if self.ring > 1 else 1)


def shape_for(size: int, key_value_heads: int) -> Shape:
    """As many processes by heads as the heads allow, the rest in a ring."""
    ulysses = math.gcd(size, key_value_heads)
    return Shape(ulysses, size // ulysses)


@dataclass(frozen=True)
class Mesh:
    """The place of this process, and the groups it talks to.

    row: which row it works on, of `rows` at a time. place: among the processes that share it.
    group: all that share the row. ulysses, ring: those it exchanges heads with, and those it passes keys to.
    """

    shape: Shape
    rank: int
    rows: int
    group: ProcessGroup
    ulysses: ProcessGroup
    ring: ProcessGroup

    @property
    def row(self) -> int:
        """The number of the row among those that are computed at a time."""
        return self.rank // self.shape.size

    @property
    def leads(self) -> bool:
        """Whether this process speaks for all that share its row, where one word is enough."""
        return self.rank % self.shape.size == 0

    @property
    def place_in_ring(self) -> int:
        """Which part of the row attention is computed for here."""
        return self.rank % self.shape.size // self.shape.ulysses

    @property
    def place_in_ulysses(self) -> int:
        """Which share of the heads is computed here, and which share of that part is held outside attention."""
        return self.rank % self.shape.ulysses

    def part(self, place_in_ring: int, length: int) -> Tensor:
        """The tokens of a place in the ring, in their order: the r-th piece from the front and the r-th from the end.

        A causal attention has more to do for later tokens; so each place has as much to do as any other.
        """
        if self.shape.ring == 1:
            return torch.arange(length)
        pieces = torch.arange(length).chunk(2 * self.shape.ring)
        return torch.cat([pieces[place_in_ring], pieces[-1 - place_in_ring]])

    def own(self, length: int) -> Tensor:
        """The tokens that this process holds outside attention, `length / P` of them."""
        return self.order(length).chunk(self.shape.size)[self.rank % self.shape.size]

    def order(self, length: int) -> Tensor:
        """The tokens of a row, those of each process behind those of the one before."""
        return torch.cat([self.part(place, length) for place in range(self.shape.ring)])

    def own_part(self, by_token: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of values for each token of a row, [1, T] each, those of the tokens that this process holds: [1, T / P]."""
        return {name: values[:, self.own(values.shape[1]).to(values.device)] for name, values in by_token.items()}

    def fed(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """What the model is fed with here of what it is fed with for the whole row; borders stay those of the row."""
        return {**row, **self.own_part({name: row[name] for name in OF_TOKENS})}


def make_mesh(shape: Shape, rank: int, world_size: int, timeout: timedelta) -> Mesh:
    """The groups of processes; every process of the training must call it, with the same shape.

    A process that waits for another one longer than `timeout` fails.

    Raises UsageError when the processes cannot be divided into rows.
    """
    size = shape.size
    if world_size % size:
        raise UsageError(
            f"--sequence_parallel_size {size} needs a multiple of {size} processes (there are {world_size}). Set "
            f"NPROC_PER_NODE accordingly."
        )
    found: dict[str, ProcessGroup] = {}
    for kind, members in _memberships(shape, world_size):
        group = new_group(members, timeout)  # every process makes every group, in the same order
        if rank in members:
            assert isinstance(group, ProcessGroup), "a member of a group gets the group"
            found[kind] = group
    return Mesh(shape, rank, world_size // size, **found)


def _memberships(shape: Shape, world_size: int) -> list[tuple[str, list[int]]]:
    """Kind and ranks of all groups."""
    groups: list[tuple[str, list[int]]] = []
    for first in range(0, world_size, shape.size):
        ranks = list(range(first, first + shape.size))
        groups.append(("group", ranks))
        groups += [("ulysses", ranks[i : i + shape.ulysses]) for i in range(0, shape.size, shape.ulysses)]
        groups += [("ring", ranks[i :: shape.ulysses]) for i in range(shape.ulysses)]
    return groups
