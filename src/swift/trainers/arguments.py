"""This file knows how our options of training become the training arguments of transformers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from typing_extensions import override

from swift.catalog.components import CALLBACKS, OPTIMIZERS
from swift.core.errors import UsageError
from swift.models.precision import MixedPrecision
from swift.options.general import GeneralOptions
from swift.options.optimizers import OptimizerOptions
from swift.options.training import TrainingOptions
from swift.trainers.optim_names import WHOLE, check_optim
from swift.trainers.schedules import check_schedule
from swift.trainers.sharded import recompute_inside, require_agreement, sharding_arguments

UNCHANGED = (
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "weight_decay",
    "adam_beta1", "adam_beta2", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "full_determinism",
    "logging_first_step", "logging_steps", "metric_for_best_model", "greater_is_better", "num_train_epochs",
    "save_strategy", "save_steps", "eval_strategy", "eval_steps", "eval_on_start", "max_steps", "save_on_each_node",
    "save_only_model", "ignore_data_skip", "ddp_find_unused_parameters", "dataloader_num_workers",
    "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor", "optim", "optim_args",
    "average_tokens_across_devices", "max_grad_norm",
)  # fmt: skip
"""Options that mean the same in transformers, under the same name; None leaves them to transformers."""
OURS = ("optimizer", "callbacks", "early_stop_interval")
"""Options that transformers has no argument for, which optimizers and callbacks of plugins can read all the same."""
ON_OPTIM = (None, "lorap", "galore")
"""Values of `--optimizer` for which the optimizer of `--optim` is built, with `--optim_args`."""


@dataclass
class Arguments(TrainingArguments):
    """The arguments of transformers, and what decides of optimizers and callbacks here.

    optimizer: name of a registered optimizer, None for that of `optim`. lorap_lr_ratio: of LoRA+. galore: the options
    of GaLore. callbacks: names of registered callbacks.
    """

    optimizer: str | None = None
    callbacks: list[str] = field(default_factory=list)
    early_stop_interval: int | None = None
    lorap_lr_ratio: float | None = None
    galore: OptimizerOptions = field(default_factory=OptimizerOptions)

    @override
    def to_dict(self) -> dict[str, Any]:
        """Everything as trackers can write it."""
        return {**super().to_dict(), "galore": self.galore.model_dump()}


def training_arguments(training: TrainingOptions, general: GeneralOptions, *, output_dir: Path,
                       precision: MixedPrecision, extra: Mapping[str, Any], galore: OptimizerOptions | None = None,
                       lorap_lr_ratio: float | None = None) -> Arguments:  # fmt: skip
    """The arguments of transformers' Trainer for one run, writing into `output_dir`.

    `extra` are arguments that only transformers knows; each overrides what is derived here. What transformers
    refuses is a UsageError that names the flag.

    Some things are left out on purpose, because our own code does them: reporting, rotating checkpoints, the progress
    bar. A loss that is not finite is logged as it is, not replaced by an average.
    """
    same = {name: getattr(training, name) for name in (*UNCHANGED, *OURS)}
    values: dict[str, Any] = {name: value for name, value in same.items() if value is not None}
    values |= {"lorap_lr_ratio": lorap_lr_ratio, "galore": galore or OptimizerOptions()}
    values |= _translated(training, general) | sharding_arguments(training)
    values |= {
        "output_dir": str(output_dir),
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "use_cpu": not torch.accelerator.is_available(),
        "remove_unused_columns": False,
        "report_to": "none",
        "logging_nan_inf_filter": False,
        "disable_tqdm": False,
    }
    try:
        made = Arguments(**{**values, **extra})
    except (ValueError, TypeError, NotImplementedError, OSError) as error:
        raise UsageError(_said(error, {**same, **extra})) from error
    require_agreement(made)
    recompute_inside(made, training)
    _check_optimization(made)
    return made


def _check_optimization(args: Arguments) -> None:
    """Names that stand for nothing, packages that are missing and settings nobody reads, before a model is loaded."""
    for name in args.callbacks:
        CALLBACKS[name]
    if args.optimizer is not None:
        OPTIMIZERS[args.optimizer]
    if args.optimizer in ON_OPTIM:
        name = str(args.optim.value)  # type: ignore[union-attr]  # transformers made it an enum
        if args.optimizer is not None and name.startswith(WHOLE):
            raise UsageError(
                f"--optim {name} groups parameters itself, and so does --optimizer {args.optimizer}. Choose another "
                "--optim, such as adamw_torch."
            )
        check_optim(name, args.optim_args, vars(args))
    check_schedule(args)


def _translated(training: TrainingOptions, general: GeneralOptions) -> dict[str, Any]:
    """Options that transformers calls otherwise, or counts otherwise."""
    values: dict[str, Any] = {
        "seed": general.seed,
        "ddp_timeout": general.ddp_timeout,
        "activation_checkpointing": training.gradient_checkpointing,
        "warmup_steps": _warmup(training.warmup_ratio),
    }
    if general.ddp_backend is not None:
        values["ddp_backend"] = general.ddp_backend
    if training.gradient_checkpointing or training.fsdp is not None:
        values["activation_checkpointing_kwargs"] = checkpointing_kwargs(training)
    if training.neftune_noise_alpha > 0:
        values["neftune_noise_alpha"] = training.neftune_noise_alpha
    if training.ddp_find_unused_parameters is None:
        # Looking for unused parameters costs a pass over the graph in every step and cannot be combined with
        # recomputed activations.
        values["ddp_find_unused_parameters"] = not training.gradient_checkpointing
    return values


def checkpointing_kwargs(training: TrainingOptions) -> dict[str, Any]:
    """What torch.utils.checkpoint is called with; `use_reentrant` is False unless it was given."""
    return {"use_reentrant": False, **(training.gradient_checkpointing_kwargs or {})}


def _warmup(ratio: float) -> float:
    """A ratio as transformers takes it: a number below 1 is a share of all steps, so 1 is the number before it."""
    return math.nextafter(1.0, 0.0) if ratio == 1 else ratio


def _said(error: Exception, values: Mapping[str, Any]) -> str:
    """What transformers refused, with the flag it is about in front: the one whose value or name it mentions."""
    text = str(error)
    words = set(re.findall(r"\w+", text))
    valued = [name for name, value in values.items() if value == text.partition(" ")[0]]
    named = [name for name in values if name in words]
    flags = valued or named
    front = f"--{flags[0]}: " if flags else "These training arguments do not fit together: "
    return front + text


def without_evaluation(arguments: Arguments) -> Arguments:
    """The same arguments for a run that turned out to have nothing to evaluate on."""
    return replace(arguments, eval_strategy="no", eval_on_start=False)
