"""This file knows `swift infer`: a dialogue, or the replies to every row of a data set."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from swift.catalog.components import METRICS
from swift.chat.messages import Conversation
from swift.chat.render import Prompt, Renderer
from swift.commands import infer_tasks
from swift.commands.backends import Asking, at_once, check_backend, open_engine
from swift.commands.begin import begin
from swift.commands.dialogue import Dialogue, Exchange
from swift.commands.results import Question, Results, result_path, result_row, written_before
from swift.commands.sharing import agreed, gathered, part, sharing
from swift.core import environment
from swift.core.errors import DataError, UsageError
from swift.core.logs import get_logger
from swift.data.conversations import load_conversations
from swift.data.formats import as_row
from swift.data.library import HubAccess
from swift.engines.base import Completion, Sampling, Structure
from swift.engines.chat import Chat, fitted
from swift.hub.models import access
from swift.models.families import layout_for
from swift.models.info import ModelInfo, model_info
from swift.models.processor import load_tokenizer
from swift.options.commands import Infer
from swift.options.data import DataOptions
from swift.options.defaults import has_rows_to_infer
from swift.options.generation import GenerationOptions
from swift.options.saved import checkpoint_folder
from swift.options.template import TemplateOptions

BATCHES_PER_STEP = 32
"""Batches handed to the engine at once: many, because it idles a little at the end; few enough to see progress."""
SECONDS_BETWEEN_REPORTS = 10.0


def run(command: Infer) -> Path | None:
    """Answer a data set, or talk. Returns the file of results; None when a dialogue wrote none."""
    command = begin(command, command.general)
    check_backend(command)
    if command.model.task_type != "causal_lm":
        return infer_tasks.run(command)
    if not has_rows_to_infer(command.values()):
        if command.general.load_data_args:
            raise UsageError("--load_data_args true: the checkpoint was trained without validation rows to answer.")
        chat, info = open_chat(command)
        with closing(chat.engine):
            return talk(command, chat, info)
    hub = HubAccess(command.general.use_hf, command.general.hub_token)
    questions = questions_of(command.data, command.infer.val_dataset_sample, hub)
    if command.infer.metric and all(question.labels is None for question in questions):
        raise DataError("--metric compares replies with references, and no row ends with an assistant message.")
    with sharing(command.general):
        chat, info = open_chat(command)
        with closing(chat.engine):
            return answer(command, chat, info, questions)


def open_chat(
    command: Infer, named: Mapping[str, Path] | None = None, places: int = 0
) -> tuple[Chat, ModelInfo]:  # fmt: skip
    """The model of a command with its adapters, behind its template. named, places: as in Asking."""
    info = model_info(command.model, access(command.general))
    tokenizer = load_tokenizer(info, command.model.new_special_tokens)
    renderer = Renderer(tokenizer, command.template, layout=layout_for(info, command.template, tokenizer))
    engine = open_engine(Asking(command, info, tokenizer, renderer.stop_token_ids, named, places))
    return Chat(renderer, engine), info


def sampling_of(options: GenerationOptions, seed: int) -> Sampling:
    """The generation options as an engine wants them."""
    return Sampling(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        repetition_penalty=options.repetition_penalty,
        num_beams=options.num_beams,
        stop=tuple(options.stop_words),
        logprobs=options.logprobs,
        top_logprobs=options.top_logprobs,
        seed=seed,
        structure=None
        if options.structured_outputs_regex is None
        else Structure(regex=options.structured_outputs_regex),
    )


# --------------------------------------------------------------------------------------------------------- a dialogue


def talk(command: Infer, chat: Chat, info: ModelInfo) -> Path | None:
    """Talk at the terminal; exchanges are written when `--result_path` is given."""
    results = None if command.infer.result_path is None else Results(_result_path(command, info))

    def write(exchange: Exchange) -> None:
        if results is not None:
            results.write([result_row(Question(0, exchange.conversation, None), exchange.completion)])

    with results or nullcontext():
        Dialogue(
            chat,
            sampling_of(command.generation, command.general.seed),
            fitted=lambda prompt: fitted(prompt, command.template, info.max_length),
            stream=bool(command.generation.stream),
            keeps_history=command.template.use_chat_template,
            heard=write,
        ).run()
    if results is not None:
        get_logger().info("the dialogue is in %s", results.path)
    return None if results is None else results.path


# --------------------------------------------------------------------------------------------------------- a data set


@dataclass(frozen=True)
class Asked:
    """A question as the engine gets it; `place` counts those that can be answered, from 0."""

    place: int
    question: Question
    prompt: Prompt


@dataclass
class Tally:
    """What a run over a data set adds up to: results, tokens, seconds.

    skipped: why rows were not answered -> their numbers.
    before: results of an earlier run that this one goes on with.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, list[int]] = field(default_factory=dict)
    before: list[dict[str, Any]] = field(default_factory=list)
    prompt_tokens: int = 0
    generated_tokens: int = 0
    begun: float = field(default_factory=time.monotonic)

    def add(self, asked: Asked, completion: Completion) -> dict[str, Any]:
        """Count one reply; returns its row of results."""
        self.prompt_tokens += len(asked.prompt.input_ids)
        self.generated_tokens += len(completion.token_ids)
        row = result_row(asked.question, completion)
        self.rows.append({"response": row["response"], "labels": row["labels"]})
        return row

    def summary(self) -> str:
        """Tokens, rows and their speed, in one line."""
        seconds = time.monotonic() - self.begun
        return (
            f"num_prompt_tokens: {self.prompt_tokens}, num_generated_tokens: {self.generated_tokens}, "
            f"num_samples: {len(self.rows)}, runtime: {seconds:.2f} s, samples/s: {len(self.rows) / seconds:.2f}, "
            f"tokens/s: {self.generated_tokens / seconds:.2f}"
        )


