"""This file knows how a training goes from its first step to its summary: who watches it, and how it may end."""

from __future__ import annotations

import importlib
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from transformers import TrainerCallback
from transformers.utils.logging import disable_progress_bar

from swift.core import environment
from swift.core.logs import get_logger
from swift.options.tracking import TrackingOptions
from swift.options.training import TrainingOptions
from swift.trainers.base import SwiftTrainer
from swift.trainers.callbacks import Checkpoints, LastEpoch
from swift.trainers.interruption import Interruption
from swift.trainers.journal import FILE_NAME, FINISHED, Journal, TensorBoard
from swift.trainers.outputs import Continuation
from swift.trainers.progress import Display, peak_memory
from swift.trainers.tracking import Opened, named_trackers, watchers


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    last, best: the checkpoints, None when nothing was saved or evaluated.
    stopped_by: the signal that ended it early, None when it ran to its end.
    memory: the most memory that was held, in GiB.
    """

    global_step: int
    last: Path | None
    best: Path | None
    stopped_by: signal.Signals | None
    memory: float

    @property
    def interrupted(self) -> bool:
        """Whether somebody at the keyboard ended it: the exit code is then that of Ctrl-C; SIGTERM is no failure."""
        return self.stopped_by is signal.SIGINT


@dataclass(frozen=True)
class Session:
    """The watchers of one training that writes into `folder`."""

    folder: Path
    checkpoints: Checkpoints
    journal: Journal
    display: Display = field(default_factory=Display)
    interruption: Interruption = field(default_factory=Interruption)
    tensorboard: TensorBoard | None = None
    last_epoch: LastEpoch | None = None
    tellers: Sequence[TrainerCallback] = ()
    opened: Sequence[Opened] = ()

    @property
    def callbacks(self) -> list[TrainerCallback]:
        """All watchers, in the order in which they are told."""
        always: list[TrainerCallback] = [self.interruption, self.checkpoints, self.journal, self.display]
        # What ends the training stands in front of what reacts to an end.
        return [*filter(None, [self.last_epoch]), *always, *filter(None, [self.tensorboard]), *self.tellers]

    def run(self, trainer: SwiftTrainer, resume: Continuation | None, about: Mapping[str, Any]) -> Outcome:
        """Train, and write the summary whatever happens: the last line of logging.jsonl, with `about` in front."""
        finished = False
        disable_progress_bar()  # transformers shows one for every shard of every checkpoint it writes
        failure: BaseException | None = None
        try:
            with self.interruption:
                trainer.go_on(resume)
                finished = self.interruption.stopped_by is None
        except BaseException as error:  # whatever it is, trackers are told how the run ended
            failure = error
            raise
        finally:
            self.display.close()
            if environment.rank() == 0:
                self.journal.write({**about, **self._summary(trainer), FINISHED: finished})
                if self.tensorboard:
                    self._draw(trainer.state.log_history)
            for each in self.opened:  # last, because they may have a network to wait for
                each.close(failure)
        best = trainer.state.best_model_checkpoint
        return Outcome(
            trainer.state.global_step, self.checkpoints.last, Path(best) if best else None,
            self.interruption.stopped_by, peak_memory(),
        )  # fmt: skip

    def _summary(self, trainer: SwiftTrainer) -> dict[str, Any]:
        last = self.checkpoints.last
        return {
            "last_model_checkpoint": str(last) if last else None,
            "best_model_checkpoint": trainer.state.best_model_checkpoint,
            "best_metric": trainer.state.best_metric,
            "global_step": trainer.state.global_step,
            "log_history": trainer.state.log_history,
            "memory": round(peak_memory(), 2),
        }

    def _draw(self, log_history: Sequence[dict[str, Any]]) -> None:
        # matplotlib takes half a second to import, and nobody needs it before the end
        importlib.import_module("swift.trainers.curves").draw(log_history, self.folder / "images")


def open_session(folder: Path, training: TrainingOptions, tracking: TrackingOptions) -> Session:
    """The watchers that the options ask for."""
    names = named_trackers(tracking.report_to)
    tellers, opened = watchers(names, tracking, folder)
    runs = Path(tracking.logging_dir).expanduser() if tracking.logging_dir else folder / "runs"
    return Session(
        folder=folder,
        checkpoints=Checkpoints(training.save_total_limit, training.create_checkpoint_symlink, training.use_flash_ckpt),
        journal=Journal(folder / FILE_NAME),
        tensorboard=TensorBoard(runs) if "tensorboard" in names else None,
        tellers=tellers,
        opened=opened,
        last_epoch=LastEpoch(training.max_epochs) if training.max_epochs else None,
    )


def statistics(lengths: Sequence[int]) -> str:
    """The lengths of a data set in one phrase: `31.2±4.0 tokens, min=25, max=40, size=100`."""
    if not len(lengths):
        return "size=0"
    numbers = [int(length) for length in lengths]
    return f"{fmean(numbers):.6g}±{pstdev(numbers):.6g} tokens, min={min(numbers)}, max={max(numbers)}, size={len(numbers)}"


def say_farewell(outcome: Outcome, name: str) -> None:
    """Where the weights are, and what to do with them."""
    logger = get_logger()
    if outcome.stopped_by:
        logger.info("stopped by %s after step %d", outcome.stopped_by.name, outcome.global_step)
    logger.info("peak memory: %.2f GiB", outcome.memory)
    if outcome.last is None:
        logger.info("no checkpoint was saved")
        return
    if outcome.best is not None and outcome.best != outcome.last:
        logger.info("best checkpoint: %s", outcome.best)
    logger.info("last checkpoint: %s", outcome.last)
    if outcome.stopped_by:
        logger.info("go on:  swift %s ... --resume_from_checkpoint %s", name, outcome.last)
    shown = outcome.best or outcome.last
    flag = "--adapters" if (shown / "adapter_config.json").is_file() else "--model"
    logger.info("try it: swift infer %s %s", flag, shown)
