"""This file knows what an adapter is made from: the options of tuning, and what is known of the run it is made for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from swift.options.tuner import TunerOptions
from swift.options.tuner_variants import TunerVariantOptions


@dataclass(frozen=True)
class Run:
    """What some adapters must know of the training they are made for.

    new_token_ids: tokens whose rows of the embedding and of the output layer are trained beside the adapter.
    total_steps: optimizer steps of the whole training; None when there is none, as in inference.
    backward: computes gradients of the training loss on rows of the training data, given the model; None when there
    are no rows.
    stored: reads a weight of the checkpoint as it was before it was quantized, by its name; None when there is none.
    values: all options of the command by name, for tuners of one's own.
    """

    new_token_ids: Sequence[int] = ()
    total_steps: int | None = None
    backward: Callable[[nn.Module], None] | None = None
    stored: Callable[[str], Tensor] | None = None
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """An adapter that is wanted."""

    options: TunerOptions
    variants: TunerVariantOptions = field(default_factory=TunerVariantOptions)
    run: Run = field(default_factory=Run)
