"""This file knows how all rows of a run are prepared and measured: numbers of every sample, and some rows whole.

Rows are read twice: once to find which of them are used and in which order, and once to make samples of those, both by
what a run does itself. Nothing of a row stays in memory but its numbers, unless it becomes a witness.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
from numpy.typing import NDArray

from swift.chat.messages import Conversation
from swift.chat.render import Renderer, Sample
from swift.core.errors import DataError
from swift.data.conversations import Account, Batch, Item, ItemReader, Order, arrange, batches
from swift.data.formats import Met
from swift.data.library import HubAccess, Library, Reading
from swift.data.preparer import Job, Preparer
from swift.data.report import Report
from swift.data.rows import BadRow
from swift.data.samples import Packed
from swift.data.sources import Source
from swift.data.tasks import Part, Task, parts
from swift.data.workers import Crew
from swift.options.data import DataOptions
from swift.options.template import TemplateOptions
from swift.proofs.duplicates import digest

IGNORED = -100
FIRST = 2
"""Rows of every data set that are shown."""
WITNESSES = 48
"""Rows of every data set that are looked at token by token."""
LAST_TOKENS = 4
"""Learnt tokens at the end of a sample among which the one that ends the reply must be: white space may follow it."""


@dataclass(frozen=True)
class Witness:
    """A row, or one part of it, that is looked at closely. `row` is its number among all rows."""

    row: int
    item: Item
    part: Part
    sample: Sample

    @property
    def place(self) -> str:
        """File and line."""
        return f"{self.item.file}:{self.item.line}"


@dataclass
class Numbers:
    """The samples of some rows, N of them.

    lengths, learnt: tokens, and those of them that are learnt [N].
    stopped: whether the end of what is learnt holds a token that ends a reply [N].
    digests: see `duplicates.digest` [N].
    rows: the number of the row of each sample [N].
    """

    lengths: array[int] = field(default_factory=lambda: array("q"))
    learnt: array[int] = field(default_factory=lambda: array("q"))
    stopped: bytearray = field(default_factory=bytearray)
    digests: list[bytes] = field(default_factory=list)
    rows: array[int] = field(default_factory=lambda: array("q"))

    def __len__(self) -> int:
        return len(self.lengths)

    def extend(self, other: Numbers) -> None:
        """Put the samples of further rows behind these."""
        self.lengths.extend(other.lengths)
        self.learnt.extend(other.learnt)
        self.stopped += other.stopped
        self.digests += other.digests
        self.rows.extend(other.rows)


class Ranges:
    """Things one behind the other, each with a range of numbers."""

    def __init__(self) -> None:
        self._things: list[str] = []
        self._starts: list[int] = []

    def begin(self, thing: str, start: int) -> None:
        """From `start` on, numbers belong to `thing`."""
        self._things.append(thing)
        self._starts.append(start)

    def __getitem__(self, number: int) -> str:
        """The thing that a number belongs to."""
        return self._things[bisect_right(self._starts, number) - 1]


@dataclass
class Places:
    """Where rows stand. lines: of each row. files, sources: the file, and the argument of `--dataset`, of each row."""

    lines: array[int] = field(default_factory=lambda: array("q"))
    files: Ranges = field(default_factory=Ranges)
    sources: Ranges = field(default_factory=Ranges)

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, row: int) -> str:
        """File and line of a row."""
        return f"{self.files[row]}:{self.lines[row]}"


@dataclass(frozen=True)
class Measured:
    """The samples of a run.

    numbers: of all samples that are used, in the order in which their rows stand in the data sets.
    longer: how many rows are longer than `--max_length`, whether they are left out or cut.
    train, val: the samples in the order, and as often, as they are used.
    rows_to_train: how many rows an epoch of training draws.
    """

    numbers: Numbers
    report: Report
    longer: int
    places: Places
    train: list[int]
    val: list[int]
    rows_to_train: int
    witnesses: list[Witness]

    def place(self, sample: int) -> str:
        """File and line of a sample."""
        return self.places[self.numbers.rows[sample]]

    def source(self, sample: int) -> str:
        """The argument of `--dataset` or `--val_dataset` that brings a sample."""
        return self.places.sources[self.numbers.rows[sample]]


@dataclass(frozen=True)
class Rendering:
    """What turns rows into samples: how they are rendered, what a task looks at, and how long they may be."""

    renderer: Renderer
    template: TemplateOptions
    task: Task

    def samples(self, conversations: Sequence[Conversation]) -> list[Sample | DataError]:
        """A sample per conversation; a prompt is one of which nothing is learnt."""
        if self.task != "prompt":
            return self.renderer.samples(conversations)
        return [self._prompt(conversation) for conversation in conversations]

    def identity(self) -> dict[str, Any]:
        """What the samples depend on, as the renderer says it."""
        return self.renderer.identity()

    def _prompt(self, conversation: Conversation) -> Sample | DataError:
        try:
            ids = self.renderer.prompt(conversation).input_ids
        except DataError as error:
            return error
        return Sample(ids, [IGNORED] * len(ids))


def measure(
    options: DataOptions, rendering: Rendering, access: HubAccess | None = None, *, processes: int = 1
) -> Measured:
    """Read, prepare and measure the rows of a run. Every row that does not make it is in the report with its cause.

    Raises DataError for data sets that cannot be read, and with --strict true for the first bad row.
    """
    reader, report = ItemReader(options, keep_values=False), Report(strict=options.strict)
    found = _Finding(reader, Library.of(options, access), report, processes)
    order = found.order(options)
    reader.finish()
    used = numpy.zeros(len(found.places), dtype=numpy.bool_)
    used[order.train] = True
    used[order.val or []] = True
    preparer = Preparer(options, found.readings, rendering, rendering.template, rendering.task)
    work = _Measuring(preparer, rendering.renderer.stop_token_ids)
    numbers, longer = Numbers(), 0
    with Crew(work, processes) as crew:
        for more in crew.results(found.jobs(used)):
            for row in more.bad:
                report.drop(row)
            for row in more.long:
                report.leave_out(row)
            report.cut += more.cut
            longer += more.cut + len(more.long)
            numbers.extend(more.numbers)
    train, val = _samples(numbers, order)
    report.train, report.val = len(train), len(val)
    chosen = _chosen(numpy.flatnonzero(used).tolist(), found.places)
    witnesses = [witness for job in found.jobs(chosen) for witness in _witnesses(job, found, rendering)]
    there = set(numbers.rows)
    drawn = sum(row in there for row in order.train)
    return Measured(numbers, report, longer, found.places, train, val, drawn, witnesses)


def _samples(numbers: Numbers, order: Order) -> tuple[list[int], list[int]]:
    """The samples to train on and to validate on, in order."""
    of_row: dict[int, list[int]] = {}
    for sample, row in enumerate(numbers.rows):
        of_row.setdefault(row, []).append(sample)
    train = [sample for row in order.train for sample in of_row.get(row, ())]
    val = [sample for row in order.val or () for sample in of_row.get(row, ())]
    return train, val


# ----------------------------------------------------------------------------------------------------- finding the rows


@dataclass(frozen=True)
class _Lines:
    """What some records are: the line of one that can be used, the fault of one that cannot, in order."""

    outcomes: list[int | BadRow]
    met: Met


@dataclass(frozen=True)
class _Reads:
    """Finds which records can be used, in whatever process."""

    reader: ItemReader

    def __call__(self, batch: Batch) -> _Lines:
        outcomes = [found if isinstance(found, BadRow) else found.line for found in self.reader.read(batch)]
        return _Lines(outcomes, self.reader.met)


class _Finding:
    """Which rows there are.

    readings: the files of all data sets, in order. counts: the rows of each batch of records, in order.
    """

    def __init__(self, reader: ItemReader, library: Library, report: Report, processes: int) -> None:
        self.places = Places()
        self.readings: list[Reading] = []
        self.reader = reader
        self._counts: list[int] = []
        self._library = library
        self._report = report
        self._processes = processes

    def order(self, options: DataOptions) -> Order:
        """The rows that are used, in order."""
        with Crew(_Reads(self.reader), self._processes) as crew:
            return arrange(options, lambda source: self._add(source, crew))

    def jobs(self, wanted: NDArray[numpy.bool_]) -> Iterator[MeasuredJob]:
        """The batches of records that hold wanted rows."""
        counts, first = iter(self._counts), 0
        for number, reading in enumerate(self.readings):
            for batch in batches([reading]):
                count = next(counts)
                inside = numpy.flatnonzero(wanted[first : first + count]).tolist()
                if inside:
                    yield MeasuredJob(Job(batch.records, number, tuple(inside)), first)
                first += count

    def _add(self, source: Source, crew: Crew[Batch, _Lines]) -> int:
        """Find the rows of one more data set; how many there are."""
        account = Account(source, self._report)
        self.places.sources.begin(source.argument, len(self.places))
        for reading in self._library.readings(source):
            self.readings.append(reading)
            self.places.files.begin(str(reading.file), len(self.places))
            for found in crew.results(batches([reading])):
                before = len(self.places)
                self.places.lines.extend(account.kept(found.outcomes))  # type: ignore[arg-type]  # lines stand for items
                self._counts.append(len(self.places) - before)
                self.reader.met.add(found.met)
        return account.finish()


# ------------------------------------------------------------------------------------------------- measuring the samples


@dataclass(frozen=True)
class MeasuredJob:
    """A job, and the number of the first row of its records."""

    job: Job
    first: int


@dataclass(frozen=True)
class _MadeOf:
    """The samples of some records, and the rows that came to nothing."""

    numbers: Numbers
    bad: list[BadRow]
    long: list[BadRow]
    cut: int


@dataclass(frozen=True)
class _Measuring:
    """Prepares records and measures what comes of them, in whatever process."""

    preparer: Preparer
    stops: tuple[int, ...]

    def __call__(self, task: MeasuredJob) -> _MadeOf:
        made = self.preparer(task.job)
        wanted = task.job.wanted
        assert wanted is not None, "jobs name the rows they want"
        rows = [
            task.first + inside for inside, count in zip(wanted, made.packed.samples, strict=True) for _ in range(count)
        ]
        bad = [row for is_unreadable, row in made.bad if not is_unreadable]  # the others were met when rows were found
        return _MadeOf(_numbers(made.packed, rows, self.stops), bad, made.long, made.cut)


def _numbers(packed: Packed, rows: list[int], stops: tuple[int, ...]) -> Numbers:
    """The numbers of samples that lie end to end."""
    numbers = Numbers(
        array("q", packed.lengths.tolist()), array("q", packed.learnt_counts.tolist()), rows=array("q", rows)
    )
    borders = numpy.concatenate([[0], numpy.cumsum(packed.lengths, dtype=numpy.int64)]).tolist()
    learnt_borders = numpy.concatenate([[0], numpy.cumsum(packed.learnt_counts, dtype=numpy.int64)]).tolist()
    is_stop = numpy.isin(packed.tokens[packed.learnt], stops)
    for i in range(len(numbers)):
        place = slice(borders[i], borders[i + 1])
        numbers.digests.append(digest(packed.tokens[place], packed.learnt[place]))
        tail = is_stop[learnt_borders[i] : learnt_borders[i + 1]][-LAST_TOKENS:]
        numbers.stopped.append(bool(tail.any()))
    return numbers


# ------------------------------------------------------------------------------------------------------------ witnesses


def _chosen(used: Sequence[int], places: Places) -> NDArray[numpy.bool_]:
    """The rows that become witnesses: the first of every data set, and others evenly spread."""
    by_source: dict[str, list[int]] = {}
    for row in used:
        by_source.setdefault(places.sources[row], []).append(row)
    chosen = numpy.zeros(len(places), dtype=numpy.bool_)
    for rows in by_source.values():
        every = max(len(rows) // WITNESSES, 1)
        chosen[[*rows[:FIRST], *rows[::every][:WITNESSES]]] = True
    return chosen


def _witnesses(task: MeasuredJob, found: _Finding, rendering: Rendering) -> Iterator[Witness]:
    """The wanted rows of a job, whole and uncut; a row that cannot be rendered is in the report and is none."""
    records, reading, wanted = task.job
    outcomes = found.reader.read(Batch(records, found.readings[reading]))
    items = [outcome for outcome in outcomes if isinstance(outcome, Item)]
    for inside in wanted or ():
        item = items[inside]
        try:
            looked_at = parts(item.conversation, rendering.task)
        except DataError:
            continue
        for part, sample in zip(looked_at, rendering.samples([p.conversation for p in looked_at]), strict=True):
            if isinstance(sample, Sample):
                yield Witness(task.first + inside, item, part, sample)
