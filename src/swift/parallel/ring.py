"""This file knows causal attention of a row whose tokens lie on several processes, which pass keys and values on.

Axes: K key-value heads, G query heads for each of them, Q queries of this process, S keys at hand, D channels (those of
values may be other than those of queries and keys).

Each process keeps its queries. Keys and values go round, and what each share of them gives is merged by the logarithm of
the sum of its exponentials (Liu et al. 2023, arXiv 2310.01889, section 3; Milakov and Gimelshein 2018, arXiv 1805.02867).
Scores are made for a block of queries at a time, and again in the backward pass: memory grows with a share of the row,
and not with its square.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from swift.parallel.exchange import passed_on
from swift.parallel.mesh import Mesh

_QUERIES_AT_ONCE = 512


@dataclass(frozen=True)
class Sight:
    """Who sees whom in a row of sequences: each token itself and those before it in its sequence.

    borders: where the sequences begin and the last one ends, [sequences + 1]. window: how many tokens a token sees at
    most, itself included; None for all.
    """

    borders: Tensor
    window: int | None = None

    def visible(self, queries_Q: Tensor, keys_S: Tensor) -> Tensor:
        """Whether a query, by its place in the row, sees a key: [Q, S]."""
        whose_Q = torch.searchsorted(self.borders, queries_Q, right=True)
        whose_S = torch.searchsorted(self.borders, keys_S, right=True)
        age_QS = queries_Q[:, None] - keys_S
        seen_QS = (whose_Q[:, None] == whose_S) & (age_QS >= 0)
        return seen_QS if self.window is None else seen_QS & (age_QS < self.window)


class _Ring(Function):
    """Attention of the queries of this process to the keys of all processes of its ring."""

    @staticmethod
    def forward(ctx: Any, query_KGQD: Tensor, key_KSD: Tensor, value_KSD: Tensor, mesh: Mesh, sight: Sight,  # type: ignore[override]  # torch says *args
                scaling: float) -> Tensor:  # fmt: skip
        length = key_KSD.shape[1] * mesh.shape.ring
        places_Q = mesh.part(mesh.place_in_ring, length).to(query_KGQD.device)
        output_KGQD = value_KSD.new_zeros((*query_KGQD.shape[:-1], value_KSD.shape[-1]), dtype=torch.float32)
        total_KGQ = output_KGQD.new_full(query_KGQD.shape[:-1], -math.inf)
        for (key, value), places_S in _round(mesh, [key_KSD, value_KSD], length):
            for block in torch.arange(len(places_Q)).split(_QUERIES_AT_ONCE):
                seen = sight.visible(places_Q[block], places_S)
                if seen.any():
                    given, weight = _attended(query_KGQD[:, :, block], key, value, seen, scaling)
                    merged = torch.logaddexp(total_KGQ[:, :, block], weight)
                    kept = _share(total_KGQ[:, :, block], merged)
                    output_KGQD[:, :, block] = output_KGQD[:, :, block] * kept + given * _share(weight, merged)
                    total_KGQ[:, :, block] = merged
        ctx.save_for_backward(query_KGQD, key_KSD, value_KSD, output_KGQD, total_KGQ)
        ctx.setting = (mesh, sight, scaling)
        return output_KGQD.to(query_KGQD.dtype)

    @staticmethod
    def backward(ctx: Any, gradient_KGQD: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # torch says *args
        query_KGQD, key_KSD, value_KSD, output_KGQD, total_KGQ = ctx.saved_tensors
        mesh, sight, scaling = ctx.setting
        length = key_KSD.shape[1] * mesh.shape.ring
        places_Q = mesh.part(mesh.place_in_ring, length).to(query_KGQD.device)
        of_output = gradient_KGQD.float()
        delta_KGQ = (of_output * output_KGQD).sum(-1)
        of_query = torch.zeros_like(query_KGQD, dtype=torch.float32)
        of_key, of_value = (torch.zeros_like(each, dtype=torch.float32) for each in (key_KSD, value_KSD))
        for (key, value), places_S in _round(mesh, [key_KSD, value_KSD], length):
            for block in torch.arange(len(places_Q)).split(_QUERIES_AT_ONCE):
                seen = sight.visible(places_Q[block], places_S)
                if not seen.any():
                    continue
                queries = query_KGQD[:, :, block].float()
                scores = _scores(queries, key, seen, scaling)
                weights_KGQS = torch.exp(scores - total_KGQ[:, :, block, None])
                of_value += torch.einsum("kgqs,kgqd->ksd", weights_KGQS, of_output[:, :, block])
                of_weights = torch.einsum("kgqd,ksd->kgqs", of_output[:, :, block], value.float())
                of_scores = weights_KGQS * (of_weights - delta_KGQ[:, :, block, None]) * scaling
                of_query[:, :, block] += torch.einsum("kgqs,ksd->kgqd", of_scores, key.float())
                of_key += torch.einsum("kgqs,kgqd->ksd", of_scores, queries)
            of_key, of_value = passed_on([of_key, of_value], mesh.ring)  # with their keys, and home in the end
        types = query_KGQD.dtype, key_KSD.dtype, value_KSD.dtype
        made = (each.to(kind) for each, kind in zip((of_query, of_key, of_value), types, strict=True))
        return (*made, None, None, None)


def ring_attention(query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, mesh: Mesh, sight: Sight,
                   scaling: float) -> Tensor:  # fmt: skip
    """Attention of one row, of which this process has a part: [1, H, T / R, D] each -> [1, T / R, H, D].

    The tokens are those of `mesh.part`, in its order.
    """
    key_KSD, value_KSD = key_BHTD[0], value_BHTD[0]
    query_KGQD = query_BHTD[0].unflatten(0, (len(key_KSD), -1))
    output_KGQD = _Ring.apply(query_KGQD, key_KSD, value_KSD, mesh, sight, scaling)
    return output_KGQD.flatten(0, 1).transpose(0, 1)[None]  # type: ignore[no-any-return,union-attr]  # apply gives what forward gives


def _round(mesh: Mesh, tensors: list[Tensor], length: int) -> Iterator[tuple[list[Tensor], Tensor]]:
    """The tensors of every process of the ring, this one's first, with the places of their tokens in the row."""
    for step in range(mesh.shape.ring):
        source = (mesh.place_in_ring - step) % mesh.shape.ring
        yield tensors, mesh.part(source, length).to(tensors[0].device)
        if step < mesh.shape.ring - 1:
            tensors = passed_on(tensors, mesh.ring)


