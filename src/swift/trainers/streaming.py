"""This file knows how a training follows a stream: its batches, its place in every checkpoint, its passes."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from typing_extensions import override

from swift.core.logs import get_logger
from swift.data.cursor import Cursor, cursor_file, read_cursors, resumption
from swift.data.quarantine import note_bad_rows, write_bad_rows
from swift.data.report import Report
from swift.data.rows import BadRow
from swift.data.stream import Collate, Share, Stream, StreamBatch, StreamedBatches
from swift.trainers.arguments import Arguments
from swift.trainers.processes import gathered, largest

_ALMOST = 1e-6


def for_stream(args: Arguments) -> Arguments:
    """The arguments of a run that reads a stream.

    transformers would find its place by reading and dropping everything up to it; the stream finds it by itself.
    """
    if args.dataloader_num_workers > 1:
        get_logger().info(
            "--dataloader_num_workers %d: a stream is read by one process beside each training process",
            args.dataloader_num_workers,
        )
    return replace(args, ignore_data_skip=True, dataloader_num_workers=min(args.dataloader_num_workers, 1))


class Follower(TrainerCallback):
    """Follows a stream through one training.

    Gives out its batches, keeps the place after the last optimizer step and writes it into every checkpoint, says what
    became of the rows, and does at the end of a pass what is asked for at the end of an epoch.

    speaks: whether this process says and writes what it knows; of those that share a row (`--sequence_parallel_size`)
        one does.
    report: what became of all rows so far, those before a checkpoint included.
    """

    def __init__(self, stream: Stream, share: Share, collate: Collate, speaks: bool = True) -> None:
        self.stream = stream
        self.share = share
        self.collate = collate
        self.speaks = speaks
        self.report = Report()
        self._bad: dict[tuple[str, int], BadRow] = {}
        self._folder: Path | None = None
        self._cursor: Cursor | None = None
        self._finished = 0
        self._begins: list[Cursor] = []

    def go_to(self, checkpoint: Path) -> None:
        """Begin where the run that saved this checkpoint was. Raises RunError when that cannot be known."""
        saved = read_cursors(checkpoint)
        self._begins = [Cursor.from_json(each["cursor"]) for each in saved]
        self._finished = min(cursor.finished for cursor in self._begins)
        reports = [_read_report(each["report"]) for each in saved]
        own = [set(cursor.lanes) == set(self.share.own) for cursor in self._begins]
        # Of processes that were more or fewer, the first one carries on the accounts.
        carried = [report for report, is_own in zip(reports, own, strict=True) if is_own or not any(own)]
        for report in carried if any(own) or self.share.rank == 0 else []:
            _add(self.report, report)

    def loader(self, args: TrainingArguments) -> DataLoader[StreamBatch]:
        """The batches of this process, made beside it with `--dataloader_num_workers 1`."""
        begin = None
        self._folder = Path(str(args.output_dir))
        if self._begins:
            begin = resumption(self._begins, self.stream.plan(self.share.lanes), self.share.own)
            place = begin.reading
            get_logger().info(
                "going on in pass %d of the stream, behind %d rows", place.epoch + 1, place.position - len(place.rows())
            )
        return DataLoader(
            StreamedBatches(self.stream, self.share, self.collate, begin),
            batch_size=None,
            collate_fn=_as_it_is,  # type: ignore[arg-type]  # without a batch size it is given one item
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and torch.accelerator.is_available(),
            prefetch_factor=args.dataloader_prefetch_factor,
            worker_init_fn=_ignore_interrupt,
            # A loader draws a number when it begins; drawn from the common generator, it would make a resumed run differ.
            generator=torch.Generator(),
        )

    def unwrap(self, batches: Sequence[StreamBatch]) -> list[dict[str, Any]]:
        """The tensors of the batches of one optimizer step, whose place is kept. Raises what the stream ended with."""
        inputs = []
        for batch in batches:
            for remark in batch.remarks:
                get_logger().warning("%s", remark)
            self._hear(batch.news)
            if batch.fault is not None:
                raise batch.fault
            assert batch.inputs is not None, "a batch without a fault has tensors"
            inputs.append(batch.inputs)
            self._cursor = batch.cursor or self._cursor
        return inputs

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Count passes as epochs, the same on all processes, and act at their ends."""
        assert self._cursor is not None, "a step has had batches, and the last one a cursor"
        finished = -largest(-self._cursor.finished, args.device)
        state.epoch = min(max(self._cursor.progress, finished), finished + 1 - _ALMOST)
        if finished > self._finished and not control.should_training_stop:
            control.should_log |= args.logging_strategy == IntervalStrategy.EPOCH
            control.should_evaluate |= args.eval_strategy == IntervalStrategy.EPOCH
            control.should_save |= args.save_strategy == SaveStrategy.EPOCH
        if finished > self._finished:
            get_logger().info("step %d: pass %d over the stream has ended", state.global_step, finished)
        self._finished = finished

    def write_place(self, folder: Path) -> None:
        """Write the place after the last optimizer step into a checkpoint."""
        if self._cursor is None or not self.speaks:
            return
        saved = {"cursor": self._cursor.as_json(), "report": _write_report(self.report)}
        file = cursor_file(folder, self.share.rank, self.share.processes)
        file.write_text(json.dumps(saved, ensure_ascii=False), encoding="utf-8")

    @override
    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Sum up what became of the rows, over all processes; those that cannot be used are written with their texts."""
        total = Report()
        for report in gathered(self.report if self.speaks else Report()):
            _add(total, report)
        total.log()
        bad = {place: row for rows in gathered(self._bad) for place, row in rows.items()}
        if state.is_world_process_zero:
            write_bad_rows([bad[place] for place in sorted(bad)], Path(str(args.output_dir)))

    def _hear(self, news: Report) -> None:
        """Count what became of some rows, write down the bad ones, and show the first row of every cause at once."""
        for cause, (_, row) in news.dropped.items():
            if cause not in self.report.dropped:
                get_logger().warning("left out: %s (others like it are counted)", row)
        _add(self.report, news)
        met = {(row.file, row.line): row for row in news.bad}
        first_met = [row for place, row in met.items() if place not in self._bad]
        if first_met and self._folder is not None:
            note_bad_rows(first_met, self._folder)
        self._bad.update(met)


def _add(total: Report, news: Report) -> None:
    total.read += news.read
    total.cut += news.cut
    total.train += news.train
    for cause, (count, row) in news.dropped.items():
        before, first = total.dropped.get(cause, (0, row))
        total.dropped[cause] = (before + count, first)


def _write_report(report: Report) -> dict[str, Any]:
    dropped = [[cause, count, asdict(row)] for cause, (count, row) in report.dropped.items()]
    return {"read": report.read, "cut": report.cut, "train": report.train, "dropped": dropped}


def _read_report(values: Mapping[str, Any]) -> Report:
    dropped = {cause: (count, BadRow(**row)) for cause, count, row in values["dropped"]}
    return Report(read=values["read"], cut=values["cut"], train=values["train"], dropped=dropped)


def _as_it_is(batch: StreamBatch) -> StreamBatch:
    return batch


def _ignore_interrupt(_: int) -> None:
    """Ctrl-C reaches every process of a terminal; the training process decides when the one beside it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
