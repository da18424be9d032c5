"""This file knows the samples of each data set of a run: made now, or taken from the shelf where they are already.

A data set of which all rows are used is gone through once. Of one with a number (`rows.jsonl#1000`) the readable rows
are counted first, and only those that were drawn are rendered. Nothing is kept in memory but numbers.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from swift.core.errors import DataError
from swift.core.logs import get_logger
from swift.data.cache import Entry, Shelf, hash_of_code, hash_of_file, hashed
from swift.data.cached import CachedStock
from swift.data.conversations import Account, Batch, Item, ItemReader, batches
from swift.data.formats import Met, as_row, write_rows
from swift.data.library import Reading
from swift.data.preparer import Job, Prepared, Progress, changed
from swift.data.report import Report
from swift.data.rows import BadRow
from swift.data.samples import JoinedStore, SampleStore, Store, StoreWriter
from swift.data.workers import Crew
from swift.options.row_sources import Source

Numbers = NDArray[numpy.int64]

_BAD, _LONG, _ROWS = "bad.jsonl", "long.jsonl", "rows.jsonl"


@dataclass(frozen=True)
class Kitchen:
    """What all data sets of a run share.

    crew: makes samples. reader: reads records in this process. shelf: where what is prepared lies.
    report: the account of the run. recipe: plain values that decide what the crew makes of a row.
    """

    crew: Crew[Job, Prepared]
    reader: ItemReader
    shelf: Shelf
    report: Report
    recipe: Callable[[], Any]


class Stock:
    """The samples of one data set.

    source: as it was asked for. first: the number of its first row among all rows of the run.
    length: how many of its rows can be read.
    store: the samples, once they are made.
    """

    def __init__(self, source: Source, readings: Sequence[Reading], places: Sequence[int], first: int,
                 kitchen: Kitchen) -> None:  # fmt: skip
        self.source = source
        self.first = first
        self._readings = readings
        self._places = places
        self._kitchen = kitchen
        self._store: SampleStore | None = None
        self._wanted: Numbers | None = None
        self._states = [_state(each.file) for each in readings]
        entry = self._entry(None if source.count is None else numpy.zeros(0, numpy.int64), name=f"the rows of {source}")
        self._readable: list[int] = entry.facts["readable"]
        self.length = self._accounted(entry, is_first=True)
        if source.count is None:
            self._store = SampleStore.open(entry.folder)
            kitchen.shelf.lend(entry, self._store)

    @property
    def store(self) -> Store:
        """The samples that were made."""
        assert self._store is not None, "prepare comes first"
        return self._store

    def prepare(self, used: Numbers) -> None:
        """Make samples of the rows with these numbers, unless samples of all rows are there already."""
        if self._store is not None:
            return
        self._wanted = numpy.unique(used) - self.first
        entry = self._entry(self._wanted, name=f"the samples of {self.source}")
        self._accounted(entry, is_first=False)
        self._store = SampleStore.open(entry.folder)
        self._kitchen.shelf.lend(entry, self._store)

    def samples_of(self, rows: Numbers) -> tuple[Numbers, Numbers]:
        """Where the samples of these rows begin in the store, and how many each has."""
        local = rows - self.first
        stored = local if self._wanted is None else numpy.searchsorted(self._wanted, local)
        assert self._store is not None, "prepare comes first"
        starts = self._store.row_borders[stored]
        return starts, self._store.row_borders[stored + 1] - starts

    def row(self, number: int) -> dict[str, Any]:
        """The row with this number, in the messages format, where rows are kept beside their samples; else {}."""
        local = number - self.first
        assert self._store is not None, "prepare comes first"
        return self._store.row(local if self._wanted is None else int(numpy.searchsorted(self._wanted, local)))

    def rows(self, numbers: Numbers) -> list[dict[str, Any]]:
        """These rows in the messages format, in this order; they are read again."""
        local = numbers - self.first
        wanted = numpy.unique(local)
        if not len(wanted):
            return []
        contents = lambda: {**self._contents(wanted), "as": "rows"}  # noqa: E731 (its caller wants a function)
        entry = self._kitchen.shelf.entry(
            f"the validation rows of {self.source}", contents, lambda at: self._write(at, wanted)
        )
        with (entry.folder / _ROWS).open(encoding="utf-8") as file:
            found = [json.loads(line) for line in file]
        self._kitchen.shelf.discard()
        return [found[index] for index in numpy.searchsorted(wanted, local)]

    def items(self, numbers: Numbers) -> list[Item]:
        """The rows with these ascending numbers, as they are read; the file is read again as far as they stand."""
        return list(self._wanted_items(numbers - self.first)) if len(numbers) else []

    # ------------------------------------------------------------------------------------------------------- the shelf

    def _entry(self, wanted: Numbers | None, *, name: str) -> Entry:
        """The samples of the wanted rows; of all with None, and of none the account of what can be read."""
        return self._kitchen.shelf.entry(name, lambda: self._contents(wanted), lambda at: self._make(at, wanted))

    def _contents(self, wanted: Numbers | None) -> dict[str, Any]:
        """All that decides what the samples are."""
        return {
            "code": hash_of_code(),
            "files": [[str(each.file), hash_of_file(each.file), _described(each)] for each in self._readings],
            "wanted": None if wanted is None else hashed(wanted.tolist()),
            "recipe": self._kitchen.recipe(),
        }

    def _make(self, folder: Path, wanted: Numbers | None) -> dict[str, Any]:
        """Prepare rows and write their samples. Raises DataError at a bad row when that is an error."""
        facts = Facts(folder, strict=self._kitchen.report.strict)
        progress = Progress()
        with StoreWriter(folder) as writer, facts:
            for made in self._kitchen.crew.results(self._jobs(wanted)):
                writer.add(made.packed)
                facts.add(made)
                if words := progress.add(made.readable, len(made.packed.tokens)):
                    get_logger().info("%s: %s", self.source, words)
        self._check_unchanged()
        return facts.as_dict()

    def _check_unchanged(self) -> None:
        """Raise DataError when a file is not what it was when its rows were counted or its hash was taken."""
        for reading, state in zip(self._readings, self._states, strict=True):
            if _state(reading.file) != state:
                raise changed(reading.file)

    def _jobs(self, wanted: Numbers | None) -> Iterator[Job]:
        """The records of all files; records of which no row is wanted are not read, once their number is known."""
        place = {id(reading): place for reading, place in zip(self._readings, self._places, strict=True)}
        if wanted is None or not len(wanted):
            chosen = None if wanted is None else ()
            yield from (Job(each.records, place[id(each.reading)], chosen) for each in batches(self._readings))
            return
        for batch, chosen in self._with_wanted(wanted):
            yield Job(batch.records, place[id(batch.reading)], tuple(chosen.tolist()))

    def _with_wanted(self, wanted: Numbers) -> Iterator[tuple[Batch, Numbers]]:
        """The records that hold wanted rows, with the places of these rows among those that can be read."""
        self._check_unchanged()
        begin, counted = 0, iter(self._readable)
        for batch in batches(self._readings):
            readable = next(counted, None)
            if readable is None:
                raise changed(batch.reading.file)
            first, last = numpy.searchsorted(wanted, (begin, begin + readable))
            if last > first:
                yield batch, wanted[first:last] - begin
            begin += readable
            if begin > wanted[-1]:
                return

    def _write(self, folder: Path, wanted: Numbers) -> dict[str, Any]:
        """Write the wanted rows themselves."""
        write_rows(folder / _ROWS, (as_row(item.conversation) for item in self._wanted_items(wanted)))
        self._check_unchanged()
        return {}

    def _wanted_items(self, wanted: Numbers) -> Iterator[Item]:
        for batch, chosen in self._with_wanted(wanted):
            readable = (outcome for outcome in self._kitchen.reader.read(batch) if isinstance(outcome, Item))
            items = list(islice(readable, int(chosen[-1]) + 1))
            yield from (items[index] for index in chosen)

    # ----------------------------------------------------------------------------------------------------- the account

    def _accounted(self, entry: Entry, *, is_first: bool) -> int:
        """Enter what became of the rows into the report. Returns how many rows can be read; raises DataError if none."""
        report, facts = self._kitchen.report, entry.facts
        self._kitchen.reader.met.add(met_of(facts))
        account = Account(self.source, report)
        for was_unreadable, row in bad_rows(entry.folder):
            if not was_unreadable:
                report.drop(row)  # counted among the readable ones
            elif is_first:
                account.drop(row)
        for row in read_bad(entry.folder / _LONG):
            report.leave_out(row)
        report.cut += facts["cut"]
        if not is_first:
            return self.length
        account.keep(sum(facts["readable"]))
        return account.finish()


class Facts:
    """What became of the rows of a data set, written down so that a later run can say it again."""

    def __init__(self, folder: Path, *, strict: bool) -> None:
        self._report = Report(strict=strict)
        self._bad = (folder / _BAD).open("w", encoding="utf-8")
        self._long = (folder / _LONG).open("w", encoding="utf-8")
        self._readable: list[int] = []
        self._met = Met()
        self._cut = 0

    def add(self, made: Prepared) -> None:
        """What became of some more records. Raises DataError at a bad one when that is an error."""
        for was_unreadable, row in made.bad:
            if self._report.strict:
                self._report.drop(row)
            self._bad.write(json.dumps([was_unreadable, asdict(row)]) + "\n")
        self._long.writelines(json.dumps(asdict(row)) + "\n" for row in made.long)
        self._readable.append(made.readable)
        self._met.add(made.met)
        self._cut += made.cut

    def as_dict(self) -> dict[str, Any]:
        """The numbers, as JSON can hold them."""
        met = {"columns": sorted(self._met.columns), "unread_keys": sorted(self._met.unread_keys)}
        return {"readable": self._readable, "cut": self._cut, "met": {**met, "introduced": self._met.introduced}}

    def __enter__(self) -> Facts:
        return self

    def __exit__(self, *_: object) -> None:
        self._bad.close()
        self._long.close()


def met_of(facts: dict[str, Any]) -> Met:
    """What the rows of an entry had."""
    met = facts["met"]
    return Met(set(met["columns"]), set(met["unread_keys"]), met["introduced"])


def bad_rows(folder: Path) -> Iterator[tuple[bool, BadRow]]:
    """The records of an entry that could not be used; with each, whether it could not even be read."""
    with (folder / _BAD).open(encoding="utf-8") as file:
        for line in file:
            was_unreadable, row = json.loads(line)
            yield was_unreadable, BadRow(**row)


def read_bad(file: Path) -> Iterator[BadRow]:
    """The rows that a file of an entry names."""
    with file.open(encoding="utf-8") as lines:
        yield from (BadRow(**json.loads(line)) for line in lines)


def _state(file: Path) -> tuple[int, int, int]:
    """What tells a file from a later version of it. Raises DataError when it is gone."""
    try:
        state = file.stat()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}.") from error
    return state.st_size, state.st_mtime_ns, state.st_ino


def _described(reading: Reading) -> str:
    """How the rows of a file are prepared, so that another preparation has another description."""
    try:
        return hashed(pickle.dumps(reading.recipe).hex())
    except (pickle.PicklingError, AttributeError, TypeError):
        return f"{id(reading.recipe)} of {hashed(str(object()))}"  # nothing that comes again


def located(stocks: Sequence[Stock | CachedStock], rows: Numbers) -> tuple[Store, Numbers, Numbers]:
    """All samples as one store; where the samples of each of these rows begin in it, and how many there are."""
    starts, counts = numpy.zeros_like(rows), numpy.zeros_like(rows)
    offset = 0
    for stock in stocks:
        mine = (rows >= stock.first) & (rows < stock.first + stock.length)
        begin, count = stock.samples_of(rows[mine])
        starts[mine], counts[mine] = begin + offset, count
        offset += len(stock.store)
    store = stocks[0].store if len(stocks) == 1 else JoinedStore([stock.store for stock in stocks])
    return store, starts, counts


def joined(stocks: Sequence[Stock | CachedStock], rows: Numbers) -> tuple[Store, Numbers]:
    """All samples as one store, and the places of the samples of these rows in it, in order."""
    store, starts, counts = located(stocks, rows)
    within = numpy.arange(counts.sum()) - numpy.repeat(numpy.cumsum(counts) - counts, counts)
    return store, numpy.repeat(starts, counts) + within
