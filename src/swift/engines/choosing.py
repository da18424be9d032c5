"""This file knows how the next token of every row is chosen: penalties, structures, cuts, a draw.

Axes: A rows, V vocabulary, K likeliest tokens, in order. Rows may differ in everything; what a row gets depends on its own
logits, its own settings and its own random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from swift.engines.rows import Choice, Row
from swift.engines.structures import allowed

LADDER = (64, 256, 1024, 4096)
"""How many of the likeliest tokens are sorted, until the cuts of a row lie within; beyond, all are."""


def choose(logits_AV: Tensor, rows: Sequence[Row]) -> list[int]:
    """One token for each row, from its raw float32 logits."""
    scores_AV = adjusted(logits_AV, rows)
    chosen_A = scores_AV.argmax(dim=-1)
    drawn = [place for place, row in enumerate(rows) if row.choice.samples]
    if drawn:
        where = torch.tensor(drawn, device=scores_AV.device)
        sampled = scores_AV if len(drawn) == len(rows) else scores_AV[where]
        chosen_A[where] = draw(sampled, [rows[place] for place in drawn])
    return chosen_A.tolist()


# ------------------------------------------------------------------------------------------------------------- scores


def adjusted(logits_AV: Tensor, rows: Sequence[Row]) -> Tensor:
    """Scores after penalties, and -inf where a structure allows no token. The logits themselves stay as they are."""
    touched = [
        place
        for place, row in enumerate(rows)
        if row.choice.counts or row.matcher is not None or row.processors is not None
    ]
    if not touched:
        return logits_AV
    scores_AV = logits_AV.clone()
    for place in touched:
        row, scores_V = rows[place], scores_AV[place]
        if row.processors is not None:
            ids_1T = torch.tensor([row.said], device=scores_V.device)
            scores_V.copy_(row.processors(ids_1T, scores_V[None])[0])
        if row.choice.counts:
            penalize(scores_V, row)
        if row.matcher is not None:
            scores_V.masked_fill_(~allowed(row.matcher, len(scores_V)).to(scores_V.device), -torch.inf)
    return scores_AV


def penalize(scores_V: Tensor, row: Row) -> None:
    """Make what was said less likely, in place.

    The repetition penalty divides positive and multiplies negative scores of all tokens said (CTRL, arXiv 1909.05858,
    section 4.1); the others take `presence + frequency * count` from the scores of tokens of the reply (OpenAI's API).
    """
    choice = row.choice
    if choice.repetition_penalty != 1.0:
        said = torch.tensor(row.said, device=scores_V.device)
        scores = scores_V[said]
        penalty = choice.repetition_penalty
        scores_V[said] = torch.where(scores < 0, scores * penalty, scores / penalty)
    if choice.presence_penalty or choice.frequency_penalty:
        if row.counts is None:
            row.counts = torch.zeros_like(scores_V)
        if row.token_ids:  # one token more than at the last call
            row.counts[row.token_ids[-1]] += 1
        scores_V -= choice.frequency_penalty * row.counts + choice.presence_penalty * (row.counts > 0)


# -------------------------------------------------------------------------------------------------------------- draws


def draw(scores_AV: Tensor, rows: Sequence[Row]) -> Tensor:
    """One token per row, drawn by inverting the cumulated probabilities.

    Each row gives one number from 0 to 1 of its own, so that a draw depends neither on neighbours nor on the device.
    """
    choices = [row.choice for row in rows]
    temperature_A1 = _column([choice.temperature for choice in choices], scores_AV)
    scores_AV = scores_AV / temperature_A1
    share_A1 = torch.cat([torch.rand(1, generator=row.generator) for row in rows])[:, None]
    is_cut = [choice.top_k > 0 or choice.top_p < 1 or choice.min_p > 0 for choice in choices]
    if not any(is_cut):
        return inverse(scores_AV, share_A1)
    if all(is_cut):
        return among_likeliest(scores_AV, choices, share_A1)
    drawn_A = torch.empty(len(rows), dtype=torch.long, device=scores_AV.device)
    of_cut_A = torch.tensor(is_cut, device=scores_AV.device)
    drawn_A[of_cut_A] = among_likeliest(
        scores_AV[of_cut_A], [choice for choice, cut in zip(choices, is_cut, strict=True) if cut], share_A1[is_cut]
    )
    drawn_A[~of_cut_A] = inverse(scores_AV[~of_cut_A], share_A1[[not cut for cut in is_cut]])
    return drawn_A


def inverse(scores_AV: Tensor, share_A1: Tensor) -> Tensor:
    """The tokens at which the cumulated probabilities reach a share of their sum.

    The sums are in float64, where the tail of a large vocabulary does not drown in rounding.
    """
    precise = torch.float32 if scores_AV.device.type == "mps" else torch.float64  # Metal has no float64
    cumulated_AV = torch.softmax(scores_AV.to(precise), dim=-1).cumsum(dim=-1)
    aim_A1 = share_A1.to(cumulated_AV) * cumulated_AV[:, -1:]
    return torch.searchsorted(cumulated_AV, aim_A1, right=True).squeeze(1).clamp_(max=scores_AV.shape[1] - 1)


def among_likeliest(scores_AV: Tensor, choices: Sequence[Choice], share_A1: Tensor) -> Tensor:
    """A draw from the tokens that top_k, top_p and min_p leave: only as many are sorted as that takes."""
    vocabulary = scores_AV.shape[1]
    most = max((choice.top_k for choice in choices if choice.top_k < vocabulary), default=0)
    total_A1 = torch.logsumexp(scores_AV, dim=-1, keepdim=True)
    for count in LADDER:
        # One more than top_k shows where the ties of the last one end.
        if most < count < vocabulary:
            ranked_AK, order_AK = ranked(scores_AV, count)
            kept_AK = within(ranked_AK, total_A1, choices)
            if not bool(kept_AK[:, -1].any()):
                break
    else:
        ranked_AK, order_AK = ranked(scores_AV, vocabulary)
        kept_AK = within(ranked_AK, total_A1, choices)
    place_A = inverse(ranked_AK.masked_fill(~kept_AK, -torch.inf), share_A1)
    return order_AK.gather(1, place_A[:, None]).squeeze(1)


def ranked(scores_AV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest scores and their tokens, the highest first; of equal ones the lower id is first."""
    if count < scores_AV.shape[1]:
        ids_AK = scores_AV.topk(count, dim=-1, sorted=False).indices.sort(dim=-1).values
        ranked_AK, order_AK = scores_AV.gather(1, ids_AK).sort(dim=-1, descending=True, stable=True)
        return ranked_AK, ids_AK.gather(1, order_AK)
    return scores_AV.sort(dim=-1, descending=True, stable=True)


def within(ranked_AK: Tensor, total_A1: Tensor, choices: Sequence[Choice]) -> Tensor:
    """Which of the likeliest tokens may be drawn, [A, K]: first top_k, with the ties of its last one; of what is left the
    smallest set with a probability of top_p; and of these, those with min_p times the probability of the likeliest.

    total_A1: the logarithm of the sum of exponentials of all scores, also those that are not among the K.
    """
    count = ranked_AK.shape[1]
    ks = [choice.top_k if 0 < choice.top_k < count else count for choice in choices]
    is_cut_A1 = torch.tensor([[k < count] for k in ks], device=ranked_AK.device)
    last_A1 = ranked_AK.gather(1, torch.tensor(ks, device=ranked_AK.device)[:, None] - 1)
    kept_AK = (ranked_AK >= last_A1) | ~is_cut_A1
    inside_A1 = torch.logsumexp(ranked_AK.masked_fill(~kept_AK, -torch.inf), dim=-1, keepdim=True)
    probability_AK = torch.exp(ranked_AK - torch.where(is_cut_A1, inside_A1, total_A1)) * kept_AK
    before_AK = probability_AK.cumsum(dim=-1) - probability_AK
    top_p_A1 = _column([choice.top_p for choice in choices], ranked_AK)
    min_p_A1 = _column([choice.min_p for choice in choices], ranked_AK)
    kept_AK &= (before_AK < top_p_A1) | (top_p_A1 >= 1)
    kept_AK &= probability_AK >= min_p_A1 * probability_AK[:, :1]
    kept_AK[:, 0] = True
    return kept_AK


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
