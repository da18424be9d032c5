"""This file knows the components that are chosen by name, and where each of them lives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from swift.catalog.datasets import Prepare
from swift.core.registry import Registry

METRICS: Registry[Callable[..., dict[str, float]]] = Registry(
    "metric",
    {
        "acc": "swift.trainers.metrics:accuracy",
        "rouge": "swift.trainers.metrics:rouge",
    },
)
"""`--metric` -> a function of result rows that returns named numbers."""

PREPARATIONS: Registry[Prepare] = Registry(
    "preparation of rows",
    {
        name: f"swift.data.named_rows:{name}"
        for name in (
            "no_think_and_empty_think", "empty_think", "hh_rlhf", "gsm8k", "countdown", "jd_generation",
            "stsb_similarity", "stsb_positive", "stsb_generate", "stsb_regression", "scidocs_reranking",
        )
    },
)  # fmt: skip
"""`preprocess_func` of a data set -> a function of a row."""

OPTIMIZERS: Registry[Callable[..., Any]] = Registry(
    "optimizer",
    {
        "lorap": "swift.trainers.optimizers:LoraPlus",
        "galore": "swift.trainers.optimizers:GaLoreOptimizer",
        "muon": "swift.trainers.optimizers:MuonOptimizer",
        "muonclip": "swift.trainers.optimizers:MuonClipOptimizer",
    },
)
"""`--optimizer` -> a class of (args, trainer) that makes the optimizer and the schedule of a training."""

CALLBACKS: Registry[Callable[..., Any]] = Registry(
    "callback",
    {
        "early_stop": "swift.trainers.early_stop:EarlyStop",
        "graceful_exit": "swift.trainers.interruption:GracefulExit",
        "perf_log": "swift.trainers.utilization:PerfLog",
    },
)
"""`--callbacks` -> a class of (args, trainer) whose objects are callbacks of transformers."""

LOSSES: Registry[Callable[..., Any]] = Registry("loss_type", {"cross_entropy": "swift.losses.plugin:cross_entropy"})
"""`--loss_type` of causal language models -> a function as this one, or a class as `swift.losses.plugin:BaseLoss`."""
