"""This file knows how a model is evaluated by its replies while it is trained (`--predict_with_generate`)."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
from transformers import EvalPrediction, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from swift.chat.render import Prompt
from swift.core.logs import get_logger
from swift.engines.base import Completion, Sampling
from swift.engines.chat import Chat
from swift.trainers import processes
from swift.trainers.evaluation import plugin_of
from swift.trainers.metrics import rouge

NLG = "nlg"
NLG_NAMES = ("rouge-1", "rouge-2", "rouge-l", "bleu-4")
"""What `--eval_metric nlg` reports."""
FILE = "predict.jsonl"
Answering = Callable[[], AbstractContextManager[Chat]]
"""Opens a chat over a model, for as long as its weights stay as they are."""
BATCHES_PER_STEP = 4
"""Batches handed to the engine at once: enough to sort prompts by length, few enough to see progress, and to stop."""
SECONDS_BETWEEN_REPORTS = 10.0


@dataclass(frozen=True)
class Asked:
    """A row to answer.

    place: its number among all rows, from 0, which its draws depend on, and not on batches or processes.
    labels: the reply that was expected. result: the row of predict.jsonl for a reply.
    """

    place: int
    prompt: Prompt
    labels: str
    result: Callable[[Completion], dict[str, Any]]


class Replies(TrainerCallback):
    """Asks the model that is being trained, writes what it says into `<folder>/predict.jsonl`, and measures it.

    The file belongs to the last evaluation; a checkpoint of the same step takes it along.

    answering: opens a chat over the model as it is then. metric: nlg, or the name of a plugin's.
    """

    def __init__(self, answering: Answering, asked: Sequence[Asked], sampling: Sampling, metric: str, *, batch_size: int,
                 folder: Path) -> None:  # fmt: skip
        self.answering = answering
        self.asked = asked
        self.sampling = sampling
        self.batch_size = batch_size
        self.plugin = None if metric == NLG else plugin_of(metric)
        self.file = folder / FILE
        self._step: int | None = None
        self._coming: dict[Path, Path] = {}

    @property
    def names(self) -> tuple[str, ...] | None:
        """What is reported; None when only a plugin knows."""
        return NLG_NAMES if self.plugin is None else None

    def evaluate(self, trainer: Any) -> dict[str, float]:
        """Let the model of `trainer` answer all rows, each process its part, and measure all replies together."""
        with self.answering() as chat:
            own = self._own_replies(trainer, chat)
        replies = [reply for part in processes.gathered(own) for reply in part]
        rows = [asked.result(reply) for asked, reply in zip(self.asked, replies, strict=True)]
        if trainer.is_world_process_zero():
            lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
            self.file.write_text("".join(lines), encoding="utf-8")
        self._step = trainer.state.global_step
        if self.plugin is None:
            return rouge(rows)
        said = numpy.array([reply.text for reply in replies], dtype=object)
        expected = numpy.array([asked.labels for asked in self.asked], dtype=object)
        return self.plugin(trainer.args, trainer).compute_metrics(EvalPrediction(said, expected))

    def _own_replies(self, trainer: Any, chat: Chat) -> list[Completion]:
        """The replies to this process's part of the rows, in order.

        All processes go as many rounds, so that one that is told to stop can tell the others (StoppedInEvaluation).
        """
        args: TrainingArguments = trainer.args
        first, last = (len(self.asked) * (args.process_index + i) // args.world_size for i in (0, 1))
        mine, found, reported = self.asked[first:last], list[Completion](), time.monotonic()
        step = self.batch_size * BATCHES_PER_STEP
        for start in range(0, math.ceil(len(self.asked) / args.world_size), step):
            trainer.callback_handler.on_prediction_step(args, trainer.state, trainer.control)
            some = mine[start : start + step]
            if not some:
                continue
            seed = None if self.sampling.seed is None else self.sampling.seed + some[0].place
            answered = chat.complete([each.prompt for each in some], replace(self.sampling, seed=seed))
            found += [replies[0] for replies in answered]
            if time.monotonic() - reported > SECONDS_BETWEEN_REPORTS:
                reported = time.monotonic()
                get_logger().info("evaluation: %d of %d rows answered", len(found), len(mine))
        return found

    @override
    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Put the replies of this step into its checkpoint, as soon as that is there."""
        if self._step == state.global_step and args.should_save and self.file.is_file():
            kept = self.file.rename(self.file.with_name(f".{state.global_step}-{FILE}"))
            self._coming[kept] = self.file.parent / f"checkpoint-{state.global_step}"
        self._deliver()

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Look for checkpoints that are written while training goes on."""
        self._deliver()

    @override
    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Look once more."""
        self._deliver()

    def _deliver(self) -> None:
        for file, checkpoint in [*self._coming.items()]:
            if checkpoint.is_dir():
                file.rename(checkpoint / FILE)
                del self._coming[file]
