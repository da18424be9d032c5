"""This file knows the loss of supervised learning, and how often the model is right.

Axes: B rows, T tokens, N learnt tokens of a batch, S sequences of the batch, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from swift.core.labels import IGNORED
from swift.losses.chunked import learn
from swift.losses.objective import Objective
from swift.losses.projection import Projection
from swift.losses.reduce import sum_by_sequence


def predicted(labels_BT: Tensor) -> Tensor:
    """What each position has to predict: the label of the token after it, [B, T]. The last position predicts nothing."""
    return torch.cat([labels_BT[:, 1:], torch.full_like(labels_BT[:, :1], IGNORED)], dim=1)


@dataclass(frozen=True)
class Scores:
    """What a batch says of the model, float32.

    total: the sum of the weighted losses of all learnt tokens; carries the gradient.
    loss: the same per sequence, [S], without gradient.
    tokens: how many tokens of each sequence are learnt, [S]; weights do not change this count.
    correct: how many of them are the model's first choice, [S].
    """

    total: Tensor
    loss: Tensor
    tokens: Tensor
    correct: Tensor


@dataclass(frozen=True)
class Learnt:
    """The tokens of a batch that are learnt.

    learns: [B, T], at which positions something has to be predicted.
    targets: what, [N]. weights: how much each weighs, [N] or None. sequence: whose each is, [N], of `count` sequences.
    """

    learns: Tensor
    targets: Tensor
    weights: Tensor | None
    sequence: Tensor
    count: int

    def to(self, device: torch.device) -> Learnt:
        """The same on another device, where the hidden states of a model that is spread over several come out."""
        weights = None if self.weights is None else self.weights.to(device)
        return Learnt(self.learns.to(device), self.targets.to(device), weights, self.sequence.to(device), self.count)


def learnt(labels_BT: Tensor, weights_BT: Tensor | None, whose_BT: Tensor, count: int) -> Learnt:
    """The tokens that are learnt; labels and weights stand where their token stands."""
    targets_BT = predicted(labels_BT)
    learns_BT = targets_BT != IGNORED
    weights_N = None if weights_BT is None else weights_BT.roll(-1, 1)[learns_BT]
    return Learnt(learns_BT, targets_BT[learns_BT], weights_N, whose_BT[learns_BT], count)


def score(hidden_ND: Tensor, projection: Projection, tokens: Learnt, objective: Objective) -> Scores:
    """How well hidden states predict the learnt tokens.

    Weights multiply the losses and are not part of any denominator: the caller divides by the number of tokens, so
    that a weight of 2 doubles a token's pull and leaves that of its neighbours alone.
    """
    found = learn(hidden_ND, projection, tokens.targets, tokens.weights, objective)
    values_N3 = torch.stack([found.losses, torch.ones_like(found.losses), found.correct], dim=1)
    loss_S, tokens_S, correct_S = sum_by_sequence(values_N3, tokens.sequence, tokens.count).unbind(1)
    return Scores(found.total, loss_S, tokens_S, correct_S)


def token_accuracy(tokens_S: Tensor, correct_S: Tensor) -> tuple[Tensor, Tensor]:
    """Right tokens and learnt tokens: the accuracy is their ratio."""
    return correct_S.sum(), tokens_S.sum()


def sequence_accuracy(tokens_S: Tensor, correct_S: Tensor) -> tuple[Tensor, Tensor]:
    """Sequences with every learnt token right, and sequences that have any: the accuracy is their ratio."""
    learns_S = tokens_S > 0
    return ((correct_S == tokens_S) & learns_S).sum(), learns_S.sum()


ACCURACIES = {"token": token_accuracy, "seq": sequence_accuracy}
"""`--acc_strategy` -> the sums whose ratio is the accuracy, each (tokens [S], correct [S]) -> (right, all)."""
