"""This file knows which checkpoints of a run are kept, and what points to them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from typing_extensions import override

from swift.core.logs import get_logger
from swift.trainers.checkpoints import delete
from swift.trainers.outputs import checkpoints


class LastEpoch(TrainerCallback):
    """Ends the training after `limit` epochs, with an evaluation and a checkpoint where the run has such (`--max_epochs`).

    A run that saves or evaluates after every epoch does so at the end of this one in any case.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop with the step that ends the last epoch."""
        if state.epoch is None or state.epoch < self.limit:
            return
        control.should_training_stop = True
        control.should_evaluate = args.eval_strategy == IntervalStrategy.STEPS
        control.should_save = args.save_strategy == SaveStrategy.STEPS
        get_logger().info("step %d: --max_epochs %d is reached", state.global_step, self.limit)

    @override
    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Say it when something else was the end."""
        if state.epoch is not None and state.epoch < self.limit:
            get_logger().info("--max_epochs %d had no effect: the run ended in epoch %.2f", self.limit, state.epoch)


class Checkpoints(TrainerCallback):
    """Keeps the newest `limit` checkpoints, always with the best and the last among them, and names the last.

    With `links`, `<folder>/last` and `<folder>/best` point to them when training ends. With `background` a checkpoint
    is announced when its writing begins: it counts when the next one is announced, or training ends.

    last: the newest checkpoint that is whole, None before there is one.
    """

    def __init__(self, limit: int | None, links: bool, background: bool = False) -> None:
        self.limit = limit
        self.links = links
        self.background = background
        self.last: Path | None = None
        self._coming: Path | None = None

    @override
    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Note the checkpoint, and delete the oldest that are too many."""
        announced = Path(_text(args.output_dir)) / f"checkpoint-{state.global_step}"
        if self.background:
            get_logger().info("writing %s while training goes on", announced)
            announced, self._coming = self._coming, announced
        self._settle(announced, args, state)

    @override
    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Point to the last and the best checkpoint."""
        self._settle(self._coming, args, state)
        if not (self.links and args.should_save):
            return
        folder = Path(_text(args.output_dir))
        for name, checkpoint in (("last", self.last), ("best", _best(state))):
            if checkpoint is not None:
                _link(folder / name, checkpoint)

    def _settle(self, whole: Path | None, args: TrainingArguments, state: TrainerState) -> None:
        """This checkpoint is whole now; the oldest that are too many go."""
        if whole is None:
            return
        self.last, self._coming = whole, self._coming if self._coming != whole else None
        get_logger().info("saved %s", whole)
        if args.should_save and self.limit is not None:
            for checkpoint in superfluous(checkpoints(whole.parent), self.limit, {whole, _best(state)}):
                get_logger().info("deleting %s: --save_total_limit %d", checkpoint, self.limit)
                delete(checkpoint)


def superfluous(found: list[Path], limit: int, kept: set[Path | None]) -> list[Path]:
    """Which of the checkpoints, oldest first, go so that `limit` are left; those in `kept` never do."""
    goes = [checkpoint for checkpoint in found if checkpoint not in kept]
    return goes[: max(0, len(found) - limit)]


def _best(state: TrainerState) -> Path | None:
    return Path(state.best_model_checkpoint) if state.best_model_checkpoint else None


def _link(link: Path, target: Path) -> None:
    """Make `link` point to `target`, relative to it, in one move; what is there and is no link stays."""
    if link.exists() and not link.is_symlink():
        get_logger().error("%s exists and is no link, so it was left alone; the checkpoint is %s", link, target)
        return
    beside = link.with_name(f".{link.name}.{os.getpid()}")
    beside.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)
    beside.replace(link)


def _text(output_dir: str | None) -> str:
    assert output_dir is not None, "training arguments are made with an output folder"
    return output_dir
