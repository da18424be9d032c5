"""This file knows `swift infer` of tasks other than writing: classes, embeddings and relevances, typed or of a data set."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from torch import Tensor
from torch.nn import functional

from swift.catalog.components import METRICS
from swift.chat.messages import Conversation, Message
from swift.chat.reading import Readings
from swift.chat.render import Renderer, Sample
from swift.commands.backends import Asking, Scoring, open_scoring
from swift.commands.begin import log_decisions
from swift.commands.results import Results, result_path, written_before
from swift.commands.sharing import agreed, gathered, part, sharing
from swift.commands.task_settings import settled_task
from swift.core import environment
from swift.core.errors import DataError, UsageError
from swift.core.logs import get_logger
from swift.data.conversations import load_conversations
from swift.data.formats import as_row
from swift.data.library import HubAccess
from swift.data.tasks import OF_MODELS, Part, Task, scored
from swift.data.truncate import truncate
from swift.engines.responses import (
    ChatCompletionResponse,
    ChatCompletionResponseChoice,
    ChatMessage,
    EmbeddingResponse,
    EmbeddingResponseData,
    UsageInfo,
)
from swift.engines.scoring import answer, class_logprobs
from swift.hub.models import access
from swift.models.families import layout_for
from swift.models.heads import Head
from swift.models.info import ModelInfo, model_info
from swift.models.processor import load_tokenizer
from swift.models.tasks import head_of
from swift.options.commands import Infer
from swift.options.defaults import has_rows_to_infer
from swift.options.saved import checkpoint_folder
from swift.options.template import TemplateOptions

SHOWN = 3
"""Numbers of a vector that are shown at each end."""
BATCHES_PER_STEP = 16


@dataclass(frozen=True)
class Reader:
    """A model with its head behind its template, and how long texts may be."""

    engine: Scoring
    renders: Readings
    template: TemplateOptions
    limit: int | None
    task: Task
    activates: bool

    @property
    def head(self) -> Head:
        """What is made of the model's states."""
        return self.engine.head

    def samples(self, conversation: Conversation) -> list[tuple[Part, Sample]]:
        """The texts of a row that are read. Raises DataError for one that cannot be, or is too long and must not be cut."""
        parts = scored(conversation, self.task)
        made = self.renders.samples([each.conversation for each in parts])
        return [(each, self._fitted(sample)) for each, sample in zip(parts, made, strict=True)]

    def _fitted(self, sample: Sample | DataError) -> Sample:
        if isinstance(sample, DataError):
            raise sample
        if self.limit is None or len(sample) <= self.limit:
            return sample
        if self.template.truncation_strategy not in ("left", "right"):
            raise DataError(f"the text is longer than --max_length {self.limit}")
        return truncate(sample, self.limit, self.template.truncation_strategy)[0]


def run(command: Infer) -> Path | None:
    """Read a data set, or what is typed. Returns the file of results; None for what was typed."""
    command, info = settled(command)
    if command.infer.metric == "acc" and command.model.problem_type == "regression":
        raise UsageError("--metric acc: values of a regression are never exactly right. Drop it.")
    if command.infer.resume and command.infer.metric:
        raise UsageError("--resume true: the metric of this task needs all rows at once. Drop --metric.")
    if not has_rows_to_infer(command.values()):
        reader = open_reader(command, info)
        with closing(reader.engine):
            return converse(reader)
    rows = rows_of(command)
    with sharing(command.general):
        reader = open_reader(command, info)
        with closing(reader.engine):
            return read_all(command, reader, info, rows)


def settled(command: Infer) -> tuple[Infer, ModelInfo]:
    """The command with what its model says of the task, and what is known of that model."""
    info = model_info(command.model, access(command.general))
    changes, sources = settled_task(command.model, command.template, info)
    log_decisions(command.model_copy(update={"sources": sources}))
    return command.replace(changes, sources), info


