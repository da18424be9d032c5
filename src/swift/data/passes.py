"""This file knows in which order the rows of a stream come: data sets mixed, rows shuffled, pass after pass.

Every random choice of a pass comes from one `random.Random` seeded with the seed plus the number of the pass. A pass
is given out to its last row before the next one begins, so that each row is seen once per pass.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from random import Random
from typing import NamedTuple

from swift.core.errors import DataError
from swift.data.cursor import REF_SIZE, Reading, Ref
from swift.data.mixing import Stopping
from swift.data.records import START, Place, Record, Records


class StreamRow(NamedTuple):
    """A row that has been found and not been read. epoch: the pass it belongs to, from 0."""

    ref: Ref
    epoch: int
    record: Record


@dataclass(frozen=True)
class StreamedSet:
    """One data set of a stream.

    name: as it was given; messages name it.
    count: how many rows are taken from its beginning; None takes all.
    """

    name: str
    files: tuple[Records, ...]
    count: int | None


@dataclass(frozen=True)
class Order:
    """How the rows of several data sets become one sequence.

    probabilities: one per data set, for drawing the next one; None reads one data set after the other.
    buffer: the number of rows among which the next one is drawn; 0 leaves them in order.
    """

    seed: int
    probabilities: tuple[float, ...] | None
    stopping: Stopping
    buffer: int


class Passes:
    """The rows of all data sets, pass after pass, without end.

    epoch: the pass the next row belongs to; position: the number of rows given out in all passes; length: the rows of
    the last whole pass, None in the first one.

    Raises DataError when a data set has no rows.
    """

    def __init__(self, sets: Sequence[StreamedSet], order: Order) -> None:
        self.order = order
        self.epoch = 0
        self.position = 0
        self.length: int | None = None
        self._sets = [_Reader(number, each) for number, each in enumerate(sets)]
        self._given = 0
        self._random = Random()
        self._ended: set[int] = set()
        self._done = False
        self._buffer: list[StreamRow] = []
        self._refs = array("q")
        self._begin()

    def next(self) -> StreamRow:
        """The next row. The pass is closed with its last one, so that `epoch` is always that of the row to come."""
        while not self._done and len(self._buffer) < max(self.order.buffer, 1):
            row = self._read()
            self._buffer.append(row)
            self._refs.extend(row.ref)
        row = self._draw()
        self.position += 1
        self._given += 1
        if self._done and not self._buffer:
            self.epoch += 1
            self.length = self._given
            self._begin()
        return row

    @property
    def progress(self) -> float:
        """The passes that have been given out, with the share of the current one by the sizes of its files."""
        shares = [reader.share for reader in self._sets]
        if self.order.probabilities is None:
            sizes = [reader.size for reader in self._sets]
            share = sum(s * size for s, size in zip(shares, sizes, strict=True)) / sum(sizes)
        elif self.order.stopping == "first_exhausted":
            share = max(shares)
        else:
            share = min(1.0 if number in self._ended else share for number, share in enumerate(shares))
        read = self._given + len(self._buffer)
        return self.epoch + (1.0 if self._done else share) * (self._given / read if read else 0.0)

    def state(self) -> Reading:
        """The place up to which the rows are given out, cut off from what follows."""
        return Reading(
            self.epoch, self.position, self._given, self.length, self._random.getstate(),
            [reader.state for reader in self._sets], sorted(self._ended), self._done, self._refs[:],
        )  # fmt: skip

    def go_to(self, reading: Reading, records: Mapping[Ref, Record]) -> None:
        """Go on from a state; `records` holds the rows of its buffer."""
        self.epoch, self.position, self._given = reading.epoch, reading.position, reading.given
        self.length = reading.length
        self._random.setstate(reading.random)
        for reader, state in zip(self._sets, reading.sets, strict=True):
            reader.go_to(state)
        self._ended, self._done = set(reading.ended), reading.done
        self._buffer = [StreamRow(ref, epoch, records[ref]) for ref, epoch in reading.rows()]
        self._refs = reading.buffer[:]

    def load(self, refs: Iterable[Ref]) -> dict[Ref, Record]:
        """The records that these references mean, read file by file in ascending order."""
        found = {}
        for wanted in (list(group) for _, group in groupby(sorted(set(refs)), key=lambda ref: ref[:2])):
            records = self.file(wanted[0])
            places = [Place(ref.offset, ref.line) for ref in wanted]
            found.update(zip(wanted, records.at(places), strict=True))
        return found

    def file(self, ref: Ref) -> Records:
        """The file that a row stands in."""
        return self._sets[ref.dataset].set.files[ref.file]

    # --------------------------------------------------------------------------------------------------------- reading

    def _begin(self) -> None:
        self._given, self._done = 0, False
        self._ended.clear()
        self._random.seed(self.order.seed + self.epoch)
        for reader in self._sets:
            reader.begin()

    def _draw(self) -> StreamRow:
        """A row of the buffer, by chance where rows are shuffled; the last one takes its place."""
        if self.order.buffer:
            drawn = int(self._random.random() * len(self._buffer))
            self._buffer[drawn], self._buffer[-1] = self._buffer[-1], self._buffer[drawn]
            self._refs[REF_SIZE * drawn : REF_SIZE * (drawn + 1)] = self._refs[-REF_SIZE:]
        del self._refs[-REF_SIZE:]
        return self._buffer.pop()

    def _read(self) -> StreamRow:
        """The next row of the data set whose turn it is; notes whether it is the last of the pass."""
        number = self._turn()
        reader = self._sets[number]
        ref, record = reader.take()
        if reader.upcoming is None:
            self._ended.add(number)
            enough = 1 if self.order.probabilities and self.order.stopping == "first_exhausted" else len(self._sets)
            self._done = len(self._ended) >= enough
            if self.order.probabilities and not self._done:
                reader.begin()
        return StreamRow(ref, self.epoch, record)

    def _turn(self) -> int:
        if self.order.probabilities is None:
            return next(number for number in range(len(self._sets)) if number not in self._ended)
        [number] = self._random.choices(range(len(self._sets)), self.order.probabilities)
        return number


class _Reader:
    """Reads one data set from any of its rows on, one record ahead.

    upcoming: what `take` gives next; None at the end.
    """

    def __init__(self, number: int, each: StreamedSet) -> None:
        self.set = each
        self.size = sum(file.size for file in each.files)
        self.upcoming: tuple[Ref, Record] | None = None
        self._number = number
        self._file = 0
        self._place = START
        self._taken = 0
        self._scan: Iterator[Record] = iter(())

    def begin(self) -> None:
        """Go to the first row. Raises DataError when there is none."""
        self.go_to((0, START.offset, START.line, 0))
        if self.upcoming is None:
            raise DataError(f"{self.set.name} has no rows.")

    @property
    def state(self) -> tuple[int, int, int, int]:
        """File, offset and line to read on from, and how many rows were taken."""
        return (self._file, self._place.offset, self._place.line, self._taken)

    def go_to(self, state: tuple[int, int, int, int]) -> None:
        """Read on from a state."""
        self._file, self._place, self._taken = state[0], Place(state[1], state[2]), state[3]
        self._scan = self._opened()
        self._look_ahead()

    def take(self) -> tuple[Ref, Record]:
        """The next row."""
        assert self.upcoming is not None, "nothing is taken from a data set that has ended"
        taken = self.upcoming
        self._place = taken[1].end
        self._taken += 1
        self._look_ahead()
        return taken

    @property
    def share(self) -> float:
        """The share of the data set that was taken, by the sizes of its files, or of the rows that are wanted."""
        before = sum(file.size for file in self.set.files[: self._file])
        share = (before + self._place.offset) / max(self.size, 1)
        wanted = self._taken / self.set.count if self.set.count else 0.0
        return max(share, wanted)

    def _look_ahead(self) -> None:
        if self.set.count is not None and self._taken >= self.set.count:
            self.upcoming = None
            return
        record = next(self._scan, None)
        while record is None and self._file + 1 < len(self.set.files):
            self._file, self._place = self._file + 1, START
            self._scan = self._opened()
            record = next(self._scan, None)
        self.upcoming = record and (Ref(self._number, self._file, *record.place), record)

    def _opened(self) -> Iterator[Record]:
        """The records from the place on; nothing where a data set holds no file."""
        return self.set.files[self._file].scan(self._place) if self.set.files else iter(())
