"""This file knows how conversations become the samples of a run: rendered, measured, cut, kept or accounted for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from swift.chat.messages import Conversation
from swift.chat.render import Sample
from swift.core.errors import DataError, UsageError
from swift.core.logs import get_logger
from swift.data.conversations import Item, LoadedConversations, load_conversations, read_conversations
from swift.data.formats import as_row
from swift.data.report import Report
from swift.data.rows import BadRow
from swift.data.samples import SampleSet, StoreBuilder
from swift.data.truncate import Strategy, truncate
from swift.options.data import DataOptions
from swift.options.template import TemplateOptions

__all__ = ["Item", "LoadedConversations", "LoadedData", "Renders", "load_conversations", "load_samples"]

_ROWS_PER_BATCH = 1000


class Renders(Protocol):
    """What turns conversations into samples, many at once."""

    def samples(self, conversations: list[Conversation]) -> list[Sample | DataError]:
        """A sample per conversation, or the reason why there is none."""
        ...


@dataclass
class LoadedData:
    """What a run trains on.

    val: None when there is nothing to validate on.
    report: what was left out; it has been logged.
    val_rows: the rows that `--split_dataset_ratio` held back, in the messages format, to be written next to the
        checkpoints; empty when `--val_dataset` names them.
    """

    train: SampleSet
    val: SampleSet | None
    report: Report
    val_rows: list[dict[str, Any]]


def load_samples(options: DataOptions, template: TemplateOptions, renderer: Renders) -> LoadedData:
    """The samples of `--dataset` and `--val_dataset`, tokenized once and kept in memory.

    `template.max_length` limits the length of a sample in tokens; None sets no limit. Every row that does not make it
    is counted with its cause in the report, which is logged at the end.

    Raises DataError when no row is left to train on, or none to validate on where validation is asked for, and at the
    first bad row when `--strict true`; UsageError when the template options contradict each other.
    """
    if not options.dataset:
        raise UsageError("There is nothing to train on: name data with --dataset.")
    if template.truncation_strategy == "split" and template.use_chat_template:
        raise UsageError(
            "--truncation_strategy split cuts plain text into pieces; a piece of a chat has lost its template. "
            "Use it with swift pt (--use_chat_template false), or choose delete, left or right."
        )
    loaded = read_conversations(options, keep_values=False)
    report = loaded.report
    encoder = _Encoder(renderer, template, report)
    started = time.perf_counter()
    used = set(loaded.train_order).union(loaded.val_order or [])
    encoder.encode(loaded.items, sorted(used))
    store = encoder.builder.finish()
    seconds = time.perf_counter() - started
    get_logger().info("%d tokens of %d samples in %.1f s", len(store.tokens), len(store), seconds)
    train = SampleSet(store, encoder.positions(loaded.train_order))
    val = None if loaded.val_order is None else SampleSet(store, encoder.positions(loaded.val_order))
    report.train, report.val = len(train), len(val or ())
    _check_left(train, val, report, template)
    report.log()
    get_logger().info("train: %s", train.describe())
    if val is not None:
        get_logger().info("validation: %s", val.describe())
    split_off = [] if options.val_dataset else loaded.val or []
    return LoadedData(train, val, report, [as_row(item.conversation) for item in split_off])


class _Encoder:
    """Renders rows batch by batch and knows where in the store the samples of each row are."""

    def __init__(self, renderer: Renders, template: TemplateOptions, report: Report) -> None:
        assert template.truncation_strategy is not None, "--truncation_strategy is resolved before data is loaded"
        self.builder = StoreBuilder()
        self._renderer = renderer
        self._max_length = template.max_length
        self._strategy: Strategy = template.truncation_strategy
        self._report = report
        self._places: dict[int, range] = {}

    def encode(self, items: Sequence[Item], used: Sequence[int]) -> None:
        """Render the rows with the indices `used`."""
        for start in range(0, len(used), _ROWS_PER_BATCH):
            indices = used[start : start + _ROWS_PER_BATCH]
            samples = self._renderer.samples([items[index].conversation for index in indices])
            for index, sample in zip(indices, samples, strict=True):
                self._places[index] = self._keep(sample, items[index])

    def positions(self, order: Sequence[int]) -> list[int]:
        """The positions in the store of the samples of these rows, in order."""
        return [position for index in order for position in self._places[index]]

    def _keep(self, sample: Sample | DataError, item: Item) -> range:
        """Where the samples of this row are in the store; an empty range when it was left out."""
        first = len(self.builder)
        if isinstance(sample, DataError):
            self._report.drop(BadRow(item.file, item.line, "", str(sample).rstrip(".")))
            return range(0)
        is_long = self._max_length is not None and len(sample) > self._max_length
        pieces = truncate(sample, self._max_length, self._strategy) if self._max_length is not None else [sample]
        if not pieces:
            self._report.leave_out(BadRow(item.file, item.line, "", self._too_long, f"{len(sample)} tokens"))
            return range(0)
        for piece in pieces:
            self.builder.add(piece)
        if len(self.builder) == first:
            within = f" within --max_length {self._max_length}" if is_long else ""
            self._report.drop(BadRow(item.file, item.line, "", f"nothing to learn{within}", f"{len(sample)} tokens"))
        elif is_long:
            self._report.cut += 1
        return range(first, len(self.builder))

    @property
    def _too_long(self) -> str:
        return f"longer than --max_length {self._max_length}"


def _check_left(train: SampleSet, val: SampleSet | None, report: Report, template: TemplateOptions) -> None:
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
