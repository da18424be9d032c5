"""This file knows what is left of a sample that is too long."""

from __future__ import annotations

from typing import Literal

from swift.chat.render import Sample
from swift.core.labels import IGNORED

Strategy = Literal["delete", "left", "right", "split"]


def truncate(sample: Sample, max_length: int, strategy: Strategy) -> list[Sample]:
    """What `strategy` leaves of a sample of more than `max_length` tokens; a shorter one stays as it is.

    delete: nothing.
    left: the last `max_length` tokens; the left is cut off.
    right: the first `max_length` tokens; the right is cut off.
    split: consecutive pieces of `max_length` tokens without overlap, the last one as long as it happens to be.

    The first token of whatever is left is not learnt: what it followed is gone.
    """
    length = len(sample)
    if length <= max_length:
        return [sample]
    if strategy == "delete":
        return []
    if strategy == "left":
        return [_cut(sample, length - max_length, length)]
    if strategy == "right":
        return [_cut(sample, 0, max_length)]
    return [_cut(sample, start, min(start + max_length, length)) for start in range(0, length, max_length)]


def _cut(sample: Sample, start: int, end: int) -> Sample:
    weights = sample.weights
    return Sample(
        input_ids=sample.input_ids[start:end],
        labels=[IGNORED, *sample.labels[start + 1 : end]],
        weights=None if weights is None else [0.0, *weights[start + 1 : end]],
        extra=sample.extra,
    )
