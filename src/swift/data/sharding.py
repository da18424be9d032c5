"""This file knows in which order the rows of an epoch are read, the same on every process and after every resume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

_BATCHES_PER_GROUP = 50


class EpochSampler(Sampler[int]):
    """All indices of a data set, once per epoch, in an order that depends on the seed and the epoch alone.

    The order is independent of the number of processes and of the global random state: a run resumed in epoch 3, or
    continued on more processes, reads what the first run would have read. The sampler gives out every index; it is the
    batch sampler of accelerate that deals whole batches to the processes, repeating rows from the front where the last
    round is short. So no row is ever left out.

    length: the number of rows.
    seed: the seed of epoch 0; epoch e uses seed + e.
    shuffle: False reads the rows in their own order in every epoch.
    tells_epoch: whether an index carries its epoch, as `epoch * length + row`, for sets that draw anew in each.
    """

    def __init__(self, length: int, seed: int, shuffle: bool = True, *, tells_epoch: bool = False) -> None:
        self.length = length
        self.seed = seed
        self.shuffle = shuffle
        self.tells_epoch = tells_epoch
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives; transformers and accelerate call this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * self.length if self.tells_epoch else 0
        return (first + row for row in self.order())

    def order(self) -> Sequence[int]:
        """The rows of the epoch, in order."""
        if not self.shuffle:
            return range(self.length)
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return torch.randperm(self.length, generator=generator).tolist()


class LengthGroupedSampler(EpochSampler):
    """As EpochSampler, but rows of like length stand together (`--group_by_length`).

    lengths: the number of tokens of every row; of a pair, the longer side.
    batch: the rows that are computed at the same time on all processes together.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int, *, tells_epoch: bool = False) -> None:
        super().__init__(len(lengths), seed, tells_epoch=tells_epoch)
        self.lengths = lengths
        self.batch = batch

    def order(self) -> Sequence[int]:
        """The rows of the epoch, in order."""
        return grouped_by_length(self.lengths, self.batch, self.seed + self.epoch)


def grouped_by_length(lengths: Sequence[int], batch: int, seed: int) -> list[int]:
    """All indices in a random order in which every `batch` consecutive ones have about the same length.

    The rows are shuffled, cut into groups of 50 batches, and sorted by length within each group; then its batches are
    shuffled again. A batch is what all processes compute at the same time, so none of them waits for another's long
    row. The batch with the longest row comes first: when memory does not suffice, that shows at once. The batch that
    may be incomplete comes last.

    Unlike in transformers' grouping, batches within a group do not descend in length: the length of a batch says
    nothing about when in the epoch it comes.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    size = batch * _BATCHES_PER_GROUP
    batches: list[list[int]] = []
    short: list[int] = []
    for start in range(0, len(shuffled), size):
        group = shuffled[start : start + size]
        whole = len(group) - len(group) % batch
        short = group[whole:]
        ordered = sorted(group[:whole], key=lambda row: lengths[row], reverse=True)
        cut = [ordered[first : first + batch] for first in range(0, whole, batch)]
        batches += [cut[place] for place in torch.randperm(len(cut), generator=generator).tolist()]
    if batches:
        longest = max(range(len(batches)), key=lambda place: lengths[batches[place][0]])
        batches.insert(0, batches.pop(longest))
    return [row for rows in [*batches, short] for row in rows]
