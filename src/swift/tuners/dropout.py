"""This file knows a dropout that does not slow an adapter down on a CPU.

torch draws one number of a Mersenne twister for every element there, and that takes longer than the matrix product of
the layer beside it. Here numbers are drawn for the elements that are dropped alone: how far each is from the one before.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function


class QuickDropout(nn.Dropout):
    """Dropout (Srivastava et al. 2014) as `torch.nn.Dropout` has it, from other random numbers where it runs on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """The input with a share of `p` of its elements 0 and the others divided by 1 - p; itself outside training."""
        if not self.training or input.device.type != "cpu" or not 0 < self.p < 1:
            return super().forward(input)
        return _Dropping.apply(input, dropped(input.numel(), self.p), 1 / (1 - self.p))


class _Dropping(Function):
    """Sets the elements at some places to 0 and multiplies the others; its gradient goes the same way."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor, scale: float) -> Tensor:  # type: ignore[override]  # torch says *args
        ctx.save_for_backward(places)
        ctx.scale = scale
        left = values.contiguous() * scale
        left.view(-1).index_fill_(0, places, 0)
        return left

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]  # torch says *args
        [places] = ctx.saved_tensors
        return _Dropping.apply(slopes, places, ctx.scale), None, None


def dropped(count: int, rate: float) -> Tensor:
    """The places, int64 and ascending, of those of `count` elements that are dropped, each with probability `rate`.

    The distance from one to the next is geometric: the floor of log(u) / log(1 - rate) for u uniform in (0, 1], and 1
    (Devroye 1986, chapter X.2). Drawn from torch's generator of the CPU.
    """
    found: list[Tensor] = []
    last = -1
    while last < count:
        expected = (count - last) * rate
        uniform = torch.rand(int(expected + 5 * math.sqrt(expected)) + 8)
        apart = uniform.neg_().log1p_().div_(math.log1p(-rate)).floor_().add_(1)
        found.append(apart.long().cumsum_(0).add_(last))
        last = int(found[-1][-1])
    places = torch.cat(found) if len(found) > 1 else found[0]
    return places[: int(torch.searchsorted(places, count))]


def quicken(model: nn.Module) -> None:
    """Let the adapters of a model drop by QuickDropout; the dropout of the model itself stays as it is."""
    for name, layers in list(model.named_modules()):
        if name.endswith("_dropout") and isinstance(layers, nn.ModuleDict):
            for adapter, layer in layers.items():
                if type(layer) is nn.Dropout:
                    layers[adapter] = QuickDropout(layer.p)
