"""The model that is trained answers every question of an examination, whatever comes in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import runs

import tiny
from swift.chat.messages import Conversation, Message
from swift.chat.render import Renderer
from swift.engines.base import Sampling
from swift.engines.chat import Chat
from swift.engines.transformers import Transformers
from swift.options.template import TemplateOptions
from swift.trainers.benchmarks import Answer, Benchmarks, Marks, Question

CONTEXT = 64


def asked(number: int, text: str, length: int = 4, role: str = "user") -> Question:
    said = Conversation((Message(role, text),))  # type: ignore[arg-type]  # a role
    return Question(number, said, Sampling(max_new_tokens=length, temperature=0.0))


class Paper:
    """An examination of rounds of questions that are known beforehand, and then of scores."""

    def __init__(self, *rounds: list[Question], marks: Marks) -> None:
        self.rounds = list(rounds)
        self.marks = marks
        self.answers: dict[int, Answer] = {}

    def questions(self, patience: float) -> list[Question] | None:
        return self.rounds.pop(0) if self.rounds else None

    def answer(self, answers) -> None:
        self.answers |= answers


def examined(folder, *papers: Paper, **settings) -> runs.Run:
    """A training of one step, with one paper for each of its evaluations."""
    coming = iter(papers)
    model, tokenizer = tiny.model(), tiny.tokenizer()
    tokenizer.chat_template = tiny.CHATML
    renderer = Renderer(tokenizer, TemplateOptions())

    @contextmanager
    def answering() -> Iterator[Chat]:
        engine = Transformers(model, tokenizer, max_batch_size=2, context_length=CONTEXT)
        yield Chat(renderer, engine)
        engine.close()

    benchmarks = Benchmarks(
        ["one"], lambda _step: nullcontext(next(coming)), answering, form=None, context_length=CONTEXT
    )
    run = runs.prepare(folder, model=model, watchers=[benchmarks], max_steps=1, eval_strategy="steps", eval_steps=1,
                       save_steps=1, metric_for_best_model="test_one", greater_is_better=True, **settings)  # fmt: skip
    run.outcome = run.session.run(run.trainer, None, {})
    return run


def test_every_question_has_an_answer_or_a_reason(tmp_path):
    rounds = (
        [asked(0, "What?"), asked(1, "Who?", length=2)],
        [],
        [asked(2, "x" * 3 * CONTEXT), asked(3, "So.", role="assistant")],
    )
    paper = Paper(*rounds, marks=Marks({"test_one": 0.5}))
    run = examined(tmp_path, paper)
    assert sorted(paper.answers) == [0, 1, 2, 3]
    assert paper.answers[0].generated_tokens == 4
    assert paper.answers[1].generated_tokens == 2
    assert paper.answers[0].text
    assert (paper.answers[2].text, paper.answers[2].finish_reason) == ("", "too_long")
    assert paper.answers[3].problem
    assert run.logged("test_one") == [0.5]
    assert run.trainer.state.best_metric == 0.5


def test_a_benchmark_without_a_score_makes_no_checkpoint_the_best_and_ends_nothing(tmp_path):
    run = examined(tmp_path, Paper([asked(0, "What?")], marks=Marks(failures={"one": "the dog ate it"})))
    assert run.trainer.state.global_step == 1
    assert run.trainer.state.best_global_step is None
    assert run.logged("test_one") == []


def test_answers_are_those_of_the_model_as_it_is_then(tmp_path):
    papers = [Paper([asked(0, "What is it?")], marks=Marks({"test_one": 1.0})) for _ in range(2)]
    examined(tmp_path, *papers, learning_rate=0.5, eval_on_start=True)
    assert papers[0].answers[0].text != papers[1].answers[0].text


@pytest.mark.parametrize("loss", [True, False])
def test_rows_are_validated_too_where_there_are_some(tmp_path, loss):
    val = {"val": runs.samples(3)} if loss else {}
    run = examined(tmp_path, Paper(marks=Marks({"test_one": 0.25, "test_one_f1": 0.5})), **val)
    assert bool(run.logged("eval_loss")) is loss
    assert run.logged("test_one_f1") == [0.5]