def questions_of(data: DataOptions, sample: int | None, hub: HubAccess) -> list[Question]:
    """The rows to answer, each without its last reply, which becomes its labels.

    Columns without a meaning are kept: a file of results says what its rows said.
    """
    everything = data.model_copy(update={"remove_unused_columns": False})
    items = load_conversations(everything, hub, keep_values=False).val
    if not items:
        raise DataError("No row is left to answer: see above what was left out of the data sets, and why.")
    numbers = list(range(len(items)))
    if sample is not None and sample < len(items):
        numbers = sorted(Random(data.data_seed).sample(numbers, sample))
    elif sample is not None and sample > len(items):
        get_logger().info("val_dataset_sample = %d: there are %d rows, and all are taken", sample, len(items))
    return [question_of(number + 1, items[number].conversation) for number in numbers]


def answer(command: Infer, chat: Chat, info: ModelInfo, questions: Sequence[Question]) -> Path:
    """Reply to all questions, write the results in their order, print the metric and the speed."""
    tally = Tally()
    asked = _asked(command, chat, info, questions, tally)
    sampling = sampling_of(command.generation, command.general.seed)
    path = agreed(_result_path(command, info))
    if environment.rank() == 0:
        for why, rows in tally.skipped.items():
            get_logger().warning("%d rows are skipped, the first is row %d: %s", len(rows), rows[0], why)
    get_logger().info("results go to %s", path)
    if command.infer.resume:
        asked = _unanswered(path, asked, tally)
    size = len(asked) if command.infer.write_batch_size == -1 else command.infer.write_batch_size
    step = at_once(command, BATCHES_PER_STEP)
    step = len(asked) if step == -1 else step
    with Results(path) if environment.rank() == 0 else nullcontext() as results:
        for start in range(0, len(asked), max(size, 1)):
            piece = asked[start : start + size]
            if command.generation.stream:
                replies = _streamed(piece, chat, sampling)
            else:
                replies = _batched(piece, chat, sampling, step)
            _write_piece(piece, replies, tally, results)
    if environment.rank() == 0:
        _report(command, tally, path)
    return path


def _unanswered(path: Path, asked: list[Asked], tally: Tally) -> list[Asked]:
    """The questions behind those whose results are in the file; these count in the metric."""
    messages = [as_row(each.question.conversation)["messages"] for each in asked]
    before = agreed(written_before(path, messages) if environment.rank() == 0 else [])
    tally.before = [{"response": row["response"], "labels": row["labels"]} for row in before]
    get_logger().info("%d rows were answered before, %d are left", len(before), len(asked) - len(before))
    return asked[len(before) :]


def _result_path(command: Infer, info: ModelInfo) -> Path:
    return result_path(command.infer.result_path, checkpoint_folder(command.values()), info.name)


def question_of(number: int, conversation: Conversation) -> Question:
    """A row without its last reply, which is what is expected: a text, or calls of tools."""
    messages = conversation.messages
    if messages[-1].role == "tool_call":
        before = max((i for i, m in enumerate(messages) if m.role not in ("assistant", "tool_call")), default=-1) + 1
        calls = messages[before:]
        asked = replace(conversation, messages=messages[:before])
        return Question(number, asked, "\n".join(message.content for message in calls), calls)
    if messages[-1].role != "assistant":
        return Question(number, conversation, None)
    return Question(number, replace(conversation, messages=messages[:-1]), messages[-1].content)


