"""This file knows how a model answers benchmarks while it is trained: asked by an examiner, in batches, by all processes.

The examiner, which has the questions and marks the answers, works beside the first process. All processes come together
for every batch, so a model that is spread over them can answer too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from transformers import TrainerCallback

from swift.chat.calls import ToolCall
from swift.chat.messages import Conversation
from swift.chat.render import Prompt
from swift.chat.reply import read_reply
from swift.chat.tools import ToolFormat
from swift.core.errors import DataError
from swift.core.logs import get_logger
from swift.engines.base import Completion, Sampling
from swift.engines.chat import Chat
from swift.trainers import processes

PREFIX = "test_"
"""What stands in front of the names of scores."""
PATIENCE = 1.0
"""Seconds between two looks at whether the run was told to stop, while no question comes."""


@dataclass(frozen=True)
class Question:
    """What a benchmark asks; `number` is the examiner's own."""

    number: int
    conversation: Conversation
    sampling: Sampling


@dataclass(frozen=True)
class Answer:
    """What the model says to one question.

    text: without thinking and calls. finish_reason: stop, length, or too_long for a prompt that left no room.
    problem: why there is no answer; the benchmark ends with it.
    """

    text: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    generated_tokens: int = 0
    problem: str | None = None


@dataclass
class Marks:
    """What came of an examination: scores by name, and why benchmarks have none."""

    scores: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


class Examination(Protocol):
    """Benchmarks that are being answered."""

    @property
    def marks(self) -> Marks:
        """What came of it, when it has ended."""
        ...

    def questions(self, patience: float) -> list[Question] | None:
        """What is asked now, [] when nothing was for some seconds; None when the examination has ended."""
        ...

    def answer(self, answers: Mapping[int, Answer]) -> None:
        """Give the answers to questions, by number."""
        ...


class Benchmarks(TrainerCallback):
    """Lets the model that is being trained answer benchmarks at each evaluation.

    names: of the benchmarks. begin: opens an examination of the model as it is after a step, on the first process.
    answering: opens a chat over the model as it is then. form: how the model calls tools. context_length: the most
        tokens of a question and its answer.
    """

    def __init__(self, names: Sequence[str], begin: Callable[[int], AbstractContextManager[Examination]],
                 answering: Callable[[], AbstractContextManager[Chat]], *, form: ToolFormat | None,
                 context_length: int) -> None:  # fmt: skip
        self.names = tuple(PREFIX + name for name in names)
        self.begin = begin
        self.answering = answering
        self.form = form
        self.context_length = context_length

    def evaluate(self, trainer: Any) -> dict[str, float]:
        """The scores of the model of `trainer` by name, on every process; a benchmark that fails is an error in the log.

        Raises StoppedInEvaluation on all processes when one of them is told to stop.
        """
        trainer.model.eval()  # every step of training sets it back
        step, begun = trainer.state.global_step, time.monotonic()
        beginning = self.begin(step) if processes.rank() == 0 else nullcontext()
        with self.answering() as chat, beginning as examination:
            while (
                asked := processes.told(None if examination is None else examination.questions(PATIENCE))
            ) is not None:
                trainer.callback_handler.on_prediction_step(trainer.args, trainer.state, trainer.control)
                answered = self._answered(chat, asked)
                if examination is not None:
                    examination.answer(answered)
            marks = processes.told(Marks() if examination is None else examination.marks)
        for name, why in marks.failures.items():
            get_logger().error("benchmark %s has no score after step %d: %s", name, step, why)
        shown = ", ".join(f"{name} {marks.scores[name]:.4g}" for name in self.names if name in marks.scores)
        get_logger().info(
            "benchmarks after step %d, in %.0f s: %s", step, time.monotonic() - begun, shown or "no score"
        )
        return marks.scores

    def _answered(self, chat: Chat, questions: Sequence[Question]) -> dict[int, Answer]:
        """The answers of all processes, by number of question; each answers as many as any other."""
        mine = questions[processes.rank() :: processes.count()]
        return {number: answer for part in processes.gathered(self._own(chat, mine)) for number, answer in part.items()}

    def _own(self, chat: Chat, questions: Sequence[Question]) -> dict[int, Answer]:
        found: dict[int, Answer] = {}
        ready: dict[Sampling, list[tuple[Question, Prompt]]] = {}
        for question in questions:
            try:
                prompt = chat.prompt(question.conversation)
            except DataError as error:
                found[question.number] = Answer(problem=str(error))
                continue
            if len(prompt.input_ids) < self.context_length:
                ready.setdefault(question.sampling, []).append((question, prompt))
            else:
                found[question.number] = Answer(finish_reason="too_long", prompt_tokens=len(prompt.input_ids))
        for sampling, some in ready.items():
            replies = chat.complete([prompt for _, prompt in some], sampling)
            for (question, prompt), (reply,) in zip(some, replies, strict=True):
                found[question.number] = self._answer(question.conversation, prompt, reply)
        return found

    def _answer(self, conversation: Conversation, prompt: Prompt, completion: Completion) -> Answer:
        """What a reply consists of: thinking, words and, where there are tools, calls."""
        reply = read_reply(completion.text, self.form if conversation.tools else None, conversation.tools)
        return Answer(
            reply.content + reply.unfinished, reply.reasoning, reply.calls, completion.finish_reason,
            len(prompt.input_ids), len(completion.token_ids),
        )  # fmt: skip
