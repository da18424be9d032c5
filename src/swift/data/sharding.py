"""This file knows in which order the rows of an epoch are read, the same on every process and after every resume."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class EpochSampler(Sampler[int]):
    """All indices of a data set, once per epoch, in an order that depends on the seed and the epoch alone.

    The order is independent of the number of processes and of the global random state: a run resumed in epoch 3, or
    continued on more processes, reads what the first run would have read. The sampler gives out every index; it is the
    batch sampler of accelerate that deals whole batches to the processes, repeating rows from the front where the last
    round is short. So no row is ever left out.

    length: the number of rows.
    seed: the seed of epoch 0; epoch e uses seed + e.
    shuffle: False reads the rows in their own order in every epoch.
    """

    def __init__(self, length: int, seed: int, shuffle: bool = True) -> None:
        self.length = length
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives; transformers and accelerate call this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        if not self.shuffle:
            return iter(range(self.length))
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(torch.randperm(self.length, generator=generator).tolist())
