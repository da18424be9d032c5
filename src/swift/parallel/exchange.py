"""This file knows how tensors travel between the processes that share a row, and how their gradients travel back.

What all of them end up with, each of them computes a loss from. A gradient here is that of the sum of these losses, and
the mean over processes is taken of it, as of the gradients of weights.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.distributed import ProcessGroup

from swift.parallel.mesh import Mesh


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


class _Sum(Function):
    """What the processes of a group have, added up; each of them has the sum."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: ProcessGroup) -> Tensor:  # type: ignore[override]  # torch says *args
        ctx.group = group
        return _summed(own, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]  # torch says *args
        return _summed(gradient, ctx.group), None


def _summed(own: Tensor, group: ProcessGroup) -> Tensor:
    total = own.contiguous().clone()
    dist.all_reduce(total, group=group)
    return total


class _Join(Function):
    """The values of all tokens of a row, from those of the tokens of each process."""

    @staticmethod
    def forward(ctx: Any, own_TX: Tensor, mesh: Mesh) -> Tensor:  # type: ignore[override]  # torch says *args
        ctx.mesh = mesh
        pieces = [torch.empty_like(own_TX) for _ in range(mesh.shape.size)]
        dist.all_gather(pieces, own_TX.contiguous(), group=mesh.group)
        by_process = torch.cat(pieces)
        return by_process[mesh.order(len(by_process)).argsort().to(own_TX.device)]

    @staticmethod
    def backward(ctx: Any, gradient_TX: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]  # torch says *args
        mesh: Mesh = ctx.mesh
        sent = gradient_TX[mesh.order(len(gradient_TX)).to(gradient_TX.device)].contiguous()
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=mesh.group)
        return torch.stack(received.chunk(mesh.shape.size)).sum(0), None


def summed(own: Tensor, group: ProcessGroup) -> Tensor:
    """The sum of what the processes of a group have, on each of them."""
    return _Sum.apply(own, group)


def joined(own_TX: Tensor, mesh: Mesh) -> Tensor:
    """Values of the tokens that this process holds, [T / P, ...] -> those of the whole row in its order, [T, ...]."""
    return _Join.apply(own_TX, mesh)


def values_at(own_TX: Tensor, places_N: Tensor, mesh: Mesh) -> Tensor:
    """The values of some tokens of a row, by their places in it: [N, ...], on each process that shares it.

    own_TX: those of the tokens that this process holds, [T / P, ...].
    """
    own = mesh.own(len(own_TX) * mesh.shape.size).to(own_TX.device)
    where_NT = places_N[:, None] == own
    chosen, taken = where_NT.nonzero(as_tuple=True)
    found_NX = own_TX.new_zeros(len(places_N), *own_TX.shape[1:]).index_put((chosen,), own_TX[taken])
    return summed(found_NX, mesh.group)


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
