"""This file knows the samples of a row that stay together: an anchor with its documents, a query with each of them.

What a reranker is given of a row is drawn anew in every epoch. The draw depends on the seed, the row and the epoch
alone, so that a resumed run draws what the first one would have drawn, in whatever process. The epoch comes with the
index: `epoch * length + row`, as `EpochSampler` counts on request; an index below the length belongs to epoch 0.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray
from torch.utils.data import Dataset

from swift.chat.render import Sample
from swift.data.samples import Store


@dataclass(frozen=True)
class Draw:
    """Which documents of a row a reranker is given at a time: some that match, each followed by some that do not.

    positives, negatives: the most of them; `negatives` for each that matches.
    """

    positives: int
    negatives: int
    seed: int

    def __call__(self, samples: Sequence[Sample], row: Sequence[int], epoch: int) -> list[Sample]:
        """The documents of a row in one epoch; `row` is any numbers that tell it from others.

        All of a kind keep their order where there are no more than wanted. A row without a match gives documents that
        do not match.
        """
        chance = random.Random(repr((self.seed, epoch, *row)))
        matching = [sample for sample in samples if sample.extra["label"]]
        others = [sample for sample in samples if not sample.extra["label"]]
        if not matching:
            return _some(others, self.negatives, chance)
        drawn = _some(matching, self.positives, chance)
        return [each for match in drawn for each in (match, *_some(others, self.negatives, chance))]

    def most_tokens(self, lengths: Sequence[int], labels: Sequence[float]) -> int:
        """The tokens of the longest that may be drawn of a row."""
        matching = sorted((n for n, label in zip(lengths, labels, strict=True) if label), reverse=True)
        others = sorted((n for n, label in zip(lengths, labels, strict=True) if not label), reverse=True)
        drawn = matching[: self.positives]
        return sum(drawn) + max(len(drawn), 1) * sum(others[: self.negatives])


class GroupSet(Dataset[list[Sample]]):
    """The samples of rows, row by row, in the order in which rows are used.

    starts, counts: where the samples of each row begin in the store, and how many there are.
    draw: what is given of a row; None gives all of it.
    """

    def __init__(self, store: Store, starts: NDArray[numpy.int64], counts: NDArray[numpy.int64],
                 draw: Draw | None = None) -> None:  # fmt: skip
        self.store = store
        self.starts = starts
        self.counts = counts
        self.draw = draw

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> list[Sample]:
        epoch, row = divmod(index, len(self))
        samples = self._row(row)
        return samples if self.draw is None else self.draw(samples, (row,), epoch)

    @property
    def lengths(self) -> list[int]:
        """The tokens of the samples of every row, in order; of drawn ones, the most there can be."""
        lengths = self.store.lengths
        if self.draw is None:
            borders = numpy.concatenate([[0], numpy.cumsum(lengths)])
            return (borders[self.starts + self.counts] - borders[self.starts]).tolist()
        return [
            self.draw.most_tokens([len(sample) for sample in samples], [sample.extra["label"] for sample in samples])
            for samples in map(self._row, range(len(self)))
        ]

    def describe(self) -> str:
        """Rows, samples, and the lengths of the samples, in one line."""
        within = numpy.arange(self.counts.sum()) - numpy.repeat(numpy.cumsum(self.counts) - self.counts, self.counts)
        lengths = self.store.lengths[numpy.repeat(self.starts, self.counts) + within]
        return (
            f"{lengths.mean():.1f}±{lengths.std():.1f} tokens, min={lengths.min()}, max={lengths.max()}, "
            f"size={len(self)} rows of {len(lengths)} samples"
        )

    def _row(self, row: int) -> list[Sample]:
        start = int(self.starts[row])
        return [self.store.sample(index) for index in range(start, start + int(self.counts[row]))]


def _some(samples: Sequence[Sample], count: int, chance: random.Random) -> list[Sample]:
    if len(samples) <= count:
        return list(samples)
    return [samples[place] for place in sorted(chance.sample(range(len(samples)), count))]
