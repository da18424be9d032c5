"""This file knows how many tokens are compared with a large vocabulary without all of their logits at a time.

Axes: N predictions, D channels of a hidden state, V vocabulary.

Logits of N tokens are N x V numbers, and their gradient as many again: with 150,000 words far more than everything else
that a model keeps. Here the output layer is run for a few tokens at a time, and nothing of the size of the vocabulary
outlives them: peak memory does not grow with N x V. There are two ways to the gradient.

- `learn`: the loss is a sum of losses whose weights are known. Then the gradient is known up to one factor as soon as
  the logits are, and is computed at once: as much work as without chunks (Hsu et al. 2024, Liger Kernel, section 3.3).
- `token_logps_of`: what becomes of the log-probabilities is open, as in losses of preferences and policies. Then the
  logits are computed again in the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from swift.losses.logps import token_logps
from swift.losses.objective import Objective, token_losses
from swift.losses.projection import Projection

CHUNK_BYTES = {"cpu": 64 * 2**20}
"""Kind of device -> size of the logits that are there at a time, counted in float32."""
LARGE_CHUNK = 2**28
"""The same on every other device, which is slow at small matrices."""


@dataclass(frozen=True)
class TokenScores:
    """What the tokens of a batch say of the model.

    total: the sum of the losses; carries the gradient.
    losses: float32 [N], the loss of each token, without gradient. correct: float32 [N], 1 where the target is the
    model's first choice.
    """

    total: Tensor
    losses: Tensor
    correct: Tensor


def learn(hidden_ND: Tensor, projection: Projection, targets_N: Tensor, weights_N: Tensor | None,
          objective: Objective) -> TokenScores:  # fmt: skip
    """The losses of tokens that the hidden states predict, weighted, summed up, with the gradient of the sum.

    The gradients of hidden states and parameters are computed here, in float32 sums, and scaled in the backward pass,
    which can be run once. Where no gradient is wanted, none is computed.
    """
    parameters = projection.learnt() if torch.is_grad_enabled() else []
    return TokenScores(*_Learning.apply(projection, targets_N, weights_N, objective, hidden_ND, *parameters))


def token_logps_of(hidden_ND: Tensor, projection: Projection, targets_N: Tensor) -> Tensor:
    """`log softmax(projection(hidden))[target]`, float32 [N], with any gradient: logits are computed twice for it."""

    def some(hidden_CD: Tensor, targets_C: Tensor) -> Tensor:
        return token_logps(projection(hidden_CD), targets_C)

    size = _rows(hidden_ND, projection)
    pieces = zip(hidden_ND.split(size), targets_N.split(size), strict=True)
    logps = [checkpoint(some, hidden, targets, use_reentrant=False) for hidden, targets in pieces]
    return torch.cat(logps) if logps else some(hidden_ND, targets_N)


class _Learning(Function):
    """Keeps nothing of the vocabulary's size but the gradient of what is learnt of the output layer."""

    @staticmethod
    def forward(ctx: Any, projection: Projection, targets_N: Tensor, weights_N: Tensor | None,
                objective: Objective, hidden_ND: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]  # torch declares any arguments  # fmt: skip
        losses_N = hidden_ND.new_empty(len(targets_N), dtype=torch.float32)
        correct_N = torch.empty_like(losses_N)
        gradients = _Gradients(hidden_ND, list(parameters)) if any(ctx.needs_input_grad) else None
        size = _rows(hidden_ND, projection)
        for start in range(0, len(targets_N), size):
            rows = slice(start, start + size)
            weights = None if weights_N is None else weights_N[rows]
            with torch.set_grad_enabled(gradients is not None):
                hidden_CD = hidden_ND[rows].detach().requires_grad_(hidden_ND.requires_grad)
                logits_CV = projection(hidden_CD)
            slopes_CV = torch.empty_like(logits_CV) if gradients else None
            losses_N[rows], correct_N[rows] = token_losses(
                logits_CV.detach(), targets_N[rows], weights, objective, slopes_CV
            )
            if gradients:
                gradients.add(rows, hidden_CD, logits_CV, slopes_CV)
        ctx.mark_non_differentiable(losses_N, correct_N)
        ctx.gradients = gradients.finish() if gradients else None
        ctx.count = len(parameters)
        return losses_N.sum(), losses_N, correct_N

    @staticmethod
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # torch says *args
        """The gradients that are there already, times the slope of what became of the sum."""
        gradients: list[Tensor | None] | None = ctx.gradients
        ctx.gradients = None  # type: ignore[attr-defined]  # in place, and the memory is needed
        assert gradients is not None, "the backward pass of a sum of losses is run once"
        scaled = [None if gradient is None else gradient.mul_(scale) for gradient in gradients]
        return (None, None, None, None, *scaled)


class _Gradients:
    """The gradients of hidden states and parameters, added up chunk by chunk, in float32."""

    def __init__(self, hidden_ND: Tensor, parameters: list[Tensor]) -> None:
        self.hidden = torch.zeros_like(hidden_ND) if hidden_ND.requires_grad else None
        self.parameters = parameters
        self.sums: list[Tensor | None] = [None] * len(parameters)

    def add(self, rows: slice, hidden_CD: Tensor, logits_CV: Tensor, slopes_CV: Tensor | None) -> None:
        """The gradients of one chunk, `slopes_CV` being that of its logits."""
        inputs = [hidden_CD] if self.hidden is not None else []
        found = list(torch.autograd.grad(logits_CV, [*inputs, *self.parameters], slopes_CV, allow_unused=True))
        if self.hidden is not None:
            self.hidden[rows] = found.pop(0)
        for place, gradient in enumerate(found):
            total = self.sums[place]
            if total is None or gradient is None:
                self.sums[place] = total if gradient is None else gradient
            elif total.dtype == torch.float32:
                total.add_(gradient)
            else:
                self.sums[place] = total.float().add_(gradient)

    def finish(self) -> list[Tensor | None]:
        """That of the hidden states, then those of the parameters, each in the type of what it belongs to."""
        pairs = zip(self.sums, self.parameters, strict=True)
        return [self.hidden, *(None if total is None else total.to(value.dtype) for total, value in pairs)]


def _rows(hidden_ND: Tensor, projection: Projection) -> int:
    """How many tokens are compared at a time: so many that their logits, in float32, fill a chunk."""
    return max(1, CHUNK_BYTES.get(hidden_ND.device.type, LARGE_CHUNK) // (4 * projection.vocabulary))
