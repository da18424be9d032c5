"""This file knows how values of tokens become values of sequences.

Axes: N learnt tokens of a batch, S sequences of the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sum_by_sequence(values_N: Tensor, sequence_N: Tensor, count: int) -> Tensor:
    """The sum of the tokens' values in each of `count` sequences, [S]; `sequence_N` says whose token each is.

    Values may have further axes, which stay.
    """
    return values_N.new_zeros(count, *values_N.shape[1:]).index_add(0, sequence_N, values_N)


def sequence_of_packed(cu_seq_lens: Tensor) -> Tensor:
    """For each token of a row of sequences end to end, the number of its sequence, [T].

    `cu_seq_lens` are the cumulative lengths, starting with 0: S + 1 of them.
    """
    lengths = cu_seq_lens.diff()
    return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
