"""This file knows the loss of a token under the logits that predict it, and the slope of that loss.

Axes: N predictions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_BYTES = {"cpu": 4 * 2**20}
"""Kind of device -> size of the float32 work space that is gone through several times: on a CPU, what its caches hold."""
LARGE_BLOCK = 2**28
"""The same on every other device."""


@dataclass(frozen=True)
class Objective:
    """What a token is learnt by: `loss_n = -w_n d_n ((1 - e) log p(target_n) + e mean_v log p(v))`.

    smoothing: e, the share of the target that goes to all tokens alike (Szegedy et al. 2016, section 7).
    dft: whether d_n is `p(target_n)`, taken as a constant (Dynamic Fine-Tuning, arXiv 2508.05629, eq. 9); else it is 1.
    """

    smoothing: float = 0.0
    dft: bool = False


def token_losses(logits_NV: Tensor, targets_N: Tensor, weights_N: Tensor | None, objective: Objective,
                 slopes_NV: Tensor | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The loss of each token and whether the target is the model's first choice, float32 [N] each, without gradient.

    slopes_NV: is overwritten with `d loss / d logits`, in its own type, when it is given.

    Softmax is in float32 whatever the type of the logits, a few rows at a time.
    """
    losses_N = logits_NV.new_empty(len(targets_N), dtype=torch.float32)
    correct_N = torch.empty_like(losses_N)
    size = max(1, BLOCK_BYTES.get(logits_NV.device.type, LARGE_BLOCK) // (4 * logits_NV.shape[-1]))
    for start in range(0, len(targets_N), size):
        rows = slice(start, start + size)
        weights = None if weights_N is None else weights_N[rows]
        slopes = None if slopes_NV is None else slopes_NV[rows]
        losses_N[rows], correct_N[rows] = _block(logits_NV[rows], targets_N[rows], weights, objective, slopes)
    return losses_N, correct_N


def _block(logits_NV: Tensor, targets_N: Tensor, weights_N: Tensor | None, objective: Objective,
           slopes_NV: Tensor | None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `token_losses`, for rows that fit into the work space.

    `d loss / d logit_v = w d (p(v) - (1 - e) [v = target] - e / V)`.
    """
    e, vocabulary = objective.smoothing, logits_NV.shape[-1]
    target_N1 = targets_N[:, None]
    work_NV = logits_NV.to(torch.float32, copy=True)
    best_N1, choice_N1 = work_NV.max(-1, keepdim=True)
    shifted_N = (work_NV.gather(-1, target_N1) - best_N1).squeeze(-1)
    mean_N = (work_NV.mean(-1) - best_N1.squeeze(-1)) if e else shifted_N
    work_NV.sub_(best_N1).exp_()
    total_N = work_NV.sum(-1)
    logps_N = shifted_N - total_N.log()
    losses_N = -((1 - e) * logps_N + e * (mean_N - total_N.log())) if e else -logps_N
    pull_N = torch.ones_like(losses_N) if weights_N is None else weights_N.float()
    if objective.dft:
        pull_N = pull_N * logps_N.exp()
    if slopes_NV is not None:
        work_NV.mul_((pull_N / total_N)[:, None])
        work_NV.scatter_add_(-1, target_N1, -(1 - e) * pull_N[:, None])
        if e:
            work_NV.sub_((pull_N * (e / vocabulary))[:, None])
        slopes_NV.copy_(work_NV)
    return losses_N * pull_N, (choice_N1 == target_N1).squeeze(-1).float()
