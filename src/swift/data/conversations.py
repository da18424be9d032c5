"""This file knows how the data sets of a command line become conversations: read, sampled, split, mixed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from swift.catalog.datasets import Subset, known_dataset
from swift.chat.messages import Conversation
from swift.core.errors import DataError, UsageError
from swift.core.logs import get_logger
from swift.data.formats import ConversationReader
from swift.data.mixing import concatenate, interleave, split
from swift.data.persona import Persona
from swift.data.report import Report
from swift.data.rows import BadRow, Row, RowError
from swift.data.sources import Source, parse_source, read_source
from swift.options.data import DataOptions


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


def load_conversations(options: DataOptions, *, keep_values: bool = True) -> LoadedConversations:
    """As `read_conversations`, for those who want conversations and no more; logs what was left out."""
    loaded = read_conversations(options, keep_values=keep_values)
    loaded.report.train, loaded.report.val = len(loaded.train_order), len(loaded.val_order or ())
    loaded.report.log()
    return loaded


def read_conversations(options: DataOptions, *, keep_values: bool) -> LoadedConversations:
    """The conversations of `--dataset` and `--val_dataset`, sampled, split, mixed and shuffled as the options say.

    The result depends on the files and the options alone, so that all processes of a run hold the same.

    keep_values: whether `Item.values` holds the record, for files of results.
    Raises DataError when a data set cannot be read or has no row that can be used.
    """
    started = time.perf_counter()
    loader = _Loader(options, keep_values)
    ratio = options.split_dataset_ratio
    if ratio and options.val_dataset:
        get_logger().info("--split_dataset_ratio %s has no effect: --val_dataset says what to validate on.", ratio)
        ratio = 0.0
    random = Random(options.data_seed)
    train, val = loader.load(options.dataset, "--dataset", ratio, random if options.dataset_shuffle else None)
    train_order = _mixed(train, options, random)
    if options.dataset_shuffle:
        random.shuffle(train_order)
    val_order = _mixed(val, options, random)
    if options.val_dataset:
        random = Random(options.data_seed)
        shuffle = options.val_dataset_shuffle
        _, val = loader.load(options.val_dataset, "--val_dataset", 1.0, random if shuffle else None)
        val_order = [index for part in val for index in part]
        if shuffle:
            random.shuffle(val_order)
    loader.finish()
    seconds = time.perf_counter() - started
    get_logger().info("%d rows read in %.1f s", loader.report.read, seconds)
    return LoadedConversations(loader.items, train_order, val_order or None, loader.report)


def _mixed(parts: Sequence[list[int]], options: DataOptions, random: Random) -> list[int]:
    """The indices of several data sets in one order: one behind the other, or interleaved by chance."""
    lengths = [len(part) for part in parts]
    if options.interleave_prob is None or not any(lengths):
        pairs = concatenate(lengths)
    else:
        pairs = interleave(lengths, options.interleave_prob, options.stopping_strategy, random)
    return [parts[dataset][position] for dataset, position in pairs]


def _renamed(options: DataOptions) -> dict[str, str]:
    """`--columns`, checked. Raises UsageError when it maps anything but names to names."""
    renamed = options.columns or {}
    wrong = {
        old: new for old, new in renamed.items() if not isinstance(old, str) or not isinstance(new, str) or not new
    }
    if wrong:
        raise UsageError(f"--columns maps names of columns to names of columns, and these are none: {wrong}.")
    return renamed


class _Loader:
    """Reads data sets one after the other into one list, and keeps the account."""

    def __init__(self, options: DataOptions, keep_values: bool) -> None:
        self.items: list[Item] = []
        self.report = Report(strict=options.strict)
        self._keep_values = keep_values
        self._persona = Persona.of(options.model_name, options.model_author)
        self._introduced = False
        self._reader = ConversationReader(_renamed(options), keep_others=not options.remove_unused_columns)

    def load(
        self, arguments: Sequence[str], flag: str, ratio: float, random: Random | None
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Per data set, the indices into `items` to train on and to validate on."""
        train, val = [], []
        for argument in arguments:
            source = parse_source(argument, flag)
            first = len(self.items)
            self._read(source)
            try:
                parts = split(len(self.items) - first, source.count, ratio, random)
            except DataError as error:
                raise DataError(f"{source}: {error}") from None
            train.append([first + row for row in parts.train])
            val.append([first + row for row in parts.val])
            self._say_repetition(source, len(self.items) - first)
        return train, val

    def finish(self) -> None:
        """Raise DataError when an option about rows found none to have an effect on."""
        self._reader.finish()
        if self._persona.given and not self._introduced:
            given = " and ".join(self._persona.given)
            raise DataError(
                f"{given}: no effect without the self-cognition rows. Add a file or folder called self-cognition to "
                "--dataset, or drop the option."
            )

    def _read(self, source: Source) -> None:
        first, read_before, dropped_before = len(self.items), self.report.read, self.report.num_dropped
        for row, subset in _rows(source):
            self.report.read += 1
            if isinstance(row, BadRow):
                self.report.drop(row)
                continue
            try:
                conversation = self._reader.read(row)
                if subset is not None:
                    self._introduced = True
                    conversation = self._persona.introduce(conversation, row.values, subset)
            except RowError as fault:
                self.report.drop(fault.at(row.file, row.line))
                continue
            values = row.values if self._keep_values else None
            self.items.append(Item(conversation, row.file, row.line, values))
        if len(self.items) > first:
            return
        if self.report.num_dropped == dropped_before:
            raise DataError(f"{source} has no rows.")
        raise DataError(
            f"{source}: none of its {self.report.read - read_before} rows can be used:\n{self.report.causes()}"
        )

    def _say_repetition(self, source: Source, length: int) -> None:
        if source.count is not None and source.count > length:
            get_logger().warning("%s: there are %d rows only, so that rows are repeated.", source, length)


def _rows(source: Source) -> Iterator[tuple[Row | BadRow, Subset | None]]:
    """The records of a source; of a data set with a persona, once for each subset, with that subset."""
    known = known_dataset(source.name)
    if known is None or not known.has_persona:
        for row in read_source(source, source.subsets):
            yield row, None
        return
    names = tuple(known.subsets) if source.subsets == ("all",) else source.subsets or ("default",)
    unknown = [name for name in names if name not in known.subsets]
    if unknown:
        raise DataError(f"{source}: no subset {unknown[0]!r}. There are: {', '.join(known.subsets)}, all.")
    for name in names:
        for row in read_source(source, ()):
            yield row, known.subsets[name]
