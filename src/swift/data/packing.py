"""This file knows how rows of ragged lengths are put together whole into packs of one capacity.

Best fit, decreasing (Johnson, Near-optimal bin packing algorithms, 1973): the longest row first, each into the fullest
pack that still has room for it. It needs at most 11/9 of the fewest packs plus one, and on ragged rows hardly more
than the fewest.

Nothing heavy is imported here, so that the processes of `--packing_num_proc` start at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from multiprocessing import get_context
from typing import TYPE_CHECKING, Protocol

import numpy

from swift.core.errors import UsageError
from swift.core.logs import get_logger

if TYPE_CHECKING:
    from swift.chat.render import Sample

_BITS = 512


class Samples(Protocol):
    """Samples that can be read by position, and whose lengths are known before."""

    def __getitem__(self, index: int) -> Sample | list[Sample]:
        """The sample at this position, or the samples of a row that stay together."""
        ...

    @property
    def lengths(self) -> Sequence[int]:
        """The number of tokens of every sample, in order."""
        ...


class PackedSet:
    """Packs of samples: every item is a list of whole samples that together fill about one sequence.

    An index that carries an epoch (`epoch * length + pack`) hands it on to the samples.

    positions: [N], the positions in `samples` of the samples of all packs, end to end.
    borders: [number of packs + 1], where each pack begins and the last one ends.
    """

    def __init__(self, samples: Samples, packs: Sequence[Sequence[int]]) -> None:
        self.samples = samples
        self.positions = numpy.fromiter(chain.from_iterable(packs), numpy.int64)
        self.borders = numpy.cumsum([0, *map(len, packs)])

    def __len__(self) -> int:
        return len(self.borders) - 1

    def __getitem__(self, index: int) -> list[Sample] | list[list[Sample]]:
        epoch, pack = divmod(index, len(self))
        first = epoch * len(self.positions)
        return [self.samples[first + position] for position in self.pack(pack)]  # type: ignore[return-value]  # all alike

    def pack(self, index: int) -> list[int]:
        """The positions of the samples of a pack."""
        return self.positions[self.borders[index] : self.borders[index + 1]].tolist()

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of every pack, in order."""
        lengths = numpy.asarray(self.samples.lengths)[self.positions]
        return numpy.add.reduceat(lengths, self.borders[:-1]).tolist()


def pack_samples(samples: Samples, capacity: int | None, num_proc: int = 1) -> PackedSet:
    """The samples in packs of at most `capacity` tokens, and a line in the log that says how full they are.

    Raises UsageError without a capacity, and when a sample is longer than it: samples are packed whole.
    """
    capacity = pack_capacity(capacity)
    lengths = samples.lengths
    longest = max(lengths)
    if longest > capacity:
        count = sum(length > capacity for length in lengths)
        raise UsageError(
            f"--packing_length {capacity} is shorter than {count} of {len(lengths)} rows, the longest of which has "
            f"{longest} tokens. Rows are packed whole: raise --packing_length, or cut rows with --max_length {capacity}."
        )
    packs = pack_in_processes(lengths, capacity, num_proc)
    get_logger().info(
        "packing: %d rows in %d packs of at most %d tokens, %.1f %% full. An epoch has %.1f times fewer steps; look at "
        "--gradient_accumulation_steps and --learning_rate again",
        len(lengths), len(packs), capacity, 100 * efficiency(lengths, packs, capacity), len(lengths) / len(packs),
    )  # fmt: skip
    return PackedSet(samples, packs)


