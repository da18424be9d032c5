"""This file knows how the states of a sequence's tokens become one vector: of padded rows, and of rows end to end.

Axes: B rows, T tokens of a row, N sequences, S tokens of all sequences, E channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from swift.parallel.exchange import summed, values_at
from swift.parallel.mesh import Mesh

Pooling = Literal["last", "first", "mean"]


def last_positions(is_valid_BT: Tensor) -> Tensor:
    """The position of the last valid token of each row, whichever side is padded, [B]; the last one where none is."""
    length = is_valid_BT.shape[1]
    from_end_B = is_valid_BT.flip(1).to(torch.int32).argmax(1)  # the first maximum, 0 where there is none
    return length - 1 - from_end_B


def last_positions_flat(is_valid_S: Tensor, borders: Tensor) -> Tensor:
    """The position of the last valid token of each sequence, [N]; the last one of a sequence where none is.

    borders: where each sequence begins and the last one ends, N + 1 numbers.
    """
    places = torch.arange(len(is_valid_S), device=is_valid_S.device)
    lengths = borders.diff().long()
    sequence_S = torch.repeat_interleave(torch.arange(len(lengths), device=places.device), lengths)
    found = torch.full_like(lengths, -1).scatter_reduce(
        0, sequence_S[is_valid_S], places[is_valid_S], "amax", include_self=True
    )
    return torch.where(found < 0, borders[1:].long() - 1, found)


def pool(states_BTE: Tensor, is_valid_BT: Tensor, how: Pooling) -> Tensor:
    """One vector for each padded row, [B, E]: of its last or first valid token, or the mean of all valid ones."""
    return PADDED[how](states_BTE, is_valid_BT)


def pool_flat(states_SE: Tensor, borders: Tensor, how: Pooling, mesh: Mesh | None = None) -> Tensor:
    """One vector for each sequence of a row, [N, E]; `borders` as in `last_positions_flat`.

    mesh: the processes that share the row; the states are then those of the tokens that this one holds.
    """
    if how == "last":
        return take(states_SE, borders[1:].long() - 1, mesh)
    if how == "first":
        return take(states_SE, borders[:-1].long(), mesh)
    lengths = borders.diff().long()
    sequence_S = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    if mesh is not None:
        sequence_S = sequence_S[mesh.own(len(sequence_S)).to(sequence_S.device)]
    sums_NE = states_SE.new_zeros(len(lengths), states_SE.shape[1]).index_add(0, sequence_S, states_SE)
    return (sums_NE if mesh is None else summed(sums_NE, mesh.group)) / lengths[:, None]


def take(values_SX: Tensor, places_N: Tensor, mesh: Mesh | None) -> Tensor:
    """The values of some tokens of a row, by their places in it, [N, ...]; `mesh` as in `pool_flat`."""
    return values_SX[places_N] if mesh is None else values_at(values_SX, places_N, mesh)


def _last(states_BTE: Tensor, is_valid_BT: Tensor) -> Tensor:
    return states_BTE[torch.arange(len(states_BTE), device=states_BTE.device), last_positions(is_valid_BT)]


def _first(states_BTE: Tensor, is_valid_BT: Tensor) -> Tensor:
    first_B = is_valid_BT.to(torch.int32).argmax(1)
    return states_BTE[torch.arange(len(states_BTE), device=states_BTE.device), first_B]


def _mean(states_BTE: Tensor, is_valid_BT: Tensor) -> Tensor:
    weights_BT1 = is_valid_BT.to(states_BTE.dtype)[..., None]
    return (states_BTE * weights_BT1).sum(1) / weights_BT1.sum(1).clamp(min=1)


PADDED: dict[Pooling, Callable[[Tensor, Tensor], Tensor]] = {"last": _last, "first": _first, "mean": _mean}
"""Pooling -> how padded rows are pooled."""
