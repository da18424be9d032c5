"""This file knows how the data sets of a run become the samples it learns from, every row used or accounted for."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from swift.chat.render import Sample
from swift.core.errors import DataError, UsageError
from swift.core.logs import get_logger
from swift.data.cache import Shelf, hash_of_file
from swift.data.cached import CachedStock, Mode
from swift.data.conversations import Item, ItemReader, LoadedConversations, Order, arrange, load_conversations
from swift.data.formats import ConversationReader
from swift.data.groups import GroupSet
from swift.data.library import HubAccess, Library
from swift.data.preparer import Preparer, Renders
from swift.data.report import Report
from swift.data.rows import Row
from swift.data.samples import SampleSet, Store
from swift.data.stock import Kitchen, Numbers, Stock, joined, located
from swift.data.tasks import SUPERVISED, Aim, Task
from swift.data.workers import SELDOM, Crew
from swift.options.data import DataOptions
from swift.options.row_sources import Source, parse_source
from swift.options.template import TemplateOptions

__all__ = ["Item", "LoadedConversations", "LoadedData", "Renders", "load_conversations", "load_samples"]

TASK_OF: dict[Mode, Task] = {"train": "supervised", "rlhf": "preference", "kto": "kto"}
"""What samples are for (`--template_mode`) -> which conversations of a row they are made of."""
MODE_OF: dict[Task, Mode] = {task: mode for mode, task in TASK_OF.items()}
"""The same the other way round; tasks without a mode have no cached data sets."""


@dataclass
class LoadedData:
    """What a run trains on.

    val: None when there is nothing to validate on.
    report: what was left out; it has been logged.
    val_rows: the rows that `--split_dataset_ratio` held back, in the messages format, to be written next to the
        checkpoints; empty when the command line names others to validate on. They are not sent to other processes.
    """

    train: SampleSet | GroupSet
    val: SampleSet | GroupSet | None
    report: Report
    val_rows: list[dict[str, Any]]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "val_rows": []}


def load_samples(
    options: DataOptions,
    template: TemplateOptions,
    renderer: Renders,
    access: HubAccess | None = None,
    plugins: Sequence[str] = (),
    aim: Aim = SUPERVISED,
) -> LoadedData:
    """The samples of the data sets of a command line, tokenized once and mapped from files.

    `template.max_length` limits the length of a sample in tokens; None sets no limit. Every row that does not make it
    is counted with its cause in the report, which is logged at the end. `access` says how hubs are asked; `plugins`
    are files of code on which samples may depend. `aim` is what samples are for; where the samples of a row stay
    together, the sets are of groups.

    Raises DataError when no row is left to train on, or none to validate on where validation is asked for, and at the
    first bad row when `--strict true`; UsageError when the template options contradict each other.
    """
    check_options(options, template)
    started = time.perf_counter()
    with Preparation(options, template, renderer, access, plugins, aim=aim) as preparation:
        order = preparation.arrange()
        train, val = preparation.used(order.train), None
        if order.val is not None:
            val = preparation.used(order.val)
        val_rows = [] if options.val_dataset or options.cached_val_dataset else preparation.rows(order.val or [])
    report = preparation.report
    seconds = time.perf_counter() - started
    get_logger().info("%d rows, %d tokens in %.1f s", report.read, preparation.num_tokens, seconds)
    report.train, report.val = len(train), len(val or ())
    check_left(train, val, report, template)
    report.log()
    get_logger().info("train: %s", train.describe())
    if val is not None:
        get_logger().info("validation: %s", val.describe())
    return LoadedData(train, val, report, val_rows)


class Preparation:
    """The data sets of a command line on their way to samples.

    aim: what the samples are for. keeps_rows: whether `row` will be asked for.

    report: what became of the rows so far.
    """

    def __init__(self, options: DataOptions, template: TemplateOptions, renderer: Renders,
                 access: HubAccess | None = None, plugins: Sequence[str] = (), *,
                 aim: Aim = SUPERVISED, keeps_rows: bool = False) -> None:  # fmt: skip
        self.report = Report(strict=options.strict)
        self._thresholds = gc.get_threshold()
        self._options = options
        self._library = Library.of(options, access)
        self._stocks: list[Stock | CachedStock] = []
        self._places: dict[Source, range] = {}
        readings = []
        for flag, arguments in (("--dataset", options.dataset), ("--val_dataset", options.val_dataset)):
            for argument in arguments:
                source = parse_source(argument, flag)
                found = self._library.readings(source)
                self._places[source] = range(len(readings), len(readings) + len(found))
                readings += found
        self._reader = ItemReader(options, keep_values=False)
        self._template, self._renderer = template, renderer
        self._aim = aim
        self._mode: Mode = MODE_OF.get(aim.task, "train")
        work = Preparer(options, readings, renderer, template, aim, keeps_rows=keeps_rows)
        self._crew = Crew(work, options.dataset_num_proc)
        self._kitchen = Kitchen(
            self._crew, self._reader, Shelf(keeps=options.load_from_cache_file), self.report,
            lambda: {**recipe_of(options, template, renderer, plugins), "task": repr((aim.task, aim.classes)), "keeps_rows": keeps_rows},
        )  # fmt: skip

    def arrange(self, *, are_all: bool = True) -> Order:
        """Which rows are used, in order. Their samples are made, and `samples` gives them.

        are_all: whether the run has no other rows, so that an option without an effect on these is a mistake.
        """
        order = arrange(self._options, self._add)
        if are_all:
            self._reader.finish()
        used = numpy.array([*order.train, *(order.val or ())], dtype=numpy.int64)
        for stock in self._stocks:
            stock.prepare(used[(used >= stock.first) & (used < stock.first + stock.length)])
        return order

    def samples(self, order: Sequence[int]) -> SampleSet:
        """The samples of these rows, in order; a row may have several, or none when it was left out."""
        store, positions = joined(self._stocks, numpy.array(order, dtype=numpy.int64))
        return SampleSet(store, positions)

    def used(self, order: Sequence[int]) -> SampleSet | GroupSet:
        """The samples of these rows, in order; in groups, where those of a row stay together."""
        if not self._aim.is_grouped:
            return self.samples(order)
        store, starts, counts = located(self._stocks, numpy.array(order, dtype=numpy.int64))
        return GroupSet(store, starts[counts > 0], counts[counts > 0], self._aim.draw)

    def rows(self, order: Sequence[int]) -> list[dict[str, Any]]:
        """These rows in the messages format, in order."""
        numbers = numpy.array(order, dtype=numpy.int64)
        found: list[dict[str, Any]] = [{}] * len(numbers)
        for stock in self._stocks:
            [mine] = numpy.nonzero((numbers >= stock.first) & (numbers < stock.first + stock.length))
            for place, row in zip(mine.tolist(), stock.rows(numbers[mine]), strict=True):
                found[place] = row
        return found

    def items(self, order: Sequence[int]) -> list[Item]:
        """These rows as they are read, in order, with their places; their files are read again."""
        numbers = numpy.array(order, dtype=numpy.int64)
        found: dict[int, Item] = {}
        for stock in self._stocks:
            mine = numpy.unique(numbers[(numbers >= stock.first) & (numbers < stock.first + stock.length)])
            items = _as_items(stock.records(mine)) if isinstance(stock, CachedStock) else stock.items(mine)
            found.update(zip(mine.tolist(), items, strict=True))
        return [found[number] for number in numbers.tolist()]

    def located(self, order: Sequence[int]) -> tuple[Store, Numbers, Numbers]:
        """All samples; where those of each of these rows begin, and how many there are."""
        return located(self._stocks, numpy.array(order, dtype=numpy.int64))

    def owners(self, rows: Numbers) -> Numbers:
        """The number of the data set of each row, by which `names` names it."""
        firsts = numpy.array([stock.first for stock in self._stocks])
        return numpy.searchsorted(firsts, rows, side="right") - 1

    @property
    def names(self) -> list[str]:
        """The data sets as they were asked for, in the order of their rows."""
        return [stock.source.argument for stock in self._stocks]

    def with_samples(self, order: Sequence[int]) -> Iterator[tuple[list[Sample], dict[str, Any]]]:
        """These rows with their samples, in order, without those that were left out."""
        rows = numpy.array(order, dtype=numpy.int64)
        store, starts, counts = located(self._stocks, rows)
        owners = self.owners(rows).tolist()
        for row, start, count, owner in zip(rows.tolist(), starts.tolist(), counts.tolist(), owners, strict=True):
            if count:
                yield [store.sample(index) for index in range(start, start + count)], self._stocks[owner].row(row)

    @property
    def num_tokens(self) -> int:
        """The tokens of all samples that were made."""
        return sum(int(stock.store.lengths.sum()) for stock in self._stocks)

    def __enter__(self) -> Preparation:
        gc.freeze()  # what stays anyway need not be looked through again and again for what could go
        gc.set_threshold(SELDOM, *self._thresholds[1:])
        return self

    def __exit__(self, *_: object) -> None:
        gc.set_threshold(*self._thresholds)
        gc.unfreeze()
        self._crew.dismiss()
        self._kitchen.shelf.discard()

    def _add(self, source: Source) -> int:
        first = self._stocks[-1].first + self._stocks[-1].length if self._stocks else 0
        if source.is_cached:
            rendering = self._renderer.identity()
            stock = CachedStock(source, first, rendering, self._template, self.report, MODE_OF[self._aim.task])
        else:
            stock = Stock(source, self._library.readings(source), self._places[source], first, self._kitchen)
        self._stocks.append(stock)
        return stock.length


def _as_items(rows: Sequence[Row]) -> list[Item]:
    """Rows in the messages format as the conversations that they are."""
    reader = ConversationReader({}, keep_others=True)
    return [Item(reader.read(row), row.file, row.line, None) for row in rows]


def recipe_of(
    options: DataOptions, template: TemplateOptions, renderer: Renders, plugins: Sequence[str]
) -> dict[str, Any]:
    """Plain values that decide what becomes of a row, whatever data set it is of."""
    files = [*plugins, *options.custom_dataset_info]
    return {
        "columns": options.columns,
        "persona": [options.model_name, options.model_author],
        "remove_unused_columns": options.remove_unused_columns,
        "files": [[name, hash_of_file(Path(name))] for name in files if Path(name).is_file()],
        "max_length": template.max_length,
        "truncation_strategy": template.truncation_strategy,
        "rendering": {name: value for name, value in renderer.identity().items() if name != "tokenizer_name"},
    }


def check_options(options: DataOptions, template: TemplateOptions) -> None:
    """Raise UsageError when there is nothing to prepare, or samples cannot be cut as they shall be."""
    if not options.dataset and not options.cached_dataset:
        raise UsageError("There is nothing to train on: name data with --dataset.")
    if template.truncation_strategy == "split" and template.use_chat_template:
        raise UsageError(
            "--truncation_strategy split cuts plain text into pieces; a piece of a chat has lost its template. "
            "Use it with swift pt (--use_chat_template false), or choose delete, left or right."
        )


def check_left(
    train: SampleSet | GroupSet, val: SampleSet | GroupSet | None, report: Report, template: TemplateOptions
) -> None:
    """Raise DataError when a set that was asked for is empty."""
    empty = "train on" if not len(train) else "validate on" if val is not None and not len(val) else None
    if empty is None:
        return
    if not report.dropped:
        raise DataError(f"No row is left to {empty}: --split_dataset_ratio 1 holds back every row.")
    too_long = f"longer than --max_length {template.max_length}"
    count = report.dropped[too_long][0] if too_long in report.dropped else 0
    advice = " Raise --max_length, or set --truncation_strategy to left or right." if count else ""
    words = f"all {count} rows are {too_long}" if count == report.read else "the rows were left out"
    raise DataError(f"No row is left to {empty}: {words}.{advice}\n{report.causes()}")
