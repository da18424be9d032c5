"""This file knows how some records become samples: read, rendered, measured, cut; in whatever process that happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from swift.chat.messages import Conversation
from swift.chat.render import Sample
from swift.core.errors import DataError, SwiftError
from swift.data.conversations import Batch, Item, ItemReader
from swift.data.files import Block
from swift.data.formats import Met, as_row
from swift.data.library import Reading
from swift.data.rows import BadRow, Row, RowError
from swift.data.samples import Packed, pack
from swift.data.tasks import SUPERVISED, Aim, Part
from swift.data.truncate import Strategy, truncate
from swift.options.data import DataOptions
from swift.options.template import TemplateOptions

T = TypeVar("T")
M = TypeVar("M")

_ROWS_AT_ONCE = 1000
_NO_SAMPLES = pack([])


class Renders(Protocol):
    """What turns conversations into samples, many at once."""

    def samples(self, conversations: list[Conversation]) -> list[Sample | DataError]:
        """A sample per conversation, or the reason why there is none."""
        ...

    def identity(self) -> dict[str, Any]:
        """Plain values that decide which samples these are."""
        ...


class Job(NamedTuple):
    """Records to make samples of.

    reading: the file they come from, by its place among the readings of the run.
    wanted: which of the rows that can be read are made into samples, in ascending order; None for all.
    """

    records: Block | list[Row | BadRow]
    reading: int
    wanted: tuple[int, ...] | None = None


@dataclass
class Prepared:
    """What became of some records.

    readable: how many rows can be read, wanted or not.
    bad: records that cannot be used and why, in order; with each, whether it could not even be read.
    long: rows left out because they are longer than `--max_length`. cut: how many were cut instead.
    packed: the samples of the wanted rows.
    met: what the records had, of all of that file that this process has read so far.
    """

    readable: int
    bad: list[tuple[bool, BadRow]]
    long: list[BadRow]
    cut: int
    packed: Packed
    met: Met


class Preparer:
    """Makes samples of records. It is called in every process that prepares rows.

    options: how records are read. readings: the files of all data sets. aim: which conversations of a row become
    samples. keeps_rows: whether the rows themselves are put beside their samples.
    """

    def __init__(self, options: DataOptions, readings: Sequence[Reading], renderer: Renders,
                 template: TemplateOptions, aim: Aim = SUPERVISED, *, keeps_rows: bool = False) -> None:  # fmt: skip
        assert template.truncation_strategy is not None, "--truncation_strategy is resolved before data is loaded"
        self._options = options
        self._readings = readings
        self._readers: dict[int, ItemReader] = {}
        self._renderer = renderer
        self._max_length = template.max_length
        self._strategy: Strategy = template.truncation_strategy
        self._aim = aim
        self._keeps_rows = keeps_rows

    def __call__(self, job: Job) -> Prepared:
        """The samples of a job, and what became of all its records."""
        reader = self._readers.get(job.reading)
        if reader is None:
            reader = self._readers[job.reading] = ItemReader(self._options, keep_values=False)
        outcomes = list(reader.read(Batch(job.records, self._readings[job.reading])))
        numbers = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, Item)]
        if job.wanted and job.wanted[-1] >= len(numbers):
            raise changed(self._readings[job.reading].file)
        wanted = numbers if job.wanted is None else [numbers[index] for index in job.wanted]
        faults = {number: (True, row) for number, row in enumerate(outcomes) if isinstance(row, BadRow)}
        made = Prepared(len(numbers), [], [], 0, _NO_SAMPLES, reader.met)
        rows: list[list[Sample]] = []
        texts: list[dict[str, Any]] = []
        for start in range(0, len(wanted), _ROWS_AT_ONCE):
            some = wanted[start : start + _ROWS_AT_ONCE]
            items = [item for number in some if isinstance(item := outcomes[number], Item)]
            for number, item, samples in zip(some, items, each_or_all(self._rendered, items), strict=True):
                kept = self._kept(samples, item, made)
                if isinstance(kept, BadRow):
                    faults[number] = (False, kept)
                rows.append([] if isinstance(kept, BadRow) else kept)
                if self._keeps_rows:
                    texts.append(as_row(item.conversation))
        made.bad = [faults[number] for number in sorted(faults)]
        made.packed = pack(rows, texts)
        return made

    def _rendered(self, items: Sequence[Item]) -> list[list[Sample] | DataError]:
        """The samples of each row, one per conversation that the task looks at, or why there are none."""
        if self._aim == SUPERVISED:
            return [
                made if isinstance(made, DataError) else [made]
                for made in self._renderer.samples([item.conversation for item in items])
            ]
        return rendered([item.conversation for item in items], self._aim, self._renderer)

    def _kept(self, made: list[Sample] | DataError, item: Item, account: Prepared) -> list[Sample] | BadRow:
        """The samples of a row as they are used; none when the row is left out for its length."""
        if isinstance(made, RowError):
            return made.at(item.file, item.line)
        if isinstance(made, DataError):
            return BadRow(item.file, item.line, "", str(made).rstrip("."))
        limit = self._max_length
        longest = len(made[0]) if len(made) == 1 else max(len(sample) for sample in made)
        is_long = limit is not None and longest > limit
        if not is_long and len(made) == 1:
            return made
        pieces = made if limit is None else [piece for each in made for piece in truncate(each, limit, self._strategy)]
        if is_long and self._strategy == "delete":
            reason = f"longer than --max_length {limit}"
            account.long.append(BadRow(item.file, item.line, "", reason, f"{longest} tokens"))
            return []
        learnt = [piece for piece in pieces if piece.learnt or self._aim.reads]
        is_whole = len(learnt) == len(pieces) or (len(made) == 1 and learnt)
        if not is_whole:
            within = f" within --max_length {limit}" if is_long else ""
            return BadRow(item.file, item.line, "", f"nothing to learn{within}", f"{longest} tokens")
        account.cut += is_long
        return learnt


def each_or_all(
    render: Callable[[Sequence[T]], Sequence[M | DataError]], items: Sequence[T]
) -> Sequence[M | DataError]:
    """What `render` makes of some rows at once; one by one when it fails, so that a failure costs one row alone."""
    try:
        return render(items)
    except SwiftError:
        raise
    except Exception as error:  # noqa: BLE001 (one row of a million must not end the run, nor without its place known)
        if len(items) == 1:
            return [RowError("", "cannot be rendered", f"{type(error).__name__}: {error}")]
    return [made for item in items for made in each_or_all(render, [item])]


def changed(file: Path) -> DataError:
    """The error of a file that is not what it was when reading began."""
    return DataError(f"{file} was changed while it was read. Start again when it is complete.")


def rendered(conversations: Sequence[Conversation], aim: Aim, renderer: Renders) -> list[list[Sample] | DataError]:
    """The samples of each row, one per conversation that the task looks at, with its label; or why there are none."""
    wanted = [_parts(conversation, aim) for conversation in conversations]
    flat = [part for row in wanted if not isinstance(row, RowError) for part in row]
    samples = iter(renderer.samples([part.conversation for part in flat]))
    return [row if isinstance(row, RowError) else _labelled(row, [next(samples) for _ in row]) for row in wanted]


def _parts(conversation: Conversation, aim: Aim) -> list[Part] | RowError:
    try:
        return aim.parts(conversation)
    except RowError as fault:
        return fault


def _labelled(row: Sequence[Part], samples: Sequence[Sample | DataError]) -> list[Sample] | DataError:
    """The samples of one row with their labels; the first error where one of them could not be made."""
    made = []
    for part, sample in zip(row, samples, strict=True):
        if isinstance(sample, DataError):
            return sample
        if part.label is not None:
            sample.extra = {**sample.extra, "label": part.label}
        made.append(sample)
    return made


class Progress:
    """Says now and then how far a long preparation is."""

    def __init__(self, every: float = 10.0) -> None:
        self._every = every
        self._started = self._said = time.perf_counter()
        self.rows = self.tokens = 0

    def add(self, rows: int, tokens: int) -> str | None:
        """Count what was done; a sentence when the time for one has come."""
        self.rows, self.tokens = self.rows + rows, self.tokens + tokens
        now = time.perf_counter()
        if now - self._said < self._every:
            return None
        self._said = now
        return f"{self.rows:,} rows, {self.tokens:,} tokens, {self.tokens / (now - self._started):,.0f} tokens/s"
