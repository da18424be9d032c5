"""This file knows what a training asks its model when it is evaluated by its replies: the rows, as `swift infer` asks them."""

from __future__ import annotations

from functools import partial
from typing import Any

from swift.commands.answering import answering
from swift.commands.infer import prompt_of, question_of, sampling_of, worded
from swift.commands.preparation import Prepared
from swift.commands.results import result_row
from swift.core import environment
from swift.core.errors import DataError
from swift.core.logs import get_logger
from swift.data.conversations import load_conversations
from swift.data.library import HubAccess
from swift.engines.chat import Chat
from swift.options.data import DataOptions
from swift.trainers import processes
from swift.trainers.replies import NLG, Asked, Replies

NO_LABELS = "they do not end with a reply to compare with"


def replies_of(prepared: Prepared, model: Any) -> Replies | None:
    """What evaluation asks the model and how it measures the answers; None when it measures the loss.

    The rows to validate on are asked like those of `swift infer`: their last reply is what is expected.
    Raises DataError when no row can be asked.
    """
    command = prepared.command
    if not command.training.predict_with_generate or prepared.data.val is None:
        return None
    with answering(prepared, model) as chat:
        asked = processes.made_once(lambda: _rows(prepared, chat), command.general.ddp_timeout)
    return Replies(
        partial(answering, prepared, model),
        asked,
        sampling_of(command.generation, command.general.seed),
        command.training.eval_metric or NLG,
        batch_size=command.training.per_device_eval_batch_size,
        folder=prepared.folder,
    )


def _rows(prepared: Prepared, chat: Chat) -> list[Asked]:
    """The rows that have a prompt and a reply to compare with; the others are counted, or refused by `--strict`."""
    command, asked, left = prepared.command, list[Asked](), dict[str, int]()
    hub = HubAccess(command.general.use_hf, command.general.hub_token)
    items = load_conversations(validation_only(command.data), hub, keep_values=False).val or []
    for number, item in enumerate(items, start=1):
        try:
            question = worded(chat, question_of(number, item.conversation))
            prompt = prompt_of(chat, question, command.template, prepared.info.max_length)
        except DataError as error:
            if command.data.strict:
                raise DataError(f"{item.file}:{item.line} cannot be answered: {error}.") from None
            left[str(error)] = left.get(str(error), 0) + 1
            continue
        if question.labels is None:
            left[NO_LABELS] = left.get(NO_LABELS, 0) + 1
            continue
        asked.append(Asked(len(asked), prompt, question.labels, partial(result_row, question)))
    if not asked:
        raise DataError(
            f"--predict_with_generate true: none of the {len(items)} rows can be answered: {'; '.join(left)}."
        )
    for why, count in left.items():
        get_logger().warning("evaluation asks %d rows less: %s", count, why)
    if environment.rank() == 0:
        get_logger().info("evaluation lets the model answer %d rows", len(asked))
    return asked


def validation_only(options: DataOptions) -> DataOptions:
    """The options by which the same rows to validate on are read, and no others where they have data sets of their own.

    Columns without a meaning are kept: predict.jsonl says what its rows said.
    """
    changes: dict[str, Any] = {"remove_unused_columns": False}
    if options.val_dataset or options.cached_val_dataset:
        changes |= {"dataset": [], "cached_dataset": [], "split_dataset_ratio": 0.0, "interleave_prob": None}
    return options.model_copy(update=changes)
