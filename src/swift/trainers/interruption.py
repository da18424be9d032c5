"""This file knows how a run stops when it is asked to: after the step, with a checkpoint."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy
from typing_extensions import override

from swift.core import phases
from swift.core.logs import get_logger
from swift.trainers.processes import largest

CATCHES = (signal.SIGINT, signal.SIGTERM)
ECHO = 1.0
"""Seconds in which a second Ctrl-C is taken for the first: a launcher passes on what its processes got anyway."""


class StoppedInEvaluation(Exception):  # noqa: N818 (not an error)
    """The run was told to stop while it evaluated: the evaluation ends without a result."""


class Interruption(TrainerCallback):
    """Ctrl-C or SIGTERM ends the training after the current step, on all processes at the same one.

    An evaluation is broken off.

    Used as a context: signals are caught inside it only. A checkpoint is saved unless `--save_strategy no`. A second
    Ctrl-C stops at once. `stopped_by` is the signal that ended the training, None when nothing did.
    """

    def __init__(self) -> None:
        self.stopped_by: signal.Signals | None = None
        self._received = 0
        self._since = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        self._before = {number: signal.signal(number, self._receive) for number in CATCHES}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self._received == signal.SIGINT and now - self._since > ECHO:
            raise KeyboardInterrupt
        if not self._received:
            self._received, self._since = number, now
            again = " Ctrl-C again stops at once." if number == signal.SIGINT else ""
            get_logger().warning("%s: finishing this step, then stopping.%s", signal.Signals(number).name, again)

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask all processes whether one of them was asked to stop; if so, save and stop, and evaluate no more."""
        number = largest(self._received, args.device)
        if number and state.global_step < state.max_steps:
            self._stop(number, args, control)

    @override
    def on_prediction_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                           **_: Any) -> None:  # fmt: skip
        """Ask so while evaluating, too; an evaluation before the first step leaves nothing to save."""
        phases.enter(f"evaluating after step {state.global_step}")
        number = largest(self._received, args.device)
        if number and state.global_step < state.max_steps:
            self._stop(number, args, control)
            control.should_save = control.should_save and state.global_step > 0
            raise StoppedInEvaluation

    def _stop(self, number: int, args: TrainingArguments, control: TrainerControl) -> None:
        self.stopped_by = signal.Signals(number)
        control.should_training_stop = True
        control.should_evaluate = False
        control.should_save = args.save_strategy != SaveStrategy.NO

    @override
    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """An epoch that was cut short is no epoch to save or evaluate after."""
        if self.stopped_by:
            control.should_save = False
            control.should_evaluate = False


class GracefulExit(TrainerCallback):
    """`--callbacks graceful_exit`: what every run does anyway, for command lines that ask for it."""

    def __init__(self, _args: TrainingArguments, _trainer: Any) -> None:
        get_logger().info("--callbacks graceful_exit: every run saves a checkpoint on SIGTERM before it stops")
