"""This file knows how rows are read and prepared while training goes on (`--streaming`), and how that is continued.

The rows come in one order (`data/passes.py`), the same for every number of processes. A total batch of G samples has
G lanes, one for each of its places; row number p of the stream goes to lane (p + p // G) mod G. A lane makes its own
rows into samples and gives one, or one pack of them, to every step. So a process that fills some lanes tokenizes their
rows only, nobody waits for anybody, and a row that is left out is replaced by the next one of its lane.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

from torch.utils.data import IterableDataset

from swift.chat.render import Sample
from swift.core.errors import DataError, SwiftError
from swift.core.logs import get_logger
from swift.data.conversations import ItemReader
from swift.data.cursor import Cursor, LaneState, PieceRef, Resumption, Waiting
from swift.data.encode import Preparation, check_options
from swift.data.groups import Draw, GroupSet
from swift.data.library import HubAccess, Library
from swift.data.mixing import check_probabilities
from swift.data.passes import Order, Passes, StreamedSet, StreamRow
from swift.data.preparer import Job, Preparer, Renders
from swift.data.records import open_records
from swift.data.report import Report
from swift.data.samples import SampleSet, SampleStore
from swift.data.streamed_packing import check_capacity, fills_window, pack_window
from swift.data.tasks import SUPERVISED, Aim
from swift.options.data import DataOptions
from swift.options.row_sources import parse_source
from swift.options.template import TemplateOptions

Collate = Callable[[list[Any]], dict[str, Any]]
Validation = tuple[SampleSet | GroupSet, Report]
"""Samples to validate on, and what was left out of them."""

_PATIENCE = 4


@dataclass(frozen=True)
class Stream:
    """What a training reads while it goes on.

    prepare: makes samples of records; it numbers the files of all data sets from the first to the last.
    packing_length: the tokens of a pack; None packs nothing.
    aim: what samples are for.
    """

    sets: tuple[StreamedSet, ...]
    order: Order
    prepare: Preparer
    options: DataOptions
    template: TemplateOptions
    packing_length: int | None
    aim: Aim = SUPERVISED

    def describe(self) -> str:
        """The data sets and how they are mixed, in one line."""
        names = ", ".join(each.name for each in self.sets)
        files = sum(len(each.files) for each in self.sets)
        shuffled = f"shuffled among {self.order.buffer} rows" if self.order.buffer else "in their own order"
        return f"a stream of {names}: {files} {'file' if files == 1 else 'files'}, {shuffled}"

    def first(self) -> Sample:
        """The first sample. Raises DataError when no row can be used."""
        first = Dealer(self, Share(1, 1)).batch(0)[0]
        return first[0] if isinstance(first, list) else first

    def plan(self, lanes: int) -> dict[str, Any]:
        """What must be the same for a place in this stream to mean something, by the words of the command line."""
        return {
            "--dataset": [each.name for each in self.sets],
            "files": [[[file.path.name, file.size] for file in each.files] for each in self.sets],
            "--data_seed": self.order.seed,
            "--interleave_prob": list(self.order.probabilities or ()),
            "--stopping_strategy": self.order.stopping,
            "--shuffle_buffer_size": self.order.buffer,
            "--max_length": self.template.max_length,
            "--truncation_strategy": self.template.truncation_strategy,
            "--packing_length": self.packing_length,
            "total batch": lanes,
        }


def open_stream(options: DataOptions, template: TemplateOptions, renderer: Renders,
                access: HubAccess | None = None, *, packing_length: int | None = None, aim: Aim = SUPERVISED) -> Stream:  # fmt: skip
    """The stream of `--dataset`; `packing_length` packs its samples, or the rows whose samples stay together.

    Raises DataError when a data set is missing or has no rows, UsageError when rows could be longer than a pack.
    """
    check_options(options, template)
    if packing_length is not None:
        check_capacity(packing_length, template.max_length)
    library = Library.of(options, access)
    sources = [parse_source(argument) for argument in options.dataset]
    readings = [library.readings(source) for source in sources]
    sets = tuple(
        StreamedSet(str(source), tuple(open_records(each.file) for each in some), source.count)
        for source, some in zip(sources, readings, strict=True)
    )
    probabilities = None if options.interleave_prob is None else tuple(options.interleave_prob)
    if probabilities is not None:
        check_probabilities(probabilities, len(sets))
    buffer = options.shuffle_buffer_size if options.dataset_shuffle else 0
    order = Order(options.data_seed, probabilities, options.stopping_strategy, buffer)
    Passes(sets, order)  # a data set without rows is found before the model is loaded
    prepare = Preparer(options, [each for some in readings for each in some], renderer, template, aim)
    return Stream(sets, order, prepare, options, template, packing_length, aim)


@dataclass(frozen=True)
class StreamedData:
    """What a run with `--streaming` trains on.

    val: None when there is nothing to validate on. report: what was left out of it; it has been logged.
    val_rows: none, for the command line names the rows to validate on.
    """

    train: Stream
    val: SampleSet | GroupSet | None
    report: Report
    val_rows: tuple[()] = ()


def load_stream(options: DataOptions, template: TemplateOptions, renderer: Renders,  # noqa: PLR0913 (as many as parts)
                access: HubAccess | None = None,
                plugins: Sequence[str] = (), *, packing_length: int | None = None, aim: Aim = SUPERVISED,
                once: Callable[[Callable[[], Validation]], Validation] = lambda make: make()) -> StreamedData:  # fmt: skip
    """The stream of `--dataset`, and the samples of `--val_dataset`, which are made at once.

    once: makes the latter; where there are several processes, by one of them for all.
    Raises what `open_stream` raises, and DataError when no row is left to validate on.
    """
    stream = open_stream(options, template, renderer, access, packing_length=packing_length, aim=aim)
    get_logger().info("train: %s", stream.describe())
    if not options.val_dataset and not options.cached_val_dataset:
        return StreamedData(stream, None, Report())
    val, report = once(lambda: _validation(options, template, renderer, access, plugins, aim))
    return StreamedData(stream, val, report)


def _validation(options: DataOptions, template: TemplateOptions, renderer: Renders, access: HubAccess | None,
                plugins: Sequence[str], aim: Aim) -> Validation:  # fmt: skip
    rest = options.model_copy(update={"dataset": [], "interleave_prob": None})
    with Preparation(rest, template, renderer, access, plugins, aim=aim) as preparation:
        val = preparation.used(preparation.arrange(are_all=False).val or [])
    report = preparation.report
    report.val = len(val)
    report.log()
    if not len(val):
        raise DataError("No row of --val_dataset is left to validate on.")
    get_logger().info("validation: %s", val.describe())
    return val, report


@dataclass(frozen=True)
class Share:
    """Which places of a total batch one process fills.

    A total batch is `accumulation` batches of `batch_size` samples on each of the `processes`, one after the other.
    """

    batch_size: int
    accumulation: int
    rank: int = 0
    processes: int = 1

    @property
    def lanes(self) -> int:
        """The samples of a total batch."""
        return self.batch_size * self.accumulation * self.processes

    def places(self, batch: int) -> range:
        """The places that batch number `batch` of this process fills."""
        first = (batch * self.processes + self.rank) * self.batch_size
        return range(first, first + self.batch_size)

    @property
    def own(self) -> list[int]:
        """All places that this process fills."""
        return [place for batch in range(self.accumulation) for place in self.places(batch)]


@dataclass(slots=True)
class Piece:
    """A sample in the form that takes little memory, and the row it was made of; or all samples of a row.

    number: of the sample; None for all, of which `draw` may give some.
    """

    ref: PieceRef
    store: SampleStore
    number: int | None
    length: int
    draw: Draw | None = None

    @property
    def taken(self) -> Sample | list[Sample]:
        """What is put into a batch."""
        if self.number is not None:
            return self.store.sample(self.number)
        samples = [self.store.sample(number) for number in range(len(self.store))]
        return samples if self.draw is None else self.draw(samples, self.ref.ref, self.ref.epoch)


@dataclass
class _Lane:
    """What one place of the total batch will be filled with: rows, samples, packs of samples."""

    dealt: int = 0
    queue: deque[StreamRow] = field(default_factory=deque)
    pieces: list[Piece] = field(default_factory=list)
    packs: deque[list[Piece]] = field(default_factory=deque)

    def epoch(self, upcoming: int) -> int:
        """The oldest pass of which something is left here; `upcoming` when nothing is."""
        held = [piece.ref.epoch for piece in (*self.pieces, *(piece for pack in self.packs for piece in pack))]
        return min([*held, *(row.epoch for row in self.queue), upcoming])

    def state(self) -> LaneState:
        """The lane as references."""
        return LaneState(
            [Waiting(row.ref, row.epoch) for row in self.queue],
            [piece.ref for piece in self.pieces],
            [[piece.ref for piece in pack] for pack in self.packs],
        )


class Dealer:
    """Deals the rows of a stream to the lanes of one process and makes samples of them.

    news: what became of the rows that were read since it was last replaced.
    remarks: what is to be told, once the rows of the first pass have been seen.

    resumption: where to begin; None begins with the first row. Raises DataError when no row can be used, and with
    `--strict true` for the first that cannot.
    """

    def __init__(self, stream: Stream, share: Share, resumption: Resumption | None = None) -> None:
        self.stream = stream
        self.share = share
        self.news = Report(strict=stream.options.strict)
        self.remarks: list[str] = []
        self._reader = ItemReader(stream.options, keep_values=False)
        self._first_files = [0, *accumulate(len(each.files) for each in stream.sets)]
        self._is_new = resumption is None
        self._rows = Passes(stream.sets, stream.order)
        self._lanes = {place: _Lane() for place in share.own}
        self._fruitless = 0
        if resumption is not None:
            self._go_on(resumption)

    def batch(self, number: int) -> list[Sample | list[Sample]]:
        """Batch `number` of the total batch: for each of its places a sample, or those of a pack or of a row."""
        taken = [piece.taken for place in self.share.places(number) for piece in self._take(self._lanes[place])]
        self.news.train += len(taken)
        return taken

    def cursor(self) -> Cursor:
        """Where the stream is now."""
        return Cursor(
            self.stream.plan(self.share.lanes),
            self._rows.state(),
            {place: lane.state() for place, lane in self._lanes.items()},
            self._rows.progress,
            min(lane.epoch(self._rows.epoch) for lane in self._lanes.values()),
        )

    # --------------------------------------------------------------------------------------------------------- filling

    def _take(self, lane: _Lane) -> list[Piece]:
        if self.stream.packing_length is None:
            while not lane.pieces:
                self._fill(lane)
            return [lane.pieces.pop(0)]
        if not lane.packs:
            self._pack(lane, self.stream.packing_length)
        return lane.packs.popleft()

    def _pack(self, lane: _Lane, capacity: int) -> None:
        while not fills_window([piece.length for piece in lane.pieces], capacity):
            self._fill(lane)
        packs, waiting = pack_window([piece.length for piece in lane.pieces], capacity)
        lane.packs.extend([lane.pieces[position] for position in pack] for pack in packs)
        lane.pieces = [lane.pieces[position] for position in waiting]

    def _fill(self, lane: _Lane) -> None:
        """Make samples of the next row of a lane."""
        while not lane.queue:
            self._deal()
        pieces = self._pieces(lane.queue.popleft(), self.news)
        lane.pieces += pieces
        self._fruitless = 0 if pieces else self._fruitless + 1
        if self._rows.length is not None and self._fruitless > self._rows.length + _PATIENCE * self.share.lanes:
            raise DataError(f"None of the last {self._fruitless} rows can be used:\n{self.news.causes()}")

    def _deal(self) -> None:
        """Give the next row of the stream to its lane, if this process fills it."""
        position, lanes = self._rows.position, self.share.lanes
        row = self._rows.next()
        if self._is_new and self._rows.length is not None:
            self._is_new = False
            self._check_options()
        lane = self._lanes.get((position + position // lanes) % lanes)
        if lane is not None and position >= lane.dealt:
            lane.queue.append(row)

    def _check_options(self) -> None:
        """An option about rows that has met none to have an effect on is a mistake, which is no reason to stop now."""
        try:
            self._reader.finish()
        except DataError as error:
            self.remarks.append(str(error))

    def _pieces(self, row: StreamRow, report: Report) -> list[Piece]:
        """The samples of a row, none when it is left out; the report is told."""
        file = self._rows.file(row.ref)
        first = self._first_files[row.ref.dataset]
        made = self.stream.prepare(Job([file.decode(row.record)], first + row.ref.file))
        self._reader.met.add(made.met)
        report.read += 1
        report.cut += made.cut
        for _, bad in made.bad:
            report.drop(bad)
        for long in made.long:
            report.leave_out(long)
        store = SampleStore(made.packed)
        lengths = store.lengths.tolist()
        if self.stream.aim.is_grouped:
            draw, ref = self.stream.aim.draw, PieceRef(row.ref, row.epoch, 0)
            return [Piece(ref, store, None, _most_tokens(store, draw), draw)] if lengths else []
        return [
            Piece(PieceRef(row.ref, row.epoch, number), store, number, length) for number, length in enumerate(lengths)
        ]

    # ------------------------------------------------------------------------------------------------------- going on

    def _go_on(self, resumption: Resumption) -> None:
        needed = [held.ref for held in resumption.reading.rows()]
        needed += [ref for lane in resumption.lanes.values() for ref in lane.refs()]
        records = self._rows.load(needed)
        self._rows.go_to(resumption.reading, records)
        for place, state in resumption.lanes.items():
            made: dict[Waiting, list[Piece]] = {}

            def again(ref: PieceRef, made: dict[Waiting, list[Piece]] = made) -> Piece:
                row = Waiting(ref.ref, ref.epoch)
                if row not in made:
                    made[row] = self._pieces(StreamRow(*row, records[ref.ref]), Report())
                return made[row][ref.piece]

            self._lanes[place] = _Lane(
                resumption.dealt[place],
                deque(StreamRow(*row, records[row.ref]) for row in state.queue),
                [again(ref) for ref in state.pieces],
                deque([again(ref) for ref in pack] for pack in state.packs),
            )


def _most_tokens(store: SampleStore, draw: Draw | None) -> int:
    """The most tokens that are given of a row."""
    if draw is None:
        return int(store.lengths.sum())
    labels = [store.sample(number).extra["label"] for number in range(len(store))]
    return draw.most_tokens(store.lengths.tolist(), labels)


class StreamBatch(NamedTuple):
    """One batch on its way from the process that makes it to the one that trains on it.

    inputs: the tensors; None when there is a fault.
    cursor: the place in the stream after this batch; with the last batch of a total batch only.
    news: what became of the rows read for this batch.
    remarks: what is to be told.
    fault: why the stream ends here.
    """

    inputs: dict[str, Any] | None
    cursor: Cursor | None
    news: Report
    remarks: tuple[str, ...] = ()
    fault: SwiftError | None = None


class StreamedBatches(IterableDataset[StreamBatch]):
    """The batches of one process, total batch after total batch, without end; iterate it once."""

    def __init__(self, stream: Stream, share: Share, collate: Collate, resumption: Resumption | None) -> None:
        self.stream = stream
        self.share = share
        self.collate = collate
        self.resumption = resumption

    def __iter__(self) -> Iterator[StreamBatch]:
        try:
            dealer = Dealer(self.stream, self.share, self.resumption)
            while True:
                yield from self._total_batch(dealer)
        except SwiftError as fault:  # a process of torch would wrap it into one whose message is a traceback
            yield StreamBatch(None, None, Report(), fault=fault)

    def _total_batch(self, dealer: Dealer) -> Iterator[StreamBatch]:
        for number in range(self.share.accumulation):
            inputs = self.collate(dealer.batch(number))
            is_last = number == self.share.accumulation - 1
            news, dealer.news = dealer.news, Report(strict=self.stream.options.strict)
            remarks, dealer.remarks = tuple(dealer.remarks), []
            yield StreamBatch(inputs, dealer.cursor() if is_last else None, news, remarks)
