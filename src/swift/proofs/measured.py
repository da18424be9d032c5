"""This file knows how all rows of a run are prepared and measured: numbers of every sample, and some rows whole.

They are prepared by what a run does itself; what is kept of it (`--load_from_cache_file true`) the run will find. Nothing
of a row stays in memory but its numbers, unless it becomes a witness.

Axes: N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray

from swift.chat.messages import Conversation
from swift.chat.reading import Readings
from swift.chat.render import Renderer, Sample
from swift.core.errors import DataError
from swift.core.labels import IGNORED
from swift.data.conversations import Item
from swift.data.encode import Preparation, check_options
from swift.data.library import HubAccess
from swift.data.report import Report
from swift.data.samples import Store
from swift.data.tasks import Aim, Part
from swift.options.data import DataOptions
from swift.options.template import TemplateOptions
from swift.proofs.duplicates import digest

FIRST = 2
"""Rows of every data set that are shown."""
WITNESSES = 48
"""Rows of every data set that are looked at token by token."""
NEIGHBOURS = 4
"""Of these, how many stand together: the file is read again in few places."""
LAST_TOKENS = 4
"""Learnt tokens at the end of a sample among which the one that ends the reply must be: white space may follow it."""

Integers = NDArray[numpy.int64]


@dataclass(frozen=True)
class Witness:
    """A row, or one part of it, that is looked at closely. `row` is its number among all rows."""

    row: int
    source: str
    item: Item
    part: Part
    sample: Sample

    @property
    def place(self) -> str:
        """File and line."""
        return f"{self.item.file}:{self.item.line}"


@dataclass(frozen=True)
class Numbers:
    """The samples of a run that are used, N of them, in the order in which their rows stand in the data sets.

    lengths, learnt: tokens, and those of them that are learnt [N].
    stopped: whether the end of what is learnt holds a token that ends a reply [N].
    digests: see `duplicates.digest` [N].
    rows: the number of the row of each sample [N]. sources: the number of its data set [N].
    """

    lengths: Integers
    learnt: Integers
    stopped: NDArray[numpy.bool_]
    digests: list[bytes]
    rows: Integers
    sources: Integers


@dataclass(frozen=True)
class Measured:
    """The samples of a run.

    names: of the data sets, by their numbers.
    longer: how many rows are longer than `--max_length`, whether they are left out or cut.
    train, val: the samples in the order, and as often, as they are used.
    rows_to_train: how many rows an epoch of training draws.
    read: reads rows again, by their numbers.
    """

    numbers: Numbers
    names: list[str]
    report: Report
    longer: int
    train: Integers
    val: Integers
    rows_to_train: int
    witnesses: list[Witness]
    read: Callable[[Sequence[int]], list[Item]]

    def place(self, sample: int) -> str:
        """File and line of a sample, found in the file; for the few that are named."""
        [item] = self.read([int(self.numbers.rows[sample])])
        return f"{item.file}:{item.line}"


@dataclass(frozen=True)
class Rendering:
    """What turns rows into samples: how they are rendered, what a task looks at, and how long they may be."""

    renderer: Renderer
    template: TemplateOptions
    aim: Aim

    def samples(self, conversations: Sequence[Conversation]) -> list[Sample | DataError]:
        """A sample per conversation; of a prompt, and of what is only read, nothing is learnt."""
        if self.aim.reads:
            return Readings(self.renderer).samples(conversations)
        if self.aim.task != "prompt":
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
    options: DataOptions, rendering: Rendering, access: HubAccess | None = None, plugins: Sequence[str] = ()
) -> Measured:
    """Prepare and measure the rows of a run. Every row that does not make it is in the report with its cause.

    Raises DataError for data sets that cannot be read, and with --strict true for the first bad row; UsageError when
    rows shall be cut as they cannot be.
    """
    template = rendering.template
    check_options(options, template)
    with Preparation(options, template, rendering, access, plugins, aim=rendering.aim) as preparation:
        order = preparation.arrange()
        rows = numpy.unique(numpy.array([*order.train, *(order.val or ())], dtype=numpy.int64))
        store, starts, counts = preparation.located(rows.tolist())
    stops = frozenset(rendering.renderer.stop_token_ids)
    owners, names, report = preparation.owners(rows), preparation.names, preparation.report
    numbers = _numbers(store, _ranges(starts, counts), stops, numpy.repeat(rows, counts), numpy.repeat(owners, counts))
    firsts = numpy.cumsum(counts) - counts
    in_train = numpy.searchsorted(rows, numpy.array(order.train, dtype=numpy.int64))
    in_val = numpy.searchsorted(rows, numpy.array(order.val or (), dtype=numpy.int64))
    train = _ranges(firsts[in_train], counts[in_train])
    val = _ranges(firsts[in_val], counts[in_val])
    report.train, report.val = len(train), len(val)
    too_long, _ = report.dropped.get(f"longer than --max_length {template.max_length}", (0, None))
    return Measured(
        numbers, names, report, report.cut + too_long, train, val, int((counts[in_train] > 0).sum()),
        list(_witnesses(preparation, rendering, _chosen(rows, owners))), preparation.items,
    )  # fmt: skip


def _ranges(starts: Integers, counts: Integers) -> Integers:
    """The numbers of several ranges, one behind the other."""
    within = numpy.arange(counts.sum()) - numpy.repeat(numpy.cumsum(counts) - counts, counts)
    return numpy.repeat(starts, counts) + within


def _numbers(store: Store, samples: Integers, stops: frozenset[int], rows: Integers, sources: Integers) -> Numbers:
    """The numbers of these samples of a store, of these rows."""
    stopped, digests = numpy.zeros(len(samples), dtype=numpy.bool_), []
    for place, sample in enumerate(samples.tolist()):
        tokens, learnt = store.arrays(sample)
        digests.append(digest(tokens, learnt))
        stopped[place] = not stops.isdisjoint(tokens[numpy.flatnonzero(learnt)[-LAST_TOKENS:]].tolist())
    return Numbers(store.lengths[samples], store.learnt_counts[samples], stopped, digests, rows, sources)


def _chosen(rows: Integers, owners: Integers) -> list[int]:
    """The rows that become witnesses: the first of every data set, and groups of others evenly spread."""
    chosen: list[int] = []
    for owner in numpy.unique(owners):
        own = rows[owners == owner]
        groups = len(own) // NEIGHBOURS
        first = numpy.arange(groups)[:: max(groups * NEIGHBOURS // WITNESSES, 1)] * NEIGHBOURS
        spread = (first[:, None] + numpy.arange(NEIGHBOURS)).ravel() if len(own) > WITNESSES else numpy.arange(len(own))
        chosen += numpy.union1d(own[:FIRST], own[spread[:WITNESSES]]).tolist()
    return chosen


def _witnesses(preparation: Preparation, rendering: Rendering, rows: Sequence[int]) -> Iterator[Witness]:
    """These rows, whole and uncut; a row that cannot be rendered is in the report and is none."""
    names = [preparation.names[owner] for owner in preparation.owners(numpy.array(rows, dtype=numpy.int64))]
    for row, name, item in zip(rows, names, preparation.items(rows), strict=True):
        try:
            looked_at = rendering.aim.parts(item.conversation)
        except DataError:
            continue
        for part, sample in zip(looked_at, rendering.samples([p.conversation for p in looked_at]), strict=True):
            if isinstance(sample, Sample):
                yield Witness(row, name, item, part, sample)