def open_reader(command: Infer, info: ModelInfo) -> Reader:
    """The model of a command with its adapters and its head."""
    tokenizer = load_tokenizer(info, command.model.new_special_tokens)
    renderer = Renderer(tokenizer, command.template, layout=layout_for(info, command.template, tokenizer))
    head = head_of(info, command.model, tokenizer)
    limits = [limit for limit in (command.template.max_length, info.max_length) if limit is not None]
    return Reader(
        open_scoring(Asking(command, info, tokenizer), head), Readings(renderer), command.template,
        min(limits, default=None), OF_MODELS[command.model.task_type], command.infer.reranker_use_activation,
    )  # fmt: skip


def response(
    reader: Reader, model: str, sample: Sample, output: Tensor, logprobs: bool
) -> ChatCompletionResponse | EmbeddingResponse:
    """What a model says of one text, in the shapes of OpenAI."""
    usage = UsageInfo(len(sample), 1, len(sample) + 1)
    said = answer(reader.head, output, activates=reader.activates)
    if reader.head.task == "embedding":
        return EmbeddingResponse(model, [EmbeddingResponseData(said)], usage)
    told = class_logprobs(reader.head, output) if logprobs and reader.head.task == "seq_cls" else None
    choice = ChatCompletionResponseChoice(0, ChatMessage("assistant", said), "stop", told)
    return ChatCompletionResponse(model, [choice], usage)


# ------------------------------------------------------------------------------------------------------------- a dialogue


def converse(reader: Reader) -> None:
    """Read what is typed and show what the model says of it, until `exit`, `quit` or the end of the input."""
    ranks = reader.head.task in ("reranker", "generative_reranker")
    while (query := _typed("<<< ")) is not None:
        messages = [Message("user", query)]
        if ranks:
            document = _typed("document <<< ")
            if document is None:
                return
            messages.append(Message("assistant", document))
        try:
            found = reader.samples(Conversation(tuple(messages)))
        except DataError as error:
            _show(f"{error}\n")
            continue
        output = reader.engine.outputs([sample for _, sample in found])[0]
        _show(f"{shown(reader.head, output, activates=reader.activates)}\n")


def shown(head: Head, output: Tensor, *, activates: bool) -> str:
    """What a model says of one text, in one line."""
    if head.task != "embedding":
        return str(answer(head, output, activates=activates))
    numbers = [f"{number:.6g}" for number in output.tolist()]
    middle = ["..."] if len(numbers) > 2 * SHOWN else []
    ends = [*numbers[:SHOWN], *middle, *numbers[-SHOWN:]] if middle else numbers
    return f"Embedding(shape: [1, {len(numbers)}]): [{', '.join(ends)}]"


def _typed(prompt: str) -> str | None:
    """The next line that says something; None at the end."""
    while True:
        _show(prompt)
        line = sys.stdin.readline()
        if not line or line.strip() in ("exit", "quit"):
            return None
        if line.strip():
            return line.rstrip("\n")


# ------------------------------------------------------------------------------------------------------------- a data set


def rows_of(command: Infer) -> list[Conversation]:
    """The rows to read, all or some drawn of them. Raises DataError when there is none."""
    everything = command.data.model_copy(update={"remove_unused_columns": False})
    hub = HubAccess(command.general.use_hf, command.general.hub_token)
    rows = [item.conversation for item in load_conversations(everything, hub, keep_values=False).val or ()]
    if not rows:
        raise DataError("No row is left to read: see above what was left out of the data sets, and why.")
    sample = command.infer.val_dataset_sample
    if sample is None or sample >= len(rows):
        return rows
    return [rows[number] for number in sorted(Random(command.data.data_seed).sample(range(len(rows)), sample))]


