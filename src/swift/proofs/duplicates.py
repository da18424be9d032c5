"""This file knows which samples are the same, within a set and between two, by what the model would see of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b

import numpy
from numpy.typing import NDArray

from swift.proofs.report import Proof, counted, share

TOLERATED = 0.01
"""Share of a set that may be repetitions before the proof fails."""
SHOWN = 3


def digest(tokens: NDArray[numpy.int32], learnt: NDArray[numpy.bool_]) -> bytes:
    """The same for two samples exactly when their tokens, and which of them are learnt, are the same."""
    state = blake2b(tokens.tobytes(), digest_size=16)
    state.update(learnt.tobytes())
    return state.digest()


def repetitions(digests: Iterable[tuple[int, bytes]]) -> list[tuple[int, int]]:
    """(the first, the later one) of every sample that was there before; samples are given by number and digest."""
    seen: dict[bytes, int] = {}
    found = []
    for number, value in digests:
        first = seen.setdefault(value, number)
        if first != number:
            found.append((first, number))
    return found


def overlap(train: Iterable[tuple[int, bytes]], val: Iterable[tuple[int, bytes]]) -> list[tuple[int, int]]:
    """(in train, in validation) of every sample to validate on that is trained on as well."""
    there: dict[bytes, int] = {}
    for number, value in train:
        there.setdefault(value, number)
    return [(there[value], number) for number, value in val if value in there]


def prove_unique(pairs: Sequence[tuple[int, int]], count: int, place: Callable[[int], str]) -> Proof:
    """That the `count` samples to train on are different ones. `place` names a sample."""
    return Proof(
        claim="training rows differ from each other",
        holds=len(pairs) <= TOLERATED * count,
        found=f"{counted(len(pairs), 'repetition')} in {counted(count, 'sample')} ({share(len(pairs), count)})",
        advice="Remove the repetitions: what is there twice is learnt twice. To repeat a data set on purpose, "
        "write --dataset FILE#N with a number larger than its rows.",
        examples=tuple(f"{place(later)} repeats {place(first)}" for first, later in pairs[:SHOWN]),
    )


def prove_apart(pairs: Sequence[tuple[int, int]], count: int, place: Callable[[int], str]) -> Proof:
    """That none of the `count` samples to validate on is trained on. `place` names a sample."""
    return Proof(
        claim="no validation row is trained on",
        holds=not pairs,
        found=f"{len(pairs):,} of {counted(count, 'validation sample')} ({share(len(pairs), count)}) stand in the training data",
        advice="Take them out of one of the two: the evaluation would measure memory.",
        examples=tuple(f"{place(held)} is {place(learnt)}" for learnt, held in pairs[:SHOWN]),
    )
