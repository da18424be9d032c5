"""This file knows whether the metric by which checkpoints are compared is one that evaluation reports."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import TrainingArguments

from swift.core.errors import UsageError
from swift.core.logs import get_logger


def check_best_metric(args: TrainingArguments, known: Sequence[str] | None, prefix: str | None = None) -> None:
    """Raise UsageError, before anything is trained, for a metric that is not among the `known` ones.

    known: what evaluation reports; None when only a plugin knows.
    prefix: how further metrics begin whose names come from the rows.
    """
    wanted = args.metric_for_best_model
    if args.eval_strategy == "no" or wanted is None:
        return
    name = wanted.removeprefix("eval_")
    if known is not None and name not in known and not (prefix and name.startswith(prefix)):
        raise UsageError(f"--metric_for_best_model {wanted}: evaluation reports {' and '.join(known)}. Choose one.")
    if args.save_strategy == "steps" and args.eval_strategy == "steps" and args.save_steps % (args.eval_steps or 1):
        get_logger().warning(
            "--save_steps %s is no multiple of --eval_steps %s: the best checkpoint is the best of those that were "
            "both evaluated and saved",
            args.save_steps, args.eval_steps,
        )  # fmt: skip
