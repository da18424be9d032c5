"""This file knows the losses and metrics of tasks other than writing, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from swift.core.registry import Registry

TASK_LOSSES: dict[str, tuple[str, ...]] = {
    "seq_cls": (),
    "embedding": ("cosine_similarity", "contrastive", "online_contrastive", "infonce"),
    "reranker": ("pointwise_reranker", "listwise_reranker"),
    "generative_reranker": ("pointwise_reranker", "listwise_reranker"),
}
"""Task -> its losses, the default first; a classification has the one that its problem has."""
TASK_METRICS: dict[str, tuple[str, ...]] = {
    "acc": ("seq_cls",),
    "paired": ("embedding",),
    "infonce": ("embedding",),
    "reranker": ("reranker", "generative_reranker"),
}
"""`--eval_metric` -> the tasks it measures."""

EVAL_METRICS: Registry[Callable[..., Any]] = Registry(
    "evaluation metric",
    {name: f"swift.trainers.evaluation:{name}" for name in TASK_METRICS},
)
"""`--eval_metric` -> a function of predictions, or a class of a plugin; see `trainers/evaluation.py`."""