def _attended(query_KGQD: Tensor, key_KSD: Tensor, value_KSD: Tensor, seen_QS: Tensor,
              scaling: float) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention to these keys alone, and the logarithm of the sum of its exponentials, -inf where nothing is seen."""
    scores_KGQS = _scores(query_KGQD.float(), key_KSD, seen_QS, scaling)
    weight_KGQ = scores_KGQS.logsumexp(-1)
    weights_KGQS = _share(scores_KGQS, weight_KGQ, axis=False)
    return torch.einsum("kgqs,ksd->kgqd", weights_KGQS, value_KSD.float()), weight_KGQ


def _scores(query_KGQD: Tensor, key_KSD: Tensor, seen_QS: Tensor, scaling: float) -> Tensor:
    scores_KGQS = torch.einsum("kgqd,ksd->kgqs", query_KGQD, key_KSD.float()) * scaling
    return scores_KGQS.masked_fill(~seen_QS, -math.inf)


def _share(part: Tensor, total: Tensor, *, axis: bool = True) -> Tensor:
    """exp(part - total), and 0 where the total is nothing; with one more axis at the end, of `part` or of `total`."""
    finite = total.masked_fill(total == -math.inf, 0.0)
    return torch.exp(part - finite)[..., None] if axis else torch.exp(part - finite[..., None])
