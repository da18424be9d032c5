"""This file knows the metrics that evaluation reports beside the loss, and how those of plugins are asked.

Axes: N sequences of the whole validation set, D documents, R rows, E channels of an embedding.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import EvalPrediction

from swift.catalog.tasks import EVAL_METRICS, TASK_METRICS
from swift.core import environment
from swift.core.errors import UsageError
from swift.core.logs import get_logger
from swift.models.heads import Head
from swift.trainers.objectives import Objective, Outputs, groups_of, matches_of

Measure = Callable[[Outputs], dict[str, float]]
"""A metric: from the outputs of the whole validation set to named numbers."""

ROWS_AT_ONCE = 1024
"""Rows whose similarities to all documents are held at a time."""
NAMES: dict[str, tuple[str, ...]] = {
    "acc": ("acc",),
    "paired": tuple(f"{kind}_{measure}" for kind in ("pearson", "spearman")
                    for measure in ("cosine", "euclidean", "manhattan", "dot_product")),
    "infonce": ("margin", "mean_neg", "mean_pos"),
    "reranker": ("mrr", "ndcg"),
}  # fmt: skip
"""Metric of ours -> what it reports."""


class EvalMetrics(ABC):
    """A metric of a plugin; `eval_metrics_map["mine"] = Mine` makes it known.

    args: the training arguments of transformers. trainer: what trains; `trainer.model` is the model.
    """

    def __init__(self, args: Any, trainer: Any) -> None:
        self.args = args
        self.trainer = trainer

    @abstractmethod
    def compute_metrics(self, eval_prediction: EvalPrediction) -> dict[str, float]:
        """Named numbers from `predictions` and `label_ids`, arrays over the whole validation set.

        seq_cls: logits [N, C]; classes [N], or [N, C]. Rerankers: scores [N]; 1 for a document that matches, else 0,
        [N]. embedding: vectors [N, E], the anchor of each row in front of its documents; similarities of the documents.
        causal_lm: what is kept of the logits [N, T, V], those of a token predicting the label of the next one, and labels
        [N, T], -100 where nothing is learnt. With --predict_with_generate: texts [N], and those that were expected.
        """

    def preprocess_logits_for_metrics(self, logits: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002 (for subclasses)
        """What is kept of the outputs of a batch, a row for each of its sequences; all unless overridden."""
        return logits


def measure_of(name: str | None, head: Head, objective: Objective) -> Measure | None:
    """A metric of ours by its name; None where it is a plugin's, or reported anyway. Raises UsageError."""
    if name is None or name not in TASK_METRICS:
        return None
    if head.task not in TASK_METRICS[name]:
        raise UsageError(f"--eval_metric {name} is no metric of --task_type {head.task}.")
    if name == "acc" and objective.right is None:
        raise UsageError("--eval_metric acc: values of a regression are never exactly right. Drop it.")
    return None if name == "acc" else EVAL_METRICS[name]


def plugin_of(name: str | None) -> type[EvalMetrics] | None:
    """The metric of a plugin; None when the name is one of ours. Raises UsageError for what is no such metric."""
    if name is None or name in TASK_METRICS:
        return None
    found: Any = EVAL_METRICS[name]
    if not (isinstance(found, type) and issubclass(found, EvalMetrics)):
        raise UsageError(f"--eval_metric {name}: a plugin must register a subclass of EvalMetrics, got {found!r}.")
    return found


def acc(outputs: Outputs) -> dict[str, float]:
    """The share of the single classes that are right."""
    return {"acc": float((outputs.values.argmax(-1) == outputs.labels).double().mean())}


def paired(outputs: Outputs) -> dict[str, float]:
    """Pearson's and Spearman's correlation of the labels of pairs with four measures of their nearness.

    Distances count with a minus sign, so that 1 is best for all. A correlation with labels that are all alike is not
    defined and is NaN.
    """
    matches = matches_of(outputs)
    anchors, documents = matches.anchors.double()[matches.row_of], matches.documents.double()
    nearness = {
        "cosine": functional.cosine_similarity(anchors, documents, dim=-1),
        "euclidean": -(anchors - documents).norm(dim=-1),
        "manhattan": -(anchors - documents).abs().sum(-1),
        "dot_product": (anchors * documents).sum(-1),
    }
    labels = outputs.labels.double()
    if len(labels.unique()) < 2:
        get_logger().warning("eval_metric paired: all labels are alike, so no correlation with them is defined")
    return {
        f"{kind}_{name}": correlate(values, labels)
        for kind, correlate in (("pearson", pearson), ("spearman", spearman))
        for name, values in nearness.items()
    }


