"""This file knows rows that are tokenized when they are needed (`--lazy_tokenize true`), and what happens to those that
cannot be.

The rows are read and checked before training like all others, and laid down as conversations in a file. What only
tokenizing can show, that a row is too long or that the template refuses it, is found during training: the row is named
in the log, counted, and replaced by the next one that can be used, so that every batch has its size.
"""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch.utils.data import Dataset

from swift.chat.messages import Conversation
from swift.chat.render import Sample
from swift.core.errors import DataError, UsageError
from swift.core.logs import get_logger
from swift.data.cache import Shelf
from swift.data.conversations import Account, Item, ItemReader, arrange, batches_of
from swift.data.formats import as_row
from swift.data.library import HubAccess, Library
from swift.data.preparer import Renders, each_or_all, rendered
from swift.data.report import Report
from swift.data.rows import BadRow
from swift.data.samples import borders_of
from swift.data.tasks import SUPERVISED, Aim
from swift.data.truncate import Strategy, truncate
from swift.options.data import DataOptions
from swift.options.row_sources import Source
from swift.options.template import TemplateOptions

PATIENCE = 10
"""So many rows one after the other that cannot be used are an error."""
NAMED = 10
"""So many of all rows that cannot be used are named in the log."""
_FILE = "conversations.bin"


class ConversationStore:
    """Conversations in a file, by their number; the file is opened anew in every process.

    borders: int64 [N + 1], the bytes of each.
    """

    def __init__(self, file: Path, lengths: Sequence[int]) -> None:
        self.file = file
        self.borders = borders_of(lengths)

    def __len__(self) -> int:
        return len(self.borders) - 1

    def item(self, index: int) -> Item:
        """Conversation `index`, with the place of its row."""
        with self.file.open("rb") as file:
            file.seek(int(self.borders[index]))
            return pickle.loads(file.read(int(self.borders[index + 1] - self.borders[index])))


class LazySet(Dataset[Sample | list[Sample]]):
    """Samples in the order in which they are used, made when they are asked for.

    renderer: makes them. template: how long they may be, and what becomes of longer ones.
    strict: whether the first row that cannot be used is an error.
    aim: what samples are for; where those of a row stay together, an item is their list, of which its draw may give some,
        anew in every epoch that an index carries (`epoch * length + row`).
    """

    def __init__(self, store: ConversationStore, order: Sequence[int], renderer: Renders, template: TemplateOptions, *,
                 strict: bool, aim: Aim = SUPERVISED) -> None:  # fmt: skip
        assert template.truncation_strategy is not None, "--truncation_strategy is resolved before data is loaded"
        self.store = store
        self.order = numpy.asarray(order, dtype=numpy.int64)
        self._renderer = renderer
        self._max_length = template.max_length
        self._strategy: Strategy = template.truncation_strategy
        self._strict = strict
        self._aim = aim
        self.draw = aim.draw
        # Shared with the processes that load batches, so that all know and count the same rows.
        self._unusable = torch.zeros(len(store), dtype=torch.bool).share_memory_()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._unusable.share_memory_()

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Sample | list[Sample]:
        """Sample `index`, or the next one that can be used. Raises DataError when ten, or all, cannot."""
        problem = None
        epoch = index // len(self.order)
        tried = min(PATIENCE, len(self.order))
        for step in range(tried):
            row = int(self.order[(index + step) % len(self.order)])
            item = self.store.item(row)
            made = self._samples(item.conversation)
            if not isinstance(made, DataError):
                if not self._aim.is_grouped:
                    return made[0]
                return made if self.draw is None else self.draw(made, (row,), epoch)
            problem = BadRow(item.file, item.line, "", str(made).rstrip("."))
            if self._strict:
                raise DataError(f"{problem}. (--strict true stops at the first such row.)")
            if not self._unusable[row]:
                self._unusable[row] = True
                _name(problem, self.num_unusable)
        raise DataError(
            f"{tried} rows one after the other cannot be used, the last of them {problem}. Correct them, raise --max_length or "
            "set --truncation_strategy to left or right; without --lazy_tokenize such rows are left out before training."
        )

    @property
    def num_unusable(self) -> int:
        """How many rows were met so far that cannot be used, by all processes that load batches."""
        return int(self._unusable.sum())

    def describe(self) -> str:
        """How many there are; how long they are shows when they are used."""
        return f"size={len(self)}, tokenized during training"

    def _samples(self, conversation: Conversation) -> list[Sample] | DataError:
        [made] = each_or_all(lambda some: rendered(some, self._aim, self._renderer), [conversation])
        limit = self._max_length
        if isinstance(made, DataError) or limit is None or max(len(sample) for sample in made) <= limit:
            return made
        pieces = [piece for sample in made for piece in truncate(sample, limit, self._strategy)[:1]]
        longest = max(len(sample) for sample in made)
        if len(pieces) < len(made):
            return DataError(f"longer than --max_length {limit} ({longest} tokens)")
        if not self._aim.reads and not pieces[0].learnt:
            return DataError(f"nothing to learn within --max_length {limit} ({longest} tokens)")
        return pieces


