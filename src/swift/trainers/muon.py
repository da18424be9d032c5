"""This file knows Muon, which makes the update of a matrix orthogonal, beside AdamW for what is no matrix.

Axes: E matrices of one parameter (experts), M rows, N columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw
from typing_extensions import override

QUINTIC = (3.4445, -4.7750, 2.0315)
"""a, b and c of the iteration X' = aX + bXX'X + cXX'XX'X, chosen to raise small singular values fast (Jordan 2024)."""
SMALLEST = 1e-7


def by_rows(rows: int, columns: int) -> float:
    """sqrt(max(1, M / N)): Jordan's scale of the update."""
    return math.sqrt(max(1, rows / columns))


def as_adamw(rows: int, columns: int) -> float:
    """0.2 sqrt(max(M, N)): updates as large as those of AdamW (Liu et al. 2025, arXiv 2502.16982, eq. 4), so that both
    share a learning rate and a weight decay."""
    return 0.2 * math.sqrt(max(rows, columns))


SCALES: dict[str, Callable[[int, int], float]] = {"match_rms_adamw": as_adamw, "original": by_rows}
"""`adjust_lr_fn` -> the factor of the learning rate for a matrix of so many rows and columns."""


@dataclass(frozen=True)
class MuonSettings:
    """What is particular to Muon. adjust_lr_fn: a name of SCALES."""

    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5
    adjust_lr_fn: str = "match_rms_adamw"


class Muon(Optimizer):
    """Muon (Jordan 2024, kellerjordan.github.io/posts/muon) for groups with `is_matrix`, AdamW for all others.

        B = momentum B + (1 - momentum) G;   U = (1 - momentum) G + momentum B with nesterov, else B
        W = W - lr weight_decay W - lr scale(M, N) orthogonal(U)

    A parameter of three axes is E matrices, each made orthogonal by itself; one of more axes, as of a convolution, is a
    matrix of its first axis by all others.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, settings: MuonSettings, *,
                 betas: tuple[float, float], eps: float) -> None:  # fmt: skip
        defaults = {"lr": lr, "weight_decay": 0.0, "is_matrix": False, "betas": betas, "eps": eps, **asdict(settings)}
        super().__init__(groups, defaults)

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch has overloads
        """One step of everything that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["is_matrix"]:
                for parameter in trained:
                    self._step_matrix(parameter, group)
            elif trained:
                self._step_rest(trained, group)
        return loss

    def _step_matrix(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient = parameter.grad
        assert gradient is not None, "only parameters with a gradient are stepped"
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(average, group["momentum"]) if group["nesterov"] else average
        matrices = update if update.ndim <= 3 else update.flatten(1)
        scale = SCALES[group["adjust_lr_fn"]](matrices.shape[-2], matrices.shape[-1])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        step = orthogonal(matrices, group["ns_steps"]).view_as(parameter)
        parameter.add_(step, alpha=-group["lr"] * scale)

    def _step_rest(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter].update(
                    step=torch.tensor(0.0), exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter)
                )
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],  # type: ignore[misc]  # all of them have one
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False, beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"],
            weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
        )  # fmt: skip


def orthogonal(update_EMN: Tensor, steps: int) -> Tensor:
    """U V' of the singular value decomposition U S V' of each matrix, nearly: singular values come near 1, not to it.

    `steps` Newton-Schulz iterations in bfloat16, on the narrow side of the matrix. Works on [M, N] as well.
    """
    a, b, c = QUINTIC
    is_tall = update_EMN.shape[-2] > update_EMN.shape[-1]
    X = update_EMN.bfloat16()
    X = X.mT if is_tall else X
    X = X / X.norm(dim=(-2, -1), keepdim=True).clamp(min=SMALLEST)
    for _ in range(steps):
        gram = X @ X.mT
        X = a * X + (b * gram + c * gram @ gram) @ X
    return (X.mT if is_tall else X).to(update_EMN.dtype)