def infonce(outputs: Outputs) -> dict[str, float]:
    """How much nearer an anchor is to its match than to other documents, by dot products.

    mean_pos, mean_neg: of matches, and of all others. margin: the mean over rows of the match's similarity less that of
    the nearest other. With INFONCE_USE_BATCH the others are all documents of the validation set, else those of the row.
    """
    matches, uses_all = matches_of(outputs), environment.INFONCE_USE_BATCH.flag()
    rows, row_D, first_R = torch.arange(len(outputs.sizes)), matches.row_of, matches.first_of
    positive_R = (matches.anchors.double() * matches.documents.double()[first_R]).sum(-1)
    margins: list[Tensor] = []
    total, count = 0.0, 0
    for some in rows.split(ROWS_AT_ONCE):
        scores_SD = matches.anchors.double()[some] @ matches.documents.double().T
        is_other_SD = torch.ones_like(scores_SD, dtype=torch.bool) if uses_all else row_D == some[:, None]
        is_other_SD = is_other_SD.scatter(1, first_R[some][:, None], value=False)
        total, count = total + float(scores_SD[is_other_SD].sum()), count + int(is_other_SD.sum())
        has_other_S = is_other_SD.any(1)
        nearest_S = scores_SD.masked_fill(~is_other_SD, -math.inf).max(1).values
        margins.append((positive_R[some] - nearest_S)[has_other_S])
    margin = torch.cat(margins)
    return {
        "margin": float(margin.mean()) if len(margin) else math.nan,
        "mean_neg": total / count if count else math.nan,
        "mean_pos": float(positive_R.mean()),
    }


def reranker(outputs: Outputs) -> dict[str, float]:
    """How far up the match of each group stands, over the groups that have one and something else.

    mrr: the mean of 1 / rank of the best match (Voorhees 1999). ndcg: `sum (2^rel - 1) / log2(rank + 1)` over that of
    the best order (Burges et al. 2005). Documents of one score share their ranks: the worst order of them counts.
    """
    ranks: list[float] = []
    gains: list[float] = []
    for scores, labels in zip(
        outputs.values.split(list(outputs.sizes)), outputs.labels.split(list(outputs.sizes)), strict=True
    ):
        sizes = groups_of(labels.tolist())
        for some, known in zip(scores.split(sizes), labels.split(sizes), strict=True):
            if len(known) < 2 or not bool((known > 0).any()):
                continue
            # Among equal scores those that match least come first, so that a model that cannot tell gets no credit.
            order = sorted(range(len(known)), key=lambda i: (-float(some[i]), float(known[i])))
            ordered = known[torch.tensor(order)].double()
            ranks.append(1 / (1 + int((ordered > 0).int().argmax())))
            gains.append(_dcg(ordered) / _dcg(known.double().sort(descending=True).values))
    return {name: sum(of) / len(of) if of else math.nan for name, of in (("mrr", ranks), ("ndcg", gains))}


def pearson(first: Tensor, second: Tensor) -> float:
    """The linear correlation of two series; NaN when one of them is constant."""
    first, second = first - first.mean(), second - second.mean()
    return float((first * second).sum() / (first.norm() * second.norm()))


def spearman(first: Tensor, second: Tensor) -> float:
    """The correlation of the ranks of two series; NaN when one of them is constant."""
    return pearson(ranks_of(first), ranks_of(second))


def ranks_of(values: Tensor) -> Tensor:
    """The rank of each value from 1, equal ones sharing the mean of theirs."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[inverse]


def _dcg(relevance: Tensor) -> float:
    places = torch.arange(2, len(relevance) + 2, dtype=torch.float64)
    return float(((2**relevance - 1) / places.log2()).sum())