def worded(chat: Chat, question: Question) -> Question:
    """A question whose expected reply is what the model would have to say. Raises DataError for unreadable calls."""
    if not question.calls:
        return question
    asked = question.conversation
    whole = replace(asked, messages=(*asked.messages, *question.calls))
    return replace(question, labels=chat.renderer.reply_text(whole))


def _asked(command: Infer, chat: Chat, info: ModelInfo, questions: Sequence[Question], tally: Tally) -> list[Asked]:
    """The prompts of all questions that have one; the others are counted by cause, or refused by `--strict`."""
    asked: list[Asked] = []
    for question in questions:
        try:
            prompt = prompt_of(chat, question, command.template, info.max_length)
            asked.append(Asked(len(asked), worded(chat, question), prompt))
            continue
        except DataError as error:
            why = str(error)
        if command.data.strict:
            raise DataError(f"Row {question.number} cannot be answered: {why}.")
        tally.skipped.setdefault(why, []).append(question.number)
    if not asked:
        raise DataError(f"None of the {len(questions)} rows can be answered: {'; '.join(tally.skipped)}.")
    return asked


def prompt_of(chat: Chat, question: Question, template: TemplateOptions, context_length: int | None) -> Prompt:
    """The prompt of a question. Raises DataError when it has none, or one that is too long and must not be cut."""
    if not question.conversation.messages:
        raise DataError("nothing was said before the reply")
    prompt = chat.prompt(question.conversation)
    short = fitted(prompt, template, context_length)
    if short is None:
        raise DataError(f"the prompt is longer than --max_length {template.max_length or context_length}")
    return short


def _batched(piece: Sequence[Asked], chat: Chat, sampling: Sampling, step: int) -> Iterator[Completion]:
    """The replies to this process's part of a piece, as they come."""
    mine = part(piece, environment.rank(), environment.world_size())
    reported = time.monotonic()
    for start in range(0, len(mine), step):
        some = mine[start : start + step]
        # A seed of its own for every row, so that neither batches nor processes change what is drawn.
        rooted = replace(sampling, seed=_seed(sampling, some[0]))
        yield from (replies[0] for replies in chat.complete([each.prompt for each in some], rooted))
        if time.monotonic() - reported > SECONDS_BETWEEN_REPORTS:
            reported = time.monotonic()
            get_logger().info("%d of %d rows answered", start + len(some), len(mine))


def _streamed(piece: Sequence[Asked], chat: Chat, sampling: Sampling) -> Iterator[Completion]:
    """The replies to a piece, shown while they grow."""
    for each in piece:
        _show(f"[QUERY] {each.question.conversation.messages[-1].content}\n")
        if each.question.labels is not None:
            _show(f"[LABELS] {each.question.labels}\n")
        _show("[RESPONSE] ")
        for delta in chat.stream(each.prompt, replace(sampling, seed=_seed(sampling, each))):
            _show(delta.text)
            if delta.completion is not None:
                yield delta.completion
        _show("\n" + "-" * 50 + "\n")


def _seed(sampling: Sampling, asked: Asked) -> int | None:
    return None if sampling.seed is None else sampling.seed + asked.place


def _write_piece(piece: Sequence[Asked], replies: Iterator[Completion], tally: Tally, results: Results | None) -> None:
    """Gather the replies to a piece from all processes and write them; what there is of them when it is interrupted."""
    found: list[Completion] = []
    interrupted = True
    try:
        found.extend(replies)
        interrupted = False
    finally:
        everybody = found if interrupted else gathered(found)
        if results is not None:
            results.write([tally.add(asked, reply) for asked, reply in zip(piece, everybody, strict=not interrupted)])


def _report(command: Infer, tally: Tally, path: Path) -> None:
    get_logger().info(tally.summary())
    if tally.skipped:
        get_logger().warning("%d rows were not answered, see above", sum(map(len, tally.skipped.values())))
    if command.infer.metric is not None:
        rows = [*tally.before, *tally.rows]
        unlabelled = sum(row["labels"] is None for row in rows)
        if unlabelled:
            get_logger().warning("%d rows have no reference and do not count in the metric", unlabelled)
        _show(json.dumps(METRICS[command.infer.metric](rows)) + "\n")
    _show(f"{path}\n")


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
