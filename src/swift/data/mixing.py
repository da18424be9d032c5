"""This file knows which rows of which data set are used, and in which order: sampling, splitting, combining, shuffling.

It is arithmetic on indices. Every random choice comes from one `random.Random`, whose sequence is the same on every
machine and in every process; data sets draw from it in the order in which they were given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from swift.core.errors import DataError

Stopping = Literal["first_exhausted", "all_exhausted"]


@dataclass(frozen=True)
class Parts:
    """Indices of the rows of one data set that are trained on and that are held back; they share none."""

    train: list[int]
    val: list[int]


def sample(rows: Sequence[int], count: int | None, random: Random | None) -> list[int]:
    """`count` of `rows`; None takes all of them as they stand.

    Fewer than there are: the first of a random permutation, or the first when `random` is None. More: all rows
    count // len times over, then the remainder chosen as above. So no row is used twice before all are used once.
    """
    if count is None:
        return list(rows)
    assert rows or count == 0, "nothing to sample from"
    times, rest = divmod(count, len(rows)) if rows else (0, 0)
    chosen = list(rows)
    if random is not None and rest:
        random.shuffle(chosen)
    return list(rows) * times + chosen[:rest]


def split(length: int, count: int | None, ratio: float, random: Random | None) -> Parts:
    """`count` of `length` rows, a share `ratio` of them held back for validation, at least one row if ratio > 0.

    The held-back rows are distinct and never trained on; the rest of `count` is sampled from what remains, more than
    once where `count` is larger than the data set. Without `random` the last rows are held back. Ratio 1 holds back
    everything. Raises DataError when nothing would remain to train on, or when ratio 1 asks for more rows than exist.
    """
    wanted = length if count is None else count
    rows = list(range(length))
    if ratio == 0:
        return Parts(sample(rows, count, random), [])
    if ratio == 1:
        if wanted > length:
            raise DataError(
                f"there are {length} rows, and #{wanted} asks for more; rows to validate on are not repeated."
            )
        return Parts([], sample(rows, count, random))
    held = max(int(min(length, wanted) * ratio), 1)
    if held >= wanted or held >= length:
        raise DataError(
            f"--split_dataset_ratio {ratio} holds back {held} of {min(length, wanted)} rows, and none remains to "
            "train on. Give more rows or a smaller ratio."
        )
    if random is not None:
        random.shuffle(rows)
        val, rest = rows[:held], rows[held:]
    else:
        rest, val = rows[: length - held], rows[length - held :]
    # What remains is in random order already where it shall be: its beginning is a random choice.
    return Parts(sample(rest, wanted - held, None), val)


def concatenate(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(data set, position in it) of all rows, one data set behind the other."""
    return [(dataset, position) for dataset, length in enumerate(lengths) for position in range(length)]


def check_probabilities(probabilities: Sequence[float], count: int) -> None:
    """Raise DataError when there is not one positive probability for each of `count` data sets, 1 in sum."""
    if len(probabilities) != count:
        raise DataError(
            f"--interleave_prob needs one probability per data set: {len(probabilities)} for {count} data sets."
        )
    if min(probabilities) <= 0 or abs(sum(probabilities) - 1) > 1e-6:
        raise DataError(f"--interleave_prob needs positive probabilities that sum to 1 (got {list(probabilities)}).")


def interleave(
    lengths: Sequence[int], probabilities: Sequence[float], stopping: Stopping, random: Random
) -> list[tuple[int, int]]:
    """(data set, position in it), each next data set drawn with its probability and read on where it stood.

    first_exhausted: ends with the last row of whichever data set ends first.
    all_exhausted: a data set that ended begins again; ends when each has ended once.

    Raises DataError when there is not one positive probability per data set or they do not sum to 1.
    """
    check_probabilities(probabilities, len(lengths))
    assert min(lengths) > 0, "an empty data set cannot be interleaved"
    enough = 1 if stopping == "first_exhausted" else len(lengths)
    datasets = range(len(lengths))
    places, ended, order = [0] * len(lengths), set(), []
    while len(ended) < enough:
        [dataset] = random.choices(datasets, probabilities)
        order.append((dataset, places[dataset]))
        places[dataset] = (places[dataset] + 1) % lengths[dataset]
        if places[dataset] == 0:
            ended.add(dataset)
    return order
