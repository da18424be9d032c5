"""This file knows how the data sets of a command line become conversations: read, sampled, split, mixed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any

from swift.chat.messages import Conversation
from swift.core.errors import DataError
from swift.core.logs import get_logger
from swift.data.cached import cached_rows
from swift.data.files import LINE_READERS, Block, blocks, read_file
from swift.data.formats import Met
from swift.data.library import HubAccess, Library, Reading
from swift.data.mixing import concatenate, interleave, split
from swift.data.reading import RowReader
from swift.data.report import Report
from swift.data.rows import BadRow, Row, RowError
from swift.options.data import DataOptions
from swift.options.row_sources import Source, parse_source

_RECORDS_PER_BATCH = 1000


@dataclass(slots=True)
class Item:
    """A conversation and the record it comes from.

    values: the record as it was read, or None when nobody asked for it.
    """

    conversation: Conversation
    file: str
    line: int
    values: dict[str, Any] | None


@dataclass
class LoadedConversations:
    """What `--dataset` and `--val_dataset` hold.

    items: every row that could be read, of all data sets.
    train_order: indices into `items` to train on, in order; a row may stand there several times.
    val_order: indices into `items` to validate on; None when there is nothing to validate on.
    report: what was left out.
    """

    items: list[Item]
    train_order: list[int]
    val_order: list[int] | None
    report: Report

    @property
    def train(self) -> list[Item]:
        """The rows to train on, in order."""
        return [self.items[index] for index in self.train_order]

    @property
    def val(self) -> list[Item] | None:
        """The rows to validate on or to infer from, in order; None when there are none."""
        return None if self.val_order is None else [self.items[index] for index in self.val_order]


def load_conversations(
    options: DataOptions, access: HubAccess | None = None, *, keep_values: bool = True
) -> LoadedConversations:
    """As `read_conversations`, for those who want conversations and no more; logs what was left out."""
    loaded = read_conversations(options, access, keep_values=keep_values)
    loaded.report.train, loaded.report.val = len(loaded.train_order), len(loaded.val_order or ())
    loaded.report.log()
    return loaded


def read_conversations(
    options: DataOptions, access: HubAccess | None = None, *, keep_values: bool
) -> LoadedConversations:
    """The conversations of `--dataset` and `--val_dataset`, sampled, split, mixed and shuffled as the options say.

    The result depends on the files and the options alone, so that all processes of a run hold the same.

    access: how hubs are asked. keep_values: whether `Item.values` holds the record, for files of results.
    Raises DataError when a data set cannot be read or has no row that can be used.
    """
    started = time.perf_counter()
    reader, report, items = ItemReader(options, keep_values=keep_values), Report(strict=options.strict), []
    library = Library.of(options, access)

    def add(source: Source) -> int:
        account = Account(source, report)
        for batch in batches_of(source, library):
            items.extend(account.kept(reader.read(batch)))
        return account.finish()

    order = arrange(options, add)
    reader.finish()
    seconds = time.perf_counter() - started
    get_logger().info("%d rows read in %.1f s", report.read, seconds)
    return LoadedConversations(items, order.train, order.val, report)


# ------------------------------------------------------------------------------------------------------- the order of rows


@dataclass(frozen=True)
class Order:
    """Which rows are used, in order; a row is known by its number among all rows of all data sets.

    train: may name a row several times.
    val: None when there is nothing to validate on.
    """

    train: list[int]
    val: list[int] | None


def arrange(options: DataOptions, add: Callable[[Source], int]) -> Order:
    """Sample, split, mix and shuffle the rows of all data sets, knowing no more of them than how many there are.

    add: says how many rows a data set has; called for one data set after the other, so that the rows of each get the
        numbers behind those of the one before.
    Raises DataError when there are not the rows that are asked for.
    """
    placed = _Placed(add)
    ratio = options.split_dataset_ratio
    own = [name for name in ("val_dataset", "cached_val_dataset") if getattr(options, name)]
    if ratio and own:
        get_logger().info("--split_dataset_ratio %s has no effect: --%s says what to validate on.", ratio, own[0])
        ratio = 0.0
    random = Random(options.data_seed)
    chance = random if options.dataset_shuffle else None
    train, val = placed.split(options.dataset, "--dataset", ratio, chance)
    cached, cached_val = placed.split(options.cached_dataset, "--cached_dataset", ratio, chance)
    train_order = _mixed(train, options, random) + [row for part in cached for row in part]
    if options.dataset_shuffle:
        random.shuffle(train_order)
    val_order = _mixed(val, options, random) + [row for part in cached_val for row in part]
    if own:
        random = Random(options.data_seed)
        chance = random if options.val_dataset_shuffle else None
        _, val = placed.split(options.val_dataset, "--val_dataset", 1.0, chance)
        _, cached_val = placed.split(options.cached_val_dataset, "--cached_val_dataset", 1.0, chance)
        val_order = [row for part in (*val, *cached_val) for row in part]
        if chance:
            chance.shuffle(val_order)
    return Order(train_order, val_order or None)


class _Placed:
    """Gives the rows of one data set after the other their numbers."""

    def __init__(self, add: Callable[[Source], int]) -> None:
        self._add = add
        self._next = 0

    def split(
        self, arguments: Sequence[str], flag: str, ratio: float, random: Random | None
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Per data set, the numbers of the rows to train on and to validate on."""
        train, val = [], []
        for argument in arguments:
            source = parse_source(argument, flag)
            first, length = self._next, self._add(source)
            self._next += length
            try:
                parts = split(length, source.count, ratio, random)
            except DataError as error:
                raise DataError(f"{source}: {error}") from None
            train.append([first + row for row in parts.train])
            val.append([first + row for row in parts.val])
            if source.count is not None and source.count > length:
                get_logger().warning("%s: there are %d rows only, so that rows are repeated.", source, length)
        return train, val