def pack_capacity(packing_length: int | None) -> int:
    """The tokens of a pack. Raises UsageError when neither the command line nor the model says how many."""
    if packing_length is None:
        raise UsageError(
            "--packing needs a length, which this model does not name. Say --max_length or --packing_length."
        )
    return packing_length


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """The positions of `lengths` in packs, the lengths of each summing up to `capacity` at most.

    The result depends on the arguments alone. Positions ascend within a pack, and packs ascend by their first
    position, so that rows which are not shuffled stay about in order.

    Every length is between 1 and `capacity`; what is one row to the trainer (both sides of a preference pair, say) is
    one length, the sum of its parts. Takes time proportional to the number of lengths, once they are sorted.
    """
    lengths_N = numpy.asarray(lengths, dtype=numpy.int64)
    if not len(lengths_N):
        return []
    shortest, longest = int(lengths_N.min()), int(lengths_N.max())
    assert shortest >= 1, "a row without tokens cannot be packed"
    assert longest <= capacity, f"a row of {longest} tokens does not fit into a pack of {capacity}"
    order = numpy.argsort(-lengths_N, kind="stable")
    values, counts = numpy.unique(lengths_N, return_counts=True)
    order_of_equals = numpy.split(order, numpy.cumsum(counts[::-1])[:-1])
    packs = _best_fit(values[::-1].tolist(), [rows.tolist() for rows in order_of_equals], capacity)
    for rows in packs:
        rows.sort()
    packs.sort(key=lambda rows: rows[0])
    return packs


def pack_in_processes(lengths: Sequence[int], capacity: int, num_proc: int) -> list[list[int]]:
    """As `pack`, but `num_proc` consecutive parts of the list are packed each by itself, side by side.

    Rows of different parts never come together: another number of processes gives other packs.
    """
    num_proc = min(num_proc, len(lengths))
    if num_proc <= 1:
        return pack(lengths, capacity)
    parts = numpy.array_split(numpy.asarray(lengths, dtype=numpy.int64), num_proc)
    starts = numpy.cumsum([0, *(len(part) for part in parts)]).tolist()
    # Processes are started afresh, not forked: this one has threads of torch and of the tokenizer.
    with ProcessPoolExecutor(num_proc, mp_context=get_context("spawn")) as pool:
        packed = list(pool.map(pack, parts, [capacity] * num_proc))
    return [[start + row for row in rows] for start, packs in zip(starts[:-1], packed, strict=True) for rows in packs]


def efficiency(lengths: Sequence[int], packs: Sequence[Sequence[int]], capacity: int) -> float:
    """The share of the tokens of all packs that is filled, between 0 and 1."""
    return sum(lengths) / (len(packs) * capacity) if packs else 1.0


def _best_fit(lengths: list[int], rows_of: list[list[int]], capacity: int) -> list[list[int]]:
    """Best fit for distinct lengths in descending order, with the rows of each length.

    Rows of one length go together: the fullest pack with room for one is still the fullest with room for the next, so
    a pack takes as many of them as it can, and so does every other pack with the same room.
    """
    packs: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = _Rooms(capacity)
    for length, rows in zip(lengths, rows_of, strict=True):
        next_row = 0
        while next_row < len(rows):
            room = rooms.smallest_from(length)
            if room is None:
                room, chosen = capacity, len(packs)
                packs.append([])
            else:
                chosen = with_room[room].pop()
                if not with_room[room]:
                    rooms.remove(room)
            taken = rows[next_row : next_row + room // length]
            next_row += len(taken)
            packs[chosen] += taken
            left = room - len(taken) * length
            if left:
                with_room[left].append(chosen)
                rooms.add(left)
    return packs


class _Rooms:
    """A set of numbers up to `largest`, in which the next number from any place is found in constant time."""

    def __init__(self, largest: int) -> None:
        self._words = [0] * (largest // _BITS + 1)
        self._filled = 0

    def add(self, number: int) -> None:
        """Put a number in."""
        word, bit = divmod(number, _BITS)
        self._words[word] |= 1 << bit
        self._filled |= 1 << word

    def remove(self, number: int) -> None:
        """Take a number out that is in."""
        word, bit = divmod(number, _BITS)
        self._words[word] ^= 1 << bit
        if not self._words[word]:
            self._filled ^= 1 << word

    def smallest_from(self, number: int) -> int | None:
        """The smallest number that is in and not below `number`; None when there is none."""
        word, bit = divmod(number, _BITS)
        here = self._words[word] >> bit
        if here:
            return number + _lowest(here)
        beyond = self._filled >> (word + 1)
        if not beyond:
            return None
        word += 1 + _lowest(beyond)
        return word * _BITS + _lowest(self._words[word])


def _lowest(bits: int) -> int:
    """The place of the lowest bit that is set."""
    return (bits & -bits).bit_length() - 1