def _name(problem: BadRow, count: int) -> None:
    """Name the first rows that cannot be used; there may be a hundred thousand."""
    if count <= NAMED:
        get_logger().warning("%s; the next row takes its place (%d so far)", problem, count)
    elif count == NAMED + 1:
        get_logger().warning("further rows that cannot be used are counted and not named")


@dataclass
class LazyData:
    """What a run with `--lazy_tokenize true` trains on.

    val: None when there is nothing to validate on. report: what could not be read; it has been logged.
    val_rows: the rows that `--split_dataset_ratio` held back, in the messages format; not sent to other processes.
    """

    train: LazySet
    val: LazySet | None
    report: Report
    val_rows: list[dict[str, Any]]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "val_rows": []}


def load_lazily(options: DataOptions, template: TemplateOptions, renderer: Renders, access: HubAccess | None = None,
                aim: Aim = SUPERVISED) -> LazyData:  # fmt: skip
    """The rows of `--dataset` and `--val_dataset`, read and checked, and not tokenized.

    Raises UsageError when rows shall be split, DataError when a data set cannot be read, or at the first bad row with
    `--strict true`.
    """
    if template.truncation_strategy == "split":
        raise UsageError(
            "--lazy_tokenize true cannot be used with --truncation_strategy split: how many rows there are would be "
            "known only after tokenizing. Remove one of them."
        )
    report, library = Report(strict=options.strict), Library.of(options, access)
    reader, shelf = ItemReader(options, keep_values=False), Shelf(keeps=False)
    lengths = array("q")

    def write(folder: Path) -> dict[str, Any]:
        with (folder / _FILE).open("wb") as file:

            def add(source: Source) -> int:
                account = Account(source, report)
                for batch in batches_of(source, library):
                    for item in account.kept(reader.read(batch)):
                        lengths.append(file.write(pickle.dumps(item, pickle.HIGHEST_PROTOCOL)))
                return account.finish()

            order = arrange(options, add)
        return {"train": order.train, "val": order.val}

    entry = shelf.entry("rows", dict, write)
    reader.finish()
    store = ConversationStore(entry.folder / _FILE, lengths)
    shelf.lend(entry, store)
    train = LazySet(store, entry.facts["train"], renderer, template, strict=options.strict, aim=aim)
    order, val = entry.facts["val"], None
    if order is not None:
        val = LazySet(store, order, renderer, template, strict=options.strict, aim=aim)
    held_back = [] if options.val_dataset or order is None else [as_row(store.item(row).conversation) for row in order]
    report.train, report.val = len(train), len(val or ())
    report.log()
    return LazyData(train, val, report, held_back)