def _mixed(parts: Sequence[list[int]], options: DataOptions, random: Random) -> list[int]:
    """The rows of several data sets in one order: one behind the other, or interleaved by chance."""
    lengths = [len(part) for part in parts]
    if options.interleave_prob is None or not any(lengths):
        pairs = concatenate(lengths)
    else:
        pairs = interleave(lengths, options.interleave_prob, options.stopping_strategy, random)
    return [parts[dataset][position] for dataset, position in pairs]


# ------------------------------------------------------------------------------------------------- records and their items


@dataclass(frozen=True, slots=True)
class Batch:
    """Some records of a file, which any process can read by itself.

    records: a block of lines, or what was read of a file of another kind.
    """

    records: Block | list[Row | BadRow]
    reading: Reading


def batches(some: Iterable[Reading]) -> Iterator[Batch]:
    """The records of all files, in order."""
    for reading in some:
        if reading.file.suffix.lower() in LINE_READERS:
            yield from (Batch(block, reading) for block in blocks(reading.file))
            continue
        records = read_file(reading.file)
        while batch := list(islice(records, _RECORDS_PER_BATCH)):
            yield Batch(batch, reading)


def batches_of(source: Source, library: Library) -> Iterator[Batch]:
    """All records of a data set, in order; of a cached one, the rows that it was made of. Raises DataError."""
    if not source.is_cached:
        yield from batches(library.readings(source))
        return
    rows = cached_rows(source)
    while batch := list(islice(rows, _RECORDS_PER_BATCH)):
        yield Batch(list(batch), Reading(source.path))


class ItemReader:
    """Reads records as conversations.

    It pickles, so that several processes can share the records of a run.
    """

    def __init__(self, options: DataOptions, *, keep_values: bool) -> None:
        self._keep_values = keep_values
        self._rows = RowReader(options)

    @property
    def met(self) -> Met:
        """What the records had that were read so far."""
        return self._rows.met

    def read(self, batch: Batch) -> Iterator[Item | BadRow]:
        """The conversations of some records, in order; in place of a record that cannot be used stands a BadRow."""
        records, recipe = batch.records, batch.reading.recipe
        for row in records if isinstance(records, list) else records.records():
            if isinstance(row, BadRow):
                yield row
                continue
            try:
                conversations = self._rows.read(row, recipe)
            except RowError as fault:
                yield fault.at(row.file, row.line)
                continue
            values = row.values if self._keep_values else None
            for conversation in conversations:
                yield Item(conversation, row.file, row.line, values)

    def finish(self) -> None:
        """Say what was not read. Raises DataError when an option about rows found none to have an effect on."""
        self._rows.finish()


class Account:
    """Counts the records of one data set into the report."""

    def __init__(self, source: Source, report: Report) -> None:
        self._source = source
        self._report = report
        self._read_before, self._dropped_before = report.read, report.num_dropped
        self._kept = 0

    def kept(self, outcomes: Iterable[Item | BadRow]) -> Iterator[Item]:
        """Those that can be used. Raises DataError at the first other one when that is an error (`--strict true`)."""
        for outcome in outcomes:
            if isinstance(outcome, BadRow):
                self.drop(outcome)
            else:
                self.keep(1)
                yield outcome

    def keep(self, count: int) -> None:
        """Count records that can be used."""
        self._report.read += count
        self._kept += count

    def drop(self, row: BadRow) -> None:
        """Count one that cannot. Raises DataError when that is an error (`--strict true`)."""
        self._report.read += 1
        self._report.drop(row)

    def finish(self) -> int:
        """How many records can be used. Raises DataError when none can."""
        if self._kept:
            return self._kept
        if self._report.num_dropped == self._dropped_before:
            raise DataError(f"{self._source} has no rows.")
        raise DataError(
            f"{self._source}: none of its {self._report.read - self._read_before} rows can be used:\n"
            f"{self._report.causes()}"
        )
