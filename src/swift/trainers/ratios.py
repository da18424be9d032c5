"""This file knows the ratios that a log of training shows beside the loss: summed over steps and over processes."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

from swift.trainers.processes import gathered


class Ratios:
    """Numerators and denominators by name, since the last time they were taken."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, numerator: Tensor, denominator: Tensor) -> None:
        """Add to a ratio."""
        pair = torch.stack([numerator, denominator]).detach().to(torch.float64)
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def taken(self, accelerator: Accelerator) -> dict[str, float]:
        """The ratios of all processes together, which begin anew; every process must ask."""
        names = sorted(set().union(*gathered(list(self._sums))))
        if not names:
            return {}
        nothing = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
        mine: Tensor = torch.stack([self._sums.get(name, nothing) for name in names])
        sums = accelerator.reduce(mine, "sum")
        assert isinstance(sums, Tensor), "one tensor in, one tensor out"
        self._sums.clear()
        return {name: right / max(total, 1) for name, (right, total) in zip(names, sums.tolist(), strict=True)}
