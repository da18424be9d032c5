"""This file knows whether the metric by which checkpoints are compared is one that evaluation reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transformers import TrainingArguments

from swift.core.errors import UsageError
from swift.core.logs import get_logger
from swift.trainers.benchmarks import PREFIX


def check_best_metric(args: TrainingArguments, known: Sequence[str] | None, prefixes: tuple[str, ...] = ()) -> None:
    """Raise UsageError, before anything is trained, for a metric that is not among the `known` ones.

    known: what evaluation reports; None when only a plugin knows.
    prefixes: how further metrics begin whose names come from the rows, or from benchmarks.
    """
    wanted = args.metric_for_best_model
    if args.eval_strategy == "no" or wanted is None:
        return
    name = wanted.removeprefix("eval_")
    if known is not None and name not in known and not name.startswith(prefixes):
        raise UsageError(f"--metric_for_best_model {wanted}: evaluation reports {' and '.join(known)}. Choose one.")
    if args.save_strategy == "steps" and args.eval_strategy == "steps" and args.save_steps % (args.eval_steps or 1):
        get_logger().warning(
            "--save_steps %s is no multiple of --eval_steps %s: the best checkpoint is the best of those that were "
            "both evaluated and saved",
            args.save_steps, args.eval_steps,
        )  # fmt: skip


def is_measured(args: TrainingArguments, metrics: Mapping[str, float]) -> bool:
    """Whether an evaluation has measured what checkpoints are compared by; of benchmarks that failed it has not.

    Raises UsageError for a metric that evaluation does not report: one of a plugin, misspelt.
    """
    wanted = args.metric_for_best_model
    if wanted is None or f"eval_{wanted.removeprefix('eval_')}" in metrics:
        return True
    if wanted.removeprefix("eval_").startswith(PREFIX):
        get_logger().warning(
            "--metric_for_best_model %s: no score, so no checkpoint is the best of this evaluation", wanted
        )
        return False
    known = sorted(name.removeprefix("eval_") for name in metrics if name.startswith("eval_"))
    raise UsageError(f"--metric_for_best_model {wanted}: evaluation reports {', '.join(known)}. Choose one.")
