"""This file knows which losses tasks other than writing have, what each is a mean over, and how often a model is right.

Axes: N sequences of a batch, D documents, R rows, C outputs of a classification, E channels of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from swift.core import environment
from swift.core.errors import UsageError
from swift.core.registry import did_you_mean
from swift.losses import representation as losses
from swift.losses.representation import InfonceSettings, Matches
from swift.models.heads import Head

Ratio = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Outputs:
    """What a model puts out for a batch, and what is known of it.

    values: [N, C] of a classifier, [N] of a reranker, [N, E] embeddings.
    labels: of sequences, or of documents; see `data/collate_tasks.py`.
    sizes: the sequences of each row.
    """

    values: Tensor
    labels: Tensor
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Objective:
    """A loss, and what it is a mean over.

    losses: a value for each of these things, with the gradient.
    count: how many of them there are, from labels and sizes alone.
    right: right answers and all answers of a batch, which are logged as `acc`; None where nothing is right or wrong.
    sees_other_rows: whether the loss of a row depends on the other rows of the batch, on all processes.
    owners: the row of each of these things, so that rows can be evaluated one by one; None where the loss is of the
        batch as a whole.
    """

    losses: Callable[[Outputs], Tensor]
    count: Callable[[Tensor, tuple[int, ...]], int]
    right: Callable[[Outputs], Ratio] | None = None
    sees_other_rows: bool = False
    owners: Callable[[Outputs], list[int]] | None = None


def objective_of(head: Head, loss_type: str | None) -> Objective:
    """The loss of a task: `--loss_type`, and of classifiers what `--problem_type` says.

    Raises UsageError for a name that is no loss of this task, and for environment variables without an effect.
    """
    if head.task == "seq_cls":
        if loss_type is not None:
            raise UsageError(
                f"--loss_type {loss_type} is no loss of --task_type seq_cls, whose loss follows from --problem_type. "
                f"Drop it."
            )
        return _classification(head)
    table = LOSSES["embedding" if head.task == "embedding" else "reranker"]
    if loss_type not in table:
        guess = did_you_mean(str(loss_type), table)
        raise UsageError(
            f"--loss_type {loss_type} is no loss of --task_type {head.task}.{guess} There are: {', '.join(table)}."
        )
    return table[loss_type]()


# ------------------------------------------------------------------------------------------------------- classification


def _classification(head: Head) -> Objective:
    loss, problem = losses.CLASSIFICATIONS[head.problem], head.problem
    return Objective(
        losses=lambda outputs: loss(outputs.values, outputs.labels),
        count=lambda labels, _: labels.numel(),
        right=partial(_right, losses.RIGHT[problem]) if problem in losses.RIGHT else None,
        owners=lambda outputs: [row for row in range(len(outputs.sizes)) for _ in range(outputs.labels[row].numel())],
    )


def _right(compare: Callable[[Tensor, Tensor], Tensor], outputs: Outputs) -> Ratio:
    right_N = compare(outputs.values.detach(), outputs.labels)
    return right_N.sum(), right_N.new_tensor(len(right_N), dtype=right_N.sum().dtype)


# ------------------------------------------------------------------------------------------------------------ embedding


def matches_of(outputs: Outputs) -> Matches:
    """The embeddings of a batch as anchors and their documents."""
    rows = outputs.values.split(list(outputs.sizes))
    anchors, documents = [row[:1] for row in rows], [row[1:] for row in rows]
    sizes = tuple(size - 1 for size in outputs.sizes)
    return Matches(torch.cat(anchors), torch.cat(documents), sizes, outputs.labels)


def _pairs(loss: Callable[[Matches], Tensor]) -> Objective:
    return Objective(
        losses=lambda outputs: loss(matches_of(outputs)),
        count=lambda labels, _: len(labels),
        owners=lambda outputs: [row for row, size in enumerate(outputs.sizes) for _ in range(size - 1)],
    )


def _online_contrastive() -> Objective:
    return Objective(losses=lambda outputs: losses.online_contrastive(matches_of(outputs)), count=lambda *_: 1)


def _infonce() -> Objective:
    settings = infonce_settings()
    return Objective(
        losses=lambda outputs: losses.infonce(matches_of(outputs), settings),
        count=lambda _, sizes: len(sizes),
        sees_other_rows=settings.uses_batch,
        owners=lambda outputs: list(range(len(outputs.sizes))),
    )


def infonce_settings() -> InfonceSettings:
    """The settings of infonce, from the environment. Raises UsageError for those that would have no effect."""
    uses_batch = environment.INFONCE_USE_BATCH.flag()
    for variable in (environment.INFONCE_INCLUDE_QQ, environment.INFONCE_INCLUDE_DD):
        if variable.flag() and not uses_batch:
            raise UsageError(
                f"{variable.name} adds candidates of other rows, and INFONCE_USE_BATCH=false leaves them out. Unset one "
                f"of these environment variables."
            )
    temperature, margin = environment.INFONCE_TEMPERATURE.number(), environment.INFONCE_FAKE_NEG_MARGIN.number()
    count = environment.INFONCE_HARD_NEGATIVES.integer()
    assert temperature is not None, "it has a default"
    assert margin is not None, "it has a default"
    if temperature <= 0:
        raise UsageError(f"The environment variable INFONCE_TEMPERATURE must be above 0 (got {temperature}).")
    if count is not None and count < 1:
        raise UsageError(f"The environment variable INFONCE_HARD_NEGATIVES must be at least 1 (got {count}).")
    return InfonceSettings(
        temperature, uses_batch, count, environment.INFONCE_MASK_FAKE_NEGATIVE.flag(), margin,
        environment.INFONCE_INCLUDE_QQ.flag(), environment.INFONCE_INCLUDE_DD.flag(),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- reranker


def groups_of(labels: list[float]) -> list[int]:
    """The sizes of the groups that documents fall into: a group begins with each that matches, and with the first."""
    starts = [place for place, label in enumerate(labels) if label > 0.5 or place == 0]
    return [end - start for start, end in pairwise([*starts, len(labels)])]


def _pointwise() -> Objective:
    return Objective(
        losses=lambda outputs: losses.pointwise(outputs.values, outputs.labels),
        count=lambda labels, _: len(labels),
        right=lambda outputs: _right(lambda scores, labels: (scores > 0) == (labels > 0.5), outputs),
        owners=lambda outputs: [row for row, size in enumerate(outputs.sizes) for _ in range(size)],
    )


def _listwise() -> Objective:
    temperature = environment.LISTWISE_RERANKER_TEMPERATURE.number()
    smallest = environment.LISTWISE_RERANKER_MIN_GROUP_SIZE.integer()
    assert temperature is not None, "it has a default"
    assert smallest is not None, "it has a default"
    if temperature <= 0:
        raise UsageError(f"The environment variable LISTWISE_RERANKER_TEMPERATURE must be above 0 (got {temperature}).")

    def chosen(outputs: Outputs) -> tuple[Tensor, tuple[int, ...], list[int]]:
        """The scores of the groups that are learnt from, their sizes, and the row of each."""
        parts: list[Tensor] = []
        rows: list[int] = []
        scores, labels = outputs.values.split(list(outputs.sizes)), outputs.labels.split(list(outputs.sizes))
        for row, (some, known) in enumerate(zip(scores, labels, strict=True)):
            sizes = groups_of(known.tolist())
            for part, label in zip(some.split(sizes), known.split(sizes), strict=True):
                if label[0] > 0.5 and len(part) >= smallest:
                    parts.append(part)
                    rows.append(row)
        return (torch.cat(parts) if parts else outputs.values[:0]), tuple(map(len, parts)), rows

    def loss(outputs: Outputs) -> Tensor:
        scores, sizes, _ = chosen(outputs)
        return losses.listwise(scores, sizes, temperature) if sizes else scores

    def count(labels: Tensor, sizes: tuple[int, ...]) -> int:
        return len(chosen(Outputs(labels, labels, sizes))[1])

    def right(outputs: Outputs) -> Ratio:
        scores, sizes, _ = chosen(outputs)
        right_G = losses.first_is_best(scores.detach(), sizes) if sizes else scores > 0
        return right_G.sum(), right_G.sum().new_tensor(len(right_G))

    return Objective(loss, count, right, owners=lambda outputs: chosen(outputs)[2])


LOSSES: Mapping[str, dict[str, Callable[[], Objective]]] = {
    "embedding": {
        "cosine_similarity": lambda: _pairs(losses.cosine_similarity),
        "contrastive": lambda: _pairs(losses.contrastive),
        "online_contrastive": _online_contrastive,
        "infonce": _infonce,
    },
    "reranker": {"pointwise_reranker": _pointwise, "listwise_reranker": _listwise},
}
"""Task -> `--loss_type` -> what makes the objective, which reads the environment."""
