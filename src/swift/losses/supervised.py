"""This file knows the loss of supervised learning, and how often the model is right.

Axes: B rows, T tokens, N learnt tokens of a batch, S sequences of the batch, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from swift.losses.logps import token_logps
from swift.losses.reduce import sum_by_sequence

IGNORED = -100
"""The label of a token that is not learnt."""


def predicted(labels_BT: Tensor) -> Tensor:
    """What each position has to predict: the label of the token after it, [B, T]. The last position predicts nothing."""
    return torch.cat([labels_BT[:, 1:], torch.full_like(labels_BT[:, :1], IGNORED)], dim=1)


@dataclass(frozen=True)
class Scores:
    """What a batch says of the model, per sequence: [S] each, float32.

    loss: the sum of the weighted losses of the sequence's learnt tokens; carries the gradient.
    tokens: how many tokens are learnt; weights do not change this count.
    correct: how many of them are the model's first choice.
    """

    loss: Tensor
    tokens: Tensor
    correct: Tensor

    def stacked(self) -> Tensor:
        """The three side by side, [S, 3], without gradient: what evaluation gathers."""
        return torch.stack([self.loss.detach(), self.tokens, self.correct], dim=1)


def score(
    logits_NV: Tensor,
    targets_N: Tensor,
    weights_N: Tensor | None,
    sequence_N: Tensor,
    count: int,
    smoothing: float = 0.0,
) -> Scores:
    """Cross-entropy of the learnt tokens, in float32: `loss_n = -w_n log p(target_n)`.

    With `smoothing` e the target is `1 - e` of the learnt token and `e` of all tokens alike, see `smoothed`.
    Weights multiply the losses and are not part of any denominator: the caller divides by the number of tokens, so
    that a weight of 2 doubles a token's pull and leaves that of its neighbours alone.
    """
    logps_N = token_logps(logits_NV, targets_N)
    loss_N = -(smoothed(logits_NV, targets_N, logps_N, smoothing) if smoothing else logps_N)
    if weights_N is not None:
        loss_N = loss_N * weights_N
    with torch.no_grad():
        correct_N = (logits_NV.argmax(-1) == targets_N).float()
    return Scores(
        loss=sum_by_sequence(loss_N, sequence_N, count),
        tokens=sum_by_sequence(torch.ones_like(correct_N), sequence_N, count),
        correct=sum_by_sequence(correct_N, sequence_N, count),
    )


def smoothed(logits_NV: Tensor, targets_N: Tensor, logps_N: Tensor, smoothing: float) -> Tensor:
    """`(1 - e) log p(target) + e mean_v log p(v)`: label smoothing (Szegedy et al. 2016, section 7).

    The mean over the vocabulary is that of the logits less their normaliser, so no second softmax is computed.
    """
    normaliser_N = logits_NV.gather(-1, targets_N[:, None]).squeeze(-1).float() - logps_N
    mean_logps_N = logits_NV.mean(-1, dtype=torch.float32) - normaliser_N
    return (1 - smoothing) * logps_N + smoothing * mean_logps_N


def token_accuracy(tokens_S: Tensor, correct_S: Tensor) -> tuple[Tensor, Tensor]:
    """Right tokens and learnt tokens: the accuracy is their ratio."""
    return correct_S.sum(), tokens_S.sum()


def sequence_accuracy(tokens_S: Tensor, correct_S: Tensor) -> tuple[Tensor, Tensor]:
    """Sequences with every learnt token right, and sequences that have any: the accuracy is their ratio."""
    learns_S = tokens_S > 0
    return ((correct_S == tokens_S) & learns_S).sum(), learns_S.sum()


ACCURACIES = {"token": token_accuracy, "seq": sequence_accuracy}
"""`--acc_strategy` -> the sums whose ratio is the accuracy, each (tokens [S], correct [S]) -> (right, all)."""
