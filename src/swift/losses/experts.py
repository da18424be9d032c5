"""This file knows the loss by which a mixture of experts is balanced, in parts that add up over tokens.

Axes: T tokens, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Routing:
    """How some tokens were sent to experts, summed over them and over layers.

    chosen: how often each expert was among the chosen ones, [E]. chances: the probability it was given, [E], with a
    gradient. tokens: tokens times layers.
    """

    chosen: Tensor
    chances: Tensor
    tokens: Tensor


def routing(logits: Sequence[Tensor], per_token: int, counts_T: Tensor | None = None) -> Routing:
    """The routing by the logits of each layer's router, [..., E] for T tokens.

    per_token: to how many experts a token is sent. counts_T: which tokens count; None for all.
    """
    chosen, chances = logits[0].new_zeros(2, logits[0].shape[-1], dtype=torch.float32).unbind()
    tokens = torch.zeros((), device=chosen.device)
    for layer in logits:
        chances_TE = layer.flatten(0, -2).softmax(-1).float().to(chosen.device)
        chosen_TE = torch.zeros_like(chances_TE).scatter(1, chances_TE.topk(per_token).indices, 1.0)
        if counts_T is not None:
            weights_T1 = counts_T.to(chances_TE)[:, None]
            chances_TE, chosen_TE = chances_TE * weights_T1, chosen_TE * weights_T1
        chosen = chosen + chosen_TE.sum(0)
        chances = chances + chances_TE.sum(0)
        tokens = tokens + (len(chances_TE) if counts_T is None else counts_T.sum())
    return Routing(chosen, chances, tokens)


def imbalance(sent: Routing) -> Tensor:
    """`E sum_e f_e P_e`: f_e the share of tokens sent to an expert, P_e the mean probability it was given (Fedus et al.
    2021, arXiv 2101.03961, eq. 4 to 6). A product of means, so means of parts of the tokens do not add up to it."""
    return len(sent.chosen) * (sent.chosen / sent.tokens * sent.chances / sent.tokens).sum()
