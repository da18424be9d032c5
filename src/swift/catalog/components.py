"""This file knows the components that are chosen by name, and where each of them lives."""

from __future__ import annotations

from collections.abc import Callable

from swift.core.registry import Registry

METRICS: Registry[Callable[..., dict[str, float]]] = Registry(
    "metric",
    {
        "acc": "swift.trainers.metrics:accuracy",
        "rouge": "swift.trainers.metrics:rouge",
    },
)
"""`--metric` -> a function of result rows that returns named numbers."""
