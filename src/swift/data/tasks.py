"""This file knows which conversations of a row a task looks at, in which order, and what of each is learnt.

    supervised            sample
    prompt                prompt: the conversation without its reply
    preference            chosen, rejected
    kto                   sample, labelled desirable (True) or not (False)
    seq_cls               sample, labelled with its class, classes or scores
    embedding             anchor, positive, negative ...: the positive labelled with its similarity, a negative with 0
    reranker              positive ..., negative ...: the query joined with each document, labelled 1 or 0
    generative_reranker   as reranker

A row without what its task needs is a RowError with the key path of what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from swift.chat.messages import Conversation
from swift.data.groups import Draw
from swift.data.rows import RowError, shown
from swift.losses.representation import Problem

Task = Literal["supervised", "prompt", "preference", "kto", "seq_cls", "embedding", "reranker", "generative_reranker"]
OF_MODELS: dict[str, Task] = {
    "causal_lm": "supervised", "seq_cls": "seq_cls", "embedding": "embedding", "reranker": "reranker",
    "generative_reranker": "generative_reranker",
}  # fmt: skip
"""`--task_type` -> what it takes of a row, in pt and sft."""
READ: tuple[Task, ...] = ("seq_cls", "embedding", "reranker", "generative_reranker")
"""Tasks that read their conversations and learn no token of them."""
GROUPED: tuple[Task, ...] = ("embedding", "reranker", "generative_reranker")
"""Tasks in which the samples of a row stay together."""


@dataclass(frozen=True)
class Classes:
    """What labels of a classification may be: its problem, and the number of classes or scores."""

    problem: Problem
    num_labels: int


@dataclass(frozen=True)
class Aim:
    """What samples are for: a task, and of a classification what its labels may be.

    draw: what of a row's documents is given at a time; None gives all.
    """

    task: Task = "supervised"
    classes: Classes | None = None
    draw: Draw | None = None

    @property
    def reads(self) -> bool:
        """Whether conversations are read and not learnt from."""
        return self.task in READ

    @property
    def is_grouped(self) -> bool:
        """Whether the samples of a row stay together."""
        return self.task in GROUPED

    def parts(self, conversation: Conversation) -> list[Part]:
        """The conversations of a row that the task looks at, with labels of the type its loss takes. Raises RowError."""
        found = parts(conversation, self.task)
        if self.classes is None:
            return found
        return [
            replace(part, label=class_label(part.label, self.classes.problem, self.classes.num_labels))
            for part in found
        ]


SUPERVISED = Aim()


@dataclass(frozen=True, slots=True)
class Part:
    """One conversation of a row, to be rendered.

    name: the role it has in the task: sample, prompt, chosen, rejected, anchor, positive, negative.
    conversation: without other sides.
    label: what is known of it: class, score, desirability, similarity, relevance; None when the task has none.
    learns: whether its replies are learnt, so that the last turn must be the assistant's; without it the conversation
        is read only, and may end with anybody's turn.
    """

    name: str
    conversation: Conversation
    label: Any = None
    learns: bool = True


def parts(conversation: Conversation, task: Task) -> list[Part]:
    """The conversations of a row that the task looks at, in the order in which they stand in a batch.

    Raises RowError when the row lacks what the task needs.
    """
    return TASKS[task](conversation)


def class_label(label: Any, problem: Problem, num_labels: int) -> int | float | list[int] | list[float]:
    """The label of a classification, checked and of the type its problem has.

    single_label_classification: a class, 0 to num_labels - 1. multi_label_classification: a list of such classes, which
    may be empty. regression: a score, or a list of `num_labels` scores.
    Raises RowError.
    """
    if label is None:
        raise RowError("label", "is missing")
    if problem == "multi_label_classification":
        if not isinstance(label, list):
            raise RowError("label", "is no list of classes", shown(label))
        classes = [_class(each, f"label[{index}]", num_labels) for index, each in enumerate(label)]
        if len(set(classes)) != len(classes):
            raise RowError("label", "names a class twice", shown(label))
        return classes
    if problem == "regression":
        return _scores(label, num_labels)
    if isinstance(label, list):
        raise RowError("label", "is a list, and one class is needed", shown(label))
    return _class(label, "label", num_labels)


def _class(label: Any, path: str, num_labels: int) -> int:
    if isinstance(label, float) and not label.is_integer():
        raise RowError(path, "is no class, a whole number", shown(label))
    if not 0 <= label < num_labels:
        raise RowError(path, f"is none of the classes 0 to {num_labels - 1} (--num_labels)", shown(label))
    return int(label)


def _scores(label: Any, num_labels: int) -> float | list[float]:
    if not isinstance(label, list) and num_labels == 1:
        return float(label)
    scores = label if isinstance(label, list) else [label]
    if len(scores) != num_labels:
        raise RowError("label", f"has not {num_labels} scores (--num_labels)", shown(label))
    return float(scores[0]) if num_labels == 1 else [float(score) for score in scores]


# ------------------------------------------------------------------------------------------------------------ the tasks


def _supervised(conversation: Conversation) -> list[Part]:
    return [Part("sample", _alone(_answered(conversation, "messages")))]


def _prompt(conversation: Conversation) -> list[Part]:
    """What is asked, to be replied to by the model; the reply of the row itself is left out."""
    messages = conversation.messages
    while messages and messages[-1].role in ("assistant", "tool_call"):
        messages = messages[:-1]
    if not messages or messages[-1].role == "system":
        raise RowError("messages", "asks nothing: there is no user message")
    return [Part("prompt", replace(_alone(conversation), messages=messages), learns=False)]


def _preference(conversation: Conversation) -> list[Part]:
    if conversation.rejected is None:
        raise RowError("rejected_response", "is missing", "rejected_messages would do as well")
    chosen = _answered(conversation, "messages")
    rejected = _answered(conversation.rejected, "rejected_messages")
    return [Part("chosen", _alone(chosen)), Part("rejected", _alone(rejected))]


def _kto(conversation: Conversation) -> list[Part]:
    label = conversation.label
    if label is None:
        raise RowError("label", "is missing")
    if isinstance(label, list) or label not in (0, 1):  # True and False are 1 and 0
        raise RowError("label", "is neither true (desirable) nor false", shown(label))
    return [Part("sample", _alone(_answered(conversation, "messages")), bool(label))]


def _seq_cls(conversation: Conversation) -> list[Part]:
    if conversation.label is None:
        raise RowError("label", "is missing")
    return [Part("sample", _asking(_alone(conversation)), conversation.label, learns=False)]


def _embedding(conversation: Conversation) -> list[Part]:
    """The anchor, the one document that matches it, and those that do not."""
    if len(conversation.positives) != 1:
        raise RowError(
            "positive_messages", "must hold exactly one document", f"there are {len(conversation.positives)}"
        )
    similarity = 1.0 if conversation.label is None else conversation.label
    if isinstance(similarity, list) or not math.isfinite(similarity):
        raise RowError("label", "is no number", shown(similarity))
    return [
        Part("anchor", _asking(_alone(conversation)), learns=False),
        Part("positive", _asking(_alone(conversation.positives[0])), float(similarity), learns=False),
        *(Part("negative", _asking(_alone(document)), 0.0, learns=False) for document in conversation.negatives),
    ]


def _reranker(conversation: Conversation) -> list[Part]:
    """The query with every document, those that match first."""
    if not conversation.positives and not conversation.negatives:
        raise RowError("positive_messages", "is missing or empty, and so is negative_messages: there is no document")
    query = _alone(conversation)
    matching = [Part("positive", _joined(query, document), 1, learns=False) for document in conversation.positives]
    others = [Part("negative", _joined(query, document), 0, learns=False) for document in conversation.negatives]
    return matching + others


def scored(conversation: Conversation, task: Task) -> list[Part]:
    """The texts of a row that a model is asked about, which may lack what training needs: documents, a label.

    A query with documents gives one text for each of them; a conversation without any is a text by itself. Raises RowError.
    """
    documents = (*conversation.positives, *conversation.negatives)
    if not conversation.messages:
        raise RowError("messages", "is empty")
    if task == "embedding":
        labels = [1.0] * len(conversation.positives) + [0.0] * len(conversation.negatives)
        if len(conversation.positives) == 1 and isinstance(conversation.label, (int, float)):
            labels[0] = float(conversation.label)
        return [
            Part("anchor", _asking(_alone(conversation)), learns=False),
            *(Part("document", _asking(_alone(each)), label, learns=False)
              for each, label in zip(documents, labels, strict=True)),
        ]  # fmt: skip
    if task in ("reranker", "generative_reranker") and documents:
        return _reranker(conversation)
    return [Part("sample", _asking(_alone(conversation)), conversation.label, learns=False)]


TASKS: dict[Task, Callable[[Conversation], list[Part]]] = {
    "supervised": _supervised,
    "prompt": _prompt,
    "preference": _preference,
    "kto": _kto,
    "seq_cls": _seq_cls,
    "embedding": _embedding,
    "reranker": _reranker,
    "generative_reranker": _reranker,
}
"""Task -> what makes the parts of a conversation."""


def _alone(conversation: Conversation) -> Conversation:
    """The conversation without its other sides."""
    if conversation.rejected is None and not conversation.positives and not conversation.negatives:
        return conversation
    return replace(conversation, rejected=None, positives=(), negatives=())


def _asking(conversation: Conversation) -> Conversation:
    """The conversation as one that the user begins: a text by itself is the user's, whoever is named."""
    messages = conversation.messages
    start = 1 if conversation.system is not None else 0
    if len(messages) != start + 1 or messages[start].role != "assistant":
        return conversation
    return replace(conversation, messages=(*messages[:start], replace(messages[start], role="user")))


def _answered(conversation: Conversation, column: str) -> Conversation:
    if not conversation.answered:
        raise RowError(column, "ends without a reply", f"the last turn is the {conversation.messages[-1].role}'s")
    return conversation


def _joined(query: Conversation, document: Conversation) -> Conversation:
    """Query and document as one conversation, under the system text of the document or else of the query."""
    system = document.messages[:1] if document.system is not None else ()
    if not system and query.system is not None:
        system = query.messages[:1]
    asked = [message for message in query.messages if message.role != "system"]
    said = [message for message in document.messages if message.role != "system"]
    if asked and asked[-1].role == "user" and len(said) == 1:
        said = [replace(said[0], role="assistant")]  # a document stands where a reply would, whoever is named
    spoken = [*asked, *said]
    return replace(
        query,
        messages=(*system, *spoken),
        tools=document.tools or query.tools,
        images=query.images + document.images,
        videos=query.videos + document.videos,
        audios=query.audios + document.audios,
        extra={**query.extra, **document.extra},
    )
