"""This file knows which task a checkpoint is used for, and what of its head the checkpoint decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from swift.catalog.families_text import FAMILIES
from swift.core.errors import ModelError, UsageError
from swift.models.families import family_task
from swift.models.heads import Head, Problem, judging_tokens
from swift.models.info import ModelInfo, read_json
from swift.models.sentence import described_pooling
from swift.options.model import ModelOptions


@dataclass(frozen=True)
class Labels:
    """The outputs of a classification, and from where their number and kind are known."""

    num_labels: int
    problem: Problem
    why: str


def labels_of(info: ModelInfo, options: ModelOptions) -> Labels:
    """The outputs of a classification: as asked for, else those the checkpoint was trained with.

    Raises UsageError when neither says how many there are.
    """
    stored = read_json(info.path / "config.json") if is_classifier(info) else {}
    count = options.num_labels
    why = "--num_labels"
    if count is None and is_classifier(info):
        count, why = _stored_count(stored), f"{info.path.name}/config.json"
    if count is None:
        raise UsageError(
            "--task_type seq_cls needs --num_labels, the number of classes (1 for a regression with one value): "
            f"{info.name} is no classifier yet."
        )
    problem = options.problem_type
    if problem is None and options.num_labels is None and stored.get("problem_type"):
        problem = stored["problem_type"]
    if problem is None:
        problem = "regression" if count == 1 else "single_label_classification"
    if problem == "single_label_classification" and count == 1:
        raise UsageError(
            "--problem_type single_label_classification needs --num_labels 2 or more: with 1 nothing is chosen."
        )
    return Labels(count, problem, why)


def is_classifier(info: ModelInfo) -> bool:
    """Whether the weights of the checkpoint have a classification head already."""
    return any(name.endswith("ForSequenceClassification") for name in info.architectures)


def head_of(info: ModelInfo, options: ModelOptions, tokenizer: PreTrainedTokenizerBase) -> Head:
    """The head of a model for `--task_type`; `--num_labels` and `--problem_type` are settled for seq_cls."""
    task = options.task_type
    assert isinstance(tokenizer.pad_token_id, int), "load_tokenizer gives every tokenizer a padding token"
    if task == "seq_cls":
        assert options.num_labels is not None, "it is settled first"
        assert options.problem_type is not None, "it is settled first"
        return Head(task, options.problem_type, options.num_labels, pad_token_id=tokenizer.pad_token_id)
    if task == "embedding":
        pooling, normalizes = described_pooling(info.path) or ("last", True)
        return Head(task, pooling=pooling, normalizes=normalizes)
    judges = judging_tokens(tokenizer) if task == "generative_reranker" else None
    return Head(task, judges=judges, pad_token_id=tokenizer.pad_token_id)


def template_of(info: ModelInfo) -> str | None:
    """The layout that the texts of an embedding or reranking family have, whatever chat template its tokenizer brings.

    Their tokenizers often carry the chat template of the model they were made from, by which they were not trained.
    """
    if info.family not in FAMILIES or family_task(info.family) == "causal_lm":
        return None
    return FAMILIES[info.family].template(info.name)


def require_task(info: ModelInfo, options: ModelOptions) -> None:
    """Refuse to take a classifier for a model that writes: its head would be left out, and another one made up."""
    if options.task_type in ("causal_lm", "generative_reranker", "embedding") and is_classifier(info):
        raise ModelError(
            f"--model {info.path} is a classifier ({', '.join(info.architectures)}), and --task_type "
            f"{options.task_type} has no place for its head. Use --task_type seq_cls or reranker."
        )


def _stored_count(config: dict[str, Any]) -> int:
    """As transformers reads it, whose own default is 2."""
    names = config.get("id2label")
    return len(names) if names else int(config.get("num_labels") or 2)
