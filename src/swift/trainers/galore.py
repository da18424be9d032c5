"""This file knows GaLore: any optimizer, on projections of the gradients of large matrices.

An optimizer never learns of it. Each projected weight has a stand-in of low rank, which is zero before every step and
gets the projected gradient; what the optimizer makes of the stand-in is the update, and goes back to the weight:

    low = project(G);   update = optimizer(low);   W = W - lr weight_decay W + scale project_back(update)

(Zhao et al. 2024, arXiv 2403.03507, algorithm 2; there the optimizer is Adam.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from swift.core.errors import RunError
from swift.trainers.projection import Projecting, low_shape, project, project_back

Build = Callable[[list[dict[str, Any]]], Optimizer]
"""Groups of parameters -> the optimizer of `--optim` for them."""


@dataclass(frozen=True)
class _Inner:
    """An optimizer of stand-ins and of weights that are not projected, and the groups of ours that its groups mirror."""

    optimizer: Optimizer
    groups: tuple[int, ...]
    pairs: tuple[tuple[nn.Parameter, nn.Parameter], ...]
    """Weight and stand-in."""


class GaLore(Optimizer):
    """The optimizer that `build` makes, with the gradients of groups with `is_projected` projected.

    apart: every projected weight has an optimizer of its own, and its gradient is freed as soon as it was used, so that
        one projected gradient is held at a time instead of all of them.
    """

    def __init__(self, groups: list[dict[str, Any]], build: Build, projecting: Projecting, scale: float,
                 apart: bool = False) -> None:  # fmt: skip
        self.projecting = projecting
        self.scale = scale
        self.apart = apart
        super().__init__(groups, {"lr": groups[0]["lr"], "weight_decay": 0.0, "is_projected": False})
        self.inner = self._build_inner(build)

    def _build_inner(self, build: Build) -> list[_Inner]:
        stand_ins = {
            weight: _stand_in(weight, self.projecting)
            for group in self.param_groups
            if group["is_projected"]
            for weight in group["params"]
        }
        places = [(i, weight) for i, group in enumerate(self.param_groups) for weight in group["params"]]
        lone = [[(i, weight)] for i, weight in places if self.apart and weight in stand_ins]
        rest = [(i, weight) for i, weight in places if not (self.apart and weight in stand_ins)]
        return [self._inner_of(members, stand_ins, build) for members in [rest, *lone] if members]

    def _inner_of(self, members: list[tuple[int, nn.Parameter]], stand_ins: dict[nn.Parameter, nn.Parameter],
                  build: Build) -> _Inner:  # fmt: skip
        groups = tuple(dict.fromkeys(i for i, _ in members))
        mirrored = []
        for i in groups:
            own = self.param_groups[i]
            decay = 0.0 if own["is_projected"] else own["weight_decay"]  # of the weight itself, not of its stand-in
            params = [stand_ins.get(weight, weight) for j, weight in members if j == i]
            mirrored.append({"params": params, "lr": own["lr"], "weight_decay": decay})
        pairs = tuple((weight, stand_ins[weight]) for _, weight in members if weight in stand_ins)
        return _Inner(build(mirrored), groups, pairs)

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch has overloads
        """One step of everything that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        settings = {weight: group for group in self.param_groups for weight in group["params"]}
        for inner in self.inner:
            for group, i in zip(inner.optimizer.param_groups, inner.groups, strict=True):
                group["lr"] = self.param_groups[i]["lr"]
            for weight, stand_in in inner.pairs:
                stand_in.zero_()
                stand_in.grad = (
                    None if weight.grad is None else project(weight.grad, self.state[weight], self.projecting)
                )
            inner.optimizer.step()
            for weight, stand_in in inner.pairs:
                if stand_in.grad is not None:
                    self._move(weight, stand_in, settings[weight])
        return loss

    def _move(self, weight: nn.Parameter, stand_in: nn.Parameter, group: dict[str, Any]) -> None:
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(project_back(stand_in, self.state[weight]), alpha=self.scale)
        stand_in.grad = None
        if self.apart:
            weight.grad = None

    # ----------------------------------------------------------------------------------------------------- checkpoints

    @override
    def state_dict(self) -> dict[str, Any]:
        """Our projections, and under `inner` the states of the optimizers."""
        return {
            **super().state_dict(),
            "projecting": [self.projecting.rank, self.projecting.kind],
            "inner": [inner.optimizer.state_dict() for inner in self.inner],
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint stopped. Raises RunError when it was made with projections of another kind."""
        made, wanted = list(state_dict["projecting"]), [self.projecting.rank, self.projecting.kind]
        if made != wanted or len(state_dict["inner"]) != len(self.inner):
            raise RunError(
                f"The checkpoint was made with --galore_rank {made[0]} and --galore_proj_type {made[1]}, for "
                f"{len(state_dict['inner'])} optimizers; this run has {wanted[0]} and {wanted[1]} and "
                f"{len(self.inner)} optimizers. Use the options of the checkpoint."
            )
        super().load_state_dict(state_dict)
        saved_ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        weights: Iterable[nn.Parameter] = chain.from_iterable(group["params"] for group in self.param_groups)
        for index, weight in zip(saved_ids, weights, strict=True):
            if index in state_dict["state"]:  # torch has given everything the type of the weight, codes as well
                self.state[weight] = _copied(state_dict["state"][index], weight.device)
        for inner, saved in zip(self.inner, state_dict["inner"], strict=True):
            inner.optimizer.load_state_dict(saved)


def _stand_in(weight: nn.Parameter, projecting: Projecting) -> nn.Parameter:
    shape = low_shape(weight.shape[0], weight.shape[1], projecting)
    return nn.Parameter(torch.zeros(shape, dtype=weight.dtype, device=weight.device))


def _copied(value: Any, device: torch.device) -> Any:
    """A saved state on its device, every tensor of the type it was saved with."""
    if isinstance(value, Tensor):
        return value.to(device, copy=True)
    if isinstance(value, dict):
        return {key: _copied(item, device) for key, item in value.items()}
    return [*value] if isinstance(value, list) else value
