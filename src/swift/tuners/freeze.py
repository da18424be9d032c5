"""This file knows which parameters are trained when all could be: freezing by share, prefix and regular expression."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import nn

from swift.core.errors import ModelError, UsageError
from swift.core.registry import nearest
from swift.options.tuner import TunerOptions
from swift.parallel.partitions import size_of


def freeze(model: nn.Module, options: TunerOptions) -> None:
    """Set requires_grad of every parameter, for training without an adapter.

    All parameters are trained first. Then are frozen: `--freeze_parameters_ratio`, `--freeze_parameters`,
    `--freeze_parameters_regex`; then trained again: `--trainable_parameters`, `--trainable_parameters_regex`, which
    therefore stand above the freezing. Tied parameters answer to all of their names. Raises ModelError for a prefix
    or pattern that names nothing, and when nothing is left to train.
    """
    model.requires_grad_(True)
    freeze_share(model, options.freeze_parameters_ratio)
    for prefix in options.freeze_parameters:
        _set(model, _starts_with(prefix), False, f"--freeze_parameters {prefix}")
    if options.freeze_parameters_regex is not None:
        pattern = _compiled(options.freeze_parameters_regex, "--freeze_parameters_regex")
        _set(model, _contains(pattern), False, f"--freeze_parameters_regex {pattern.pattern!r}")
    for prefix in options.trainable_parameters:
        _set(model, _starts_with(prefix), True, f"--trainable_parameters {prefix}")
    if options.trainable_parameters_regex is not None:
        pattern = _compiled(options.trainable_parameters_regex, "--trainable_parameters_regex")
        _set(model, _contains(pattern), True, f"--trainable_parameters_regex {pattern.pattern!r}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(
            "Nothing is left to train: the --freeze_parameters options freeze every parameter. Freeze less, or name "
            "what is trained with --trainable_parameters."
        )


def freeze_share(model: nn.Module, ratio: float) -> None:
    """Freeze parameters from the bottom of the model, as many as fit whole into `ratio` of all elements."""
    limit = int(ratio * sum(size_of(parameter) for parameter in model.parameters()))
    for parameter in model.parameters():
        limit -= size_of(parameter)
        if limit < 0:
            return
        parameter.requires_grad_(False)


def _set(model: nn.Module, chosen: Callable[[str], bool], trained: bool, option: str) -> None:
    """Set requires_grad of the parameters with a chosen name; at least one must have it."""
    names = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if chosen(name):
            parameter.requires_grad_(trained)
        else:
            names.append(name)
    if len(names) == len(list(model.named_parameters(remove_duplicate=False))):
        wanted = option.partition(" ")[2]
        near = nearest(wanted, names, count=3) or names[:3]
        raise ModelError(f"{option} names no parameter of the model. Its parameters are called like {', '.join(near)}.")


def _starts_with(prefix: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(prefix)


def _contains(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda name: pattern.search(name) is not None


def _compiled(pattern: str, option: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(f"{option} is no regular expression: {error} (got {pattern!r}).") from None
