"""This file knows the log-probability of a token under the logits that predict it.

Axes: N predictions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

CHUNK_BYTES = 64 * 2**20
"""Size of the float32 work space: how many rows of logits are converted at a time."""


def token_logps(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """`log softmax(logits)[target]` of each row, in float32 whatever the type of the logits.

    Computed as `logits[target] - logsumexp(logits)`. Neither the forward nor the backward pass holds a float32 copy
    of all logits: both convert a few rows at a time, and the gradient comes in the type of the logits.
    """
    return _TokenLogps.apply(logits_NV, targets_N)


class _TokenLogps(Function):
    """Keeps the logits and one normaliser per row, and recomputes the softmax row by row for the gradient."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> Tensor:  # type: ignore[override]  # torch says *args
        normalisers = [rows.float().logsumexp(-1) for rows in logits_NV.split(_rows(logits_NV))]
        normaliser_N = torch.cat(normalisers) if normalisers else logits_NV.new_zeros(0, dtype=torch.float32)
        ctx.save_for_backward(logits_NV, targets_N, normaliser_N)
        return logits_NV.gather(-1, targets_N[:, None]).squeeze(-1).float() - normaliser_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]  # torch says *args
        """`d logp / d logits = onehot(target) - softmax(logits)`."""
        logits_NV, targets_N, normaliser_N = ctx.saved_tensors
        grad_NV = torch.empty_like(logits_NV)
        size = _rows(logits_NV)
        pieces = (tensor.split(size) for tensor in (logits_NV, targets_N, normaliser_N, grad_N, grad_NV))
        for logits, targets, normaliser, grad, out in zip(*pieces, strict=True):
            slope = (logits.float() - normaliser[:, None]).exp_().mul_(-grad[:, None])
            slope.scatter_add_(-1, targets[:, None], grad[:, None])
            out.copy_(slope)
        return grad_NV, None


def _rows(logits_NV: Tensor) -> int:
    return max(1, CHUNK_BYTES // (4 * logits_NV.shape[-1]))
