"""This file knows how tensors travel between the processes that share a row, and how their gradients travel back."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.distributed import ProcessGroup


class _AllToAll(Function):
    """Divide one axis among the processes of a group, and gather another one from them."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, divided: int, gathered: int, group: ProcessGroup) -> Tensor:  # type: ignore[override]  # torch says *args
        ctx.axes, ctx.group = (divided, gathered), group
        return _exchanged(given, divided, gathered, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]  # torch says *args
        divided, gathered = ctx.axes
        return _exchanged(gradient, gathered, divided, ctx.group), None, None, None


def _exchanged(given: Tensor, divided: int, gathered: int, group: ProcessGroup) -> Tensor:
    sent = torch.stack(given.chunk(dist.get_world_size(group), divided)).contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    return torch.cat(list(received), dim=gathered)


def heads_for_tokens(states_BHTD: Tensor, group: ProcessGroup) -> Tensor:
    """A share of the heads for all tokens of the group, in place of all heads for a share of the tokens.

    [B, H, T, D] -> [B, H / U, T U, D], tokens in the order of the ranks (Ulysses, arXiv 2309.14509, section 3.1).
    """
    return _AllToAll.apply(states_BHTD, 1, 2, group)


def tokens_for_heads(states_BTHD: Tensor, group: ProcessGroup) -> Tensor:
    """The way back of what attention returns: [B, T U, H / U, D] -> [B, T, H, D]."""
    return _AllToAll.apply(states_BTHD, 1, 2, group)


def passed_on(tensors: list[Tensor], group: ProcessGroup) -> list[Tensor]:
    """Send tensors to the next process of a ring; those of the one before. Without gradient."""
    ranks = dist.get_process_group_ranks(group)
    place = ranks.index(dist.get_rank())
    after, before = ranks[(place + 1) % len(ranks)], ranks[place - 1]
    received = [torch.empty_like(tensor) for tensor in tensors]
    sending = [dist.P2POp(dist.isend, tensor.contiguous(), after, group) for tensor in tensors]
    receiving = [dist.P2POp(dist.irecv, tensor, before, group) for tensor in received]
    for request in dist.batch_isend_irecv([*sending, *receiving]):
        request.wait()
    return received
