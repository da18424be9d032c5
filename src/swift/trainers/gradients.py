"""This file knows the gradients of the training loss before any training, which LoRA-GA begins with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from torch import Tensor, nn

from swift.chat.render import Sample
from swift.core.errors import DataError
from swift.core.labels import IGNORED
from swift.core.logs import get_logger
from swift.data.sharding import EpochSampler
from swift.data.stream import Dealer, Share, Stream
from swift.losses.objective import Objective
from swift.options.tuner_variants import TunerVariantOptions
from swift.trainers.scoring import choose_way

Collate = Callable[[Any], dict[str, Any]]


def first_batches(samples: Any, collate: Collate, options: TunerVariantOptions, seed: int) -> list[dict[str, Any]]:
    """`--lora_ga_iters` batches of `--lora_ga_batch_size` rows drawn at random, cut to `--lora_ga_max_length` tokens.

    samples: a set of samples, or a `Stream` of them, which has an order of its own. Raises DataError when nothing that
    is learnt is left.
    """
    size, count, length = options.lora_ga_batch_size, options.lora_ga_iters, options.lora_ga_max_length
    if isinstance(samples, Stream):
        dealer = Dealer(samples, Share(size, 1, 0, 1))
        groups = [dealer.batch(0) for _ in range(count)]
    else:
        drawn = [samples[place] for place in islice(EpochSampler(len(samples), seed, True), size * count)]
        groups = [drawn[start : start + size] for start in range(0, len(drawn), size)]
        if len(drawn) < size * count:
            get_logger().warning(
                "LoRA-GA looks at all %d rows: --lora_ga_iters %d times --lora_ga_batch_size %d are more than there are",
                len(drawn), count, size,
            )  # fmt: skip
    batches = [collate([cut(sample, length) for sample in flat(group)]) for group in groups if group]
    if not any((batch["labels"] != IGNORED).any() for batch in batches):
        raise DataError(
            f"--lora_ga_max_length {length} cuts off all that is learnt of the rows that LoRA-GA looks at. Raise it, or "
            f"--lora_ga_iters."
        )
    return batches


def flat(items: Iterable[Any]) -> list[Sample]:
    """The samples of items, each of which is a sample or a pack of them."""
    return [sample for item in items for sample in (item if isinstance(item, list) else [item])]


def cut(sample: Sample, length: int) -> Sample:
    """The beginning of a sample."""
    weights = None if sample.weights is None else sample.weights[:length]
    return replace(sample, input_ids=sample.input_ids[:length], labels=sample.labels[:length], weights=weights)


def backward_on(batches: Sequence[dict[str, Any]]) -> Callable[[nn.Module], None]:
    """What computes the gradients of the loss on these batches, each the mean over its learnt tokens, given a model."""

    def run(model: nn.Module) -> None:
        device = next(model.parameters()).device
        for batch in batches:
            there = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
            loss(model, there).backward()

    return run


def loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """The mean loss of a batch over its learnt tokens, weighted as in training."""
    scores, _ = choose_way(model, None, router=False).run(model, batch, Objective())
    return scores.total / scores.tokens.sum().clamp(min=1)