def read_all(command: Infer, reader: Reader, info: ModelInfo, rows: Sequence[Conversation]) -> Path:
    """Read all rows, write the results in their order, print the metric and the speed."""
    asked, skipped = _asked(reader, rows, strict=command.data.strict)
    path = agreed(result_path(command.infer.result_path, checkpoint_folder(command.values()), info.name))
    is_first = environment.rank() == 0
    for why, numbers in skipped.items() if is_first else ():
        get_logger().warning("%d rows are skipped, the first is row %d: %s", len(numbers), numbers[0], why)
    get_logger().info("results go to %s", path)
    if command.infer.resume:
        messages = [as_row(conversation)["messages"] for conversation, _ in asked]
        before = agreed(written_before(path, messages) if is_first else [])
        get_logger().info("%d rows were read before, %d are left", len(before), len(asked) - len(before))
        asked = asked[len(before) :]
    size = len(asked) if command.infer.write_batch_size == -1 else command.infer.write_batch_size
    compared: list[dict[str, Any]] = []
    began = time.monotonic()
    with Results(path) if is_first else nullcontext() as results:
        for start in range(0, len(asked), max(size, 1)):
            mine = part(asked[start : start + size], environment.rank(), environment.world_size())
            found = gathered(_read(reader, mine, logprobs=command.generation.logprobs))
            if results is not None:
                results.write(row for row, _ in found)
                compared += [pair for _, pairs in found for pair in pairs]
    if is_first:
        seconds = time.monotonic() - began
        texts = [sample for _, found in asked for _, sample in found]
        get_logger().info(
            "num_prompt_tokens: %d, num_samples: %d, num_texts: %d, runtime: %.2f s, samples/s: %.2f",
            sum(map(len, texts)), len(asked), len(texts), seconds, len(asked) / seconds,
        )  # fmt: skip
        if command.infer.metric is not None:
            _show(json.dumps(METRICS[command.infer.metric](compared)) + "\n")
        _show(f"{path}\n")
    return path


Asked = tuple[Conversation, list[tuple[Part, Sample]]]
"""A row, and its texts that are read."""


def _asked(reader: Reader, rows: Iterable[Conversation], *, strict: bool) -> tuple[list[Asked], dict[str, list[int]]]:
    """The texts of all rows that can be read; the numbers of the others by cause, or the first one as an error."""
    asked: list[Asked] = []
    skipped: dict[str, list[int]] = {}
    for number, conversation in enumerate(rows, 1):
        try:
            asked.append((conversation, reader.samples(conversation)))
        except DataError as error:
            if strict:
                raise DataError(f"Row {number} cannot be read: {error}.") from None
            skipped.setdefault(str(error), []).append(number)
    if not asked:
        raise DataError(f"None of the rows can be read: {'; '.join(skipped)}.")
    return asked, skipped


def _read(
    reader: Reader, asked: Sequence[Asked], *, logprobs: bool
) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """For each row its result, and what of it can be compared with a label."""
    samples = [sample for _, found in asked for _, sample in found]
    if not samples:
        return []
    outputs = iter(reader.engine.outputs(samples))
    return [
        _result(reader, conversation, [each for each, _ in found], [next(outputs) for _ in found], logprobs=logprobs)
        for conversation, found in asked
    ]


def _result(
    reader: Reader, conversation: Conversation, parts: Sequence[Part], outputs: Sequence[Tensor], *, logprobs: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The result of one row: of several documents a list, the labels likewise."""
    head = reader.head
    answers = [answer(head, output, activates=reader.activates) for output in outputs]
    result: dict[str, Any] = {"response": answers[0], "labels": parts[0].label, "logprobs": None}
    compared = [{"response": answers[0], "labels": parts[0].label}]
    if head.task == "embedding":
        compared = []
        if len(outputs) > 1:
            result["labels"] = [each.label for each in parts[1:]]
            result["similarities"] = [
                float(functional.cosine_similarity(outputs[0], other, dim=0)) for other in outputs[1:]
            ]
    elif head.task == "seq_cls":
        result["logprobs"] = class_logprobs(head, outputs[0]) if logprobs else None
        if head.problem == "multi_label_classification" and isinstance(parts[0].label, list):
            compared = [{"response": answers[0], "labels": sorted(parts[0].label)}]
    else:
        compared = [
            {"response": int(output > 0), "labels": each.label} for output, each in zip(outputs, parts, strict=True)
        ]
        if conversation.positives or conversation.negatives:
            result |= {"response": answers, "labels": [each.label for each in parts]}
    row = as_row(conversation)
    return {**result, **{name: value for name, value in row.items() if name not in result}}, compared


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
