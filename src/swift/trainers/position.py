"""This file knows where in its rows a training is: counted in rows, so that it can go on in steps of another size."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from swift.core.errors import RunError
from swift.core.logs import get_logger
from swift.data.sharding import EpochSampler, LengthGroupedSampler

FILE_NAME = "position.json"


@dataclass(frozen=True)
class Position:
    """A place in the rows, and what they were.

    epoch, rows: so many epochs are behind, and so many rows of the next one.
    step_rows: the rows of an optimizer step of the run that wrote this.
    length, seed, shuffle: the rows of an epoch, and what decides about their order.
    group: the rows that were grouped by length as one batch; None without `--group_by_length`.
    """

    epoch: int
    rows: int
    step_rows: int
    length: int
    seed: int
    shuffle: bool
    group: int | None

    def write(self, folder: Path) -> None:
        """Put it into a checkpoint."""
        (folder / FILE_NAME).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Pace:
    """How a training goes through its rows.

    steps: optimizer steps of an epoch; step_rows: rows of such a step.
    offset: what the count of steps is ahead of this pace, because steps of another size were counted before.
    """

    steps: int
    step_rows: int
    offset: int = 0

    def reached(self, global_step: int) -> tuple[int, int]:
        """The epochs behind a step, and the steps of the next one."""
        return divmod(global_step - self.offset, self.steps)

    def position(self, global_step: int, sampler: EpochSampler) -> Position:
        """The place after a step."""
        epoch, steps = self.reached(global_step)
        rows = min(steps * self.step_rows, sampler.length)
        group = sampler.batch if isinstance(sampler, LengthGroupedSampler) else None
        return Position(epoch, rows, self.step_rows, sampler.length, sampler.seed, sampler.shuffle, group)

    def going_on(self, begin: Position, global_step: int) -> Pace:
        """This pace in a run that goes on from `begin`, which was reached with `global_step`.

        Where steps are of another size the rows of a step that cannot be finished come again; none is left out.
        """
        done = begin.rows // self.step_rows
        if begin.step_rows != self.step_rows:
            get_logger().warning(
                "an optimizer step has %d rows and had %d: going on behind %d rows of epoch %d, of which %d come again",
                self.step_rows, begin.step_rows, begin.rows, begin.epoch + 1, begin.rows - done * self.step_rows,
            )  # fmt: skip
        return Pace(self.steps, self.step_rows, global_step - (begin.epoch * self.steps + done))


def read_position(checkpoint: Path) -> Position | None:
    """The place that a checkpoint was saved at; None when it does not say, as those of other programs."""
    file = checkpoint / FILE_NAME
    return Position(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def join_order(begin: Position, sampler: EpochSampler) -> None:
    """Let the sampler go on in the order in which `begin` was reached. Raises RunError when it has another one."""
    if isinstance(sampler, LengthGroupedSampler) and begin.group is not None:
        sampler.batch = begin.group  # groups stay what they were, whatever a batch is now
    there, here = asdict(begin), asdict(Pace(1, 1).position(0, sampler))
    changed = [words.format(there=there[name], here=here[name])
               for name, words in _WORDS.items() if there[name] != here[name]]  # fmt: skip
    if changed:
        raise RunError(
            f"--resume_from_checkpoint: the place in the data means nothing any more, because {'; '.join(changed)}. Go "
            "on with the data as they were, or take the weights alone: --resume_only_model true --ignore_data_skip true."
        )


_WORDS = {
    "length": "there were {there} rows and are {here}",
    "seed": "--data_seed was {there} and is {here}",
    "shuffle": "--train_dataloader_shuffle was {there} and is {here}",
    "group": "--group_by_length is no longer what it was",
}
"""What decides about the order of rows -> how a change of it is told."""


class Bookmark(TrainerCallback):
    """Keeps the sampler at the epoch of the training, and the intervals at what this run was asked for."""

    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler = sampler

    @override
    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A resumed state brings the logging, saving and evaluation steps of its old run: take those of this one."""
        state.compute_steps(args, state.max_steps)

    @override
    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Tell the sampler its epoch; accelerate does not reach it in a resumed epoch of several processes."""
        self.sampler.set_epoch(int(state.epoch))
