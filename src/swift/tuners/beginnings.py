"""This file knows the matrices that LoRA can begin with when they are computed from a weight or from its gradient.

Axes: O outputs and I inputs of a layer, R the rank. A weight and its gradient are [O, I], A is [R, I], B is [O, R].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from swift.core.errors import ModelError
from swift.options.tuner_variants import TunerVariantOptions

Factors = tuple[Tensor, Tensor]
"""A and B."""


def pissa(weight_OI: Tensor, rank: int, scale: float, niter: int | None = None) -> Factors:
    """The principal part of a weight: scale B A is its best approximation of this rank (PiSSA, arXiv:2404.02948, eq. 2).

    With niter the singular value decomposition is a randomised one of so many iterations, many times faster.
    """
    if niter is None:
        left_OK, values_K, right_KI = torch.linalg.svd(weight_OI, full_matrices=False)
    else:
        left_OK, values_K, right_IK = torch.svd_lowrank(weight_OI, q=rank, niter=niter)
        right_KI = right_IK.T
    roots_R = (values_K[:rank] / scale).sqrt()
    return roots_R[:, None] * right_KI[:rank], left_OK[:, :rank] * roots_R


def olora(weight_OI: Tensor, rank: int, scale: float) -> Factors:
    """An orthonormal B and the rows of R that belong to it, of the decomposition W = Q R (OLoRA, arXiv:2406.01775)."""
    del scale  # the product is taken out of the weight scaled, as the layer will add it
    q_OK, r_KI = torch.linalg.qr(weight_OI)
    return r_KI[:rank], q_OK[:, :rank]


def lora_ga(weight_OI: Tensor, gradient_OI: Tensor, rank: int, scale: float, options: TunerVariantOptions) -> Factors:
    """Singular vectors of the gradient, so that the first steps of LoRA follow those of full training.

    LoRA-GA, arXiv:2407.05000, algorithm 1; with `stable`, A and B are these vectors times d_out^(1/4) / sqrt(gamma).
    The weight must have 2 R singular vectors, else ModelError.
    """
    if min(weight_OI.shape) < 2 * rank:
        raise ModelError(
            f"--init_weights lora-ga begins with twice as many singular vectors as --lora_rank {rank}, and a weight of "
            f"shape {tuple(weight_OI.shape)} has {min(weight_OI.shape)}. Lower --lora_rank, or leave it out of "
            f"--target_modules."
        )
    left_OK, _, right_IK = torch.svd_lowrank(gradient_OI, q=min(4 * rank, *gradient_OI.shape), niter=4)
    of_a_R, of_b_R = DIRECTIONS[options.lora_ga_direction](rank)
    factor = SCALES[options.lora_ga_scale](weight_OI, rank, scale, options.lora_ga_stable_gamma)
    return right_IK.T[of_a_R] * factor, left_OK[:, of_b_R] * factor


def _random_halves(rank: int) -> tuple[Tensor, Tensor]:
    order = torch.randperm(2 * rank)
    return order[:rank], order[rank:]


DIRECTIONS: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {
    "ArBr": lambda rank: (torch.arange(1, 2 * rank, 2), torch.arange(0, 2 * rank, 2)),
    "A2rBr": lambda rank: (torch.arange(rank, 2 * rank), torch.arange(rank)),
    "ArB2r": lambda rank: (torch.arange(rank), torch.arange(rank, 2 * rank)),
    "random": _random_halves,
}
"""`--lora_ga_direction` -> which of the first 2 R singular vectors of the gradient A and B begin with."""


def _of_the_weight(weight_OI: Tensor, rank: int, scale: float, _: int) -> float:
    values_K = torch.svd_lowrank(weight_OI, q=min(4 * rank, *weight_OI.shape), niter=4)[1]
    return float((values_K[:rank] / scale).sqrt().mean())


SCALES: dict[str, Callable[[Tensor, int, float, int], float]] = {
    "gd": lambda _weight, _rank, scale, _gamma: 1 / scale,
    "unit": lambda *_: 1.0,
    "stable": lambda weight_OI, _rank, _scale, gamma: weight_OI.shape[0] ** 0.25 / gamma**0.5,
    "weightS": _of_the_weight,
}
"""`--lora_ga_scale` -> what the singular vectors are multiplied with: gd undoes the scale of the layer, stable keeps the
size of activations as rank and width grow (theorem 3.2), weightS takes the mean root of the weight's singular values."""
