"""This file knows which settings the schedules of the learning rate take, and tries them before a run."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import TrainingArguments, get_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, GreedyLR
from transformers.trainer_utils import SchedulerType

from swift.core.errors import UsageError
from swift.core.registry import did_you_mean

GIVEN = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
"""What every schedule is told anyway."""
BARE = {SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP}
"""Schedules to which transformers hands no settings."""
BY_CLASS = {
    SchedulerType.REDUCE_ON_PLATEAU: torch.optim.lr_scheduler.ReduceLROnPlateau,
    SchedulerType.GREEDY: GreedyLR,
}
"""Schedules whose function hands everything on to a class."""
STEPS = 10


def check_schedule(args: TrainingArguments) -> None:
    """Raises UsageError when `--lr_scheduler_type` does not take `--lr_scheduler_kwargs`, or refuses their values."""
    kind = SchedulerType(args.lr_scheduler_type)
    settings: Any = args.lr_scheduler_kwargs or {}  # transformers has made a dictionary of it
    known = _settings(kind)
    for name in settings:
        if known is not None and name not in known:
            guess = did_you_mean(name, sorted(known))
            there = f"There are: {', '.join(sorted(known))}." if known else "It takes none."
            raise UsageError(f"--lr_scheduler_kwargs {name}: {kind.value} has no such setting.{guess} {there}")
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=args.learning_rate)
    try:
        get_scheduler(kind, optimizer, 1, STEPS, settings)
    except (TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"--lr_scheduler_kwargs {settings or ''}: {kind.value} does not take this: {error}") from error


def _settings(kind: SchedulerType) -> set[str] | None:
    """The names of what a schedule can be told; None when it does not say."""
    if kind in BARE:
        return set()
    signature = inspect.signature(BY_CLASS.get(kind, TYPE_TO_SCHEDULER_FUNCTION[kind]))
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
        return None
    return set(signature.parameters) - GIVEN
