"""This file knows when a training has stopped getting better."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from typing_extensions import override

from swift.core.errors import RunError, UsageError
from swift.core.logs import get_logger
from swift.trainers.arguments import Arguments

NAME = "EarlyStop"


class EarlyStop(TrainerCallback, ExportableState):
    """Ends the training when the best metric is the same after `--early_stop_interval` checkpoints in a row.

    Checkpoints without an evaluation since the one before say nothing and are not counted. The count is saved with each
    checkpoint, as it was before it, and goes on in a resumed run.
    """

    def __init__(self, args: Arguments, _trainer: Any) -> None:
        if args.early_stop_interval is None:
            raise UsageError("--callbacks early_stop needs --early_stop_interval, which also adds it by itself.")
        self.interval = args.early_stop_interval
        self.count = 0
        self.best: float | None = None
        self.is_evaluated = False

    @override
    def state(self) -> dict[str, Any]:
        """What a checkpoint says of it."""
        kept = {"count": self.count, "best": self.best, "is_evaluated": self.is_evaluated}
        return {"args": {}, "attributes": kept}

    @override
    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Go on counting where the checkpoint stopped, with the checkpoint itself counted in."""
        states: Any = state.stateful_callbacks  # a dictionary by name, once the state was made or read
        saved = states.get(NAME)
        states[NAME] = self.state()
        if not state.global_step:
            return
        if saved is None:
            self.best = state.best_metric
            return
        kept = saved["attributes"]
        self.count, self.best, self.is_evaluated = kept["count"], kept["best"], kept["is_evaluated"]
        self._look(state)
        if self.count >= self.interval:
            raise RunError(
                f"The run of this checkpoint was stopped early: its best {args.metric_for_best_model} was the same for "
                f"{self.count} checkpoints. Raise --early_stop_interval (now {self.interval}) to go on."
            )

    @override
    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """From here on the next checkpoint can be judged."""
        self.is_evaluated = True

    @override
    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Judge the checkpoint, and stop when it was one too many."""
        self._look(state)
        if self.count >= self.interval:
            get_logger().info(
                "step %d: stopped early, --early_stop_interval %d: the best %s is still %s",
                state.global_step, self.interval, args.metric_for_best_model, self.best,
            )  # fmt: skip
            control.should_training_stop = True

    def _look(self, state: TrainerState) -> None:
        if self.is_evaluated:
            self.count = 0 if state.best_metric != self.best else self.count + 1
            self.best, self.is_evaluated = state.best_metric, False
