"""This file knows how many optimizer steps a run takes, and how many checkpoints it writes, from counts alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from swift.options.training import TrainingOptions


@dataclass(frozen=True)
class Schedule:
    """The steps of a run.

    rows: what one epoch draws: samples, or packs of them.
    rows_per_step: of all processes and all accumulated batches together.
    per_epoch: optimizer steps of one epoch.
    total: optimizer steps of the run.
    checkpoints: how many are written; how many of them are on disk at a time.
    """

    rows: int
    rows_per_step: int
    per_epoch: int
    total: int
    checkpoints: int
    kept: int

    @property
    def epochs(self) -> float:
        """How often the run goes through its rows."""
        return self.total / self.per_epoch


def schedule(training: TrainingOptions, rows: int, processes: int) -> Schedule:
    """The steps of a run over `rows` samples or packs; the short batches at the end of an epoch count as steps too."""
    assert training.gradient_accumulation_steps is not None, "it is derived before a run is looked at"
    accumulation = training.gradient_accumulation_steps
    batches = math.ceil(rows / (training.per_device_train_batch_size * processes))
    per_epoch = max(math.ceil(batches / accumulation), 1)
    total = training.max_steps if training.max_steps > 0 else math.ceil(training.num_train_epochs * per_epoch)
    written = _checkpoints(training, per_epoch, total)
    # A new checkpoint is written before the oldest is removed.
    kept = written if training.save_total_limit is None else min(written, training.save_total_limit + 1)
    return Schedule(
        rows, training.per_device_train_batch_size * processes * accumulation, per_epoch, total, written, kept
    )  # fmt: skip


def _checkpoints(training: TrainingOptions, per_epoch: int, total: int) -> int:
    """How many checkpoints are written; the last step always ends with one."""
    if training.save_strategy == "no":
        return 0
    every = per_epoch if training.save_strategy == "epoch" else training.save_steps
    if every < 1:
        every = max(math.ceil(total * every), 1)
    return math.ceil(total / every)
