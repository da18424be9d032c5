"""This file knows a dropout that does not slow an adapter down on a CPU.

torch draws one number of a Mersenne twister for every element there, and that takes longer than the matrix product of
the layer beside it. Here one draw of 64 bits decides over four elements.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

PER_DRAW = 4
"""Elements decided by one draw, with 16 bits each: a rate is met to 1/65536."""


class QuickDropout(nn.Dropout):
    """Dropout (Srivastava et al. 2014) as `torch.nn.Dropout` has it, from other random numbers where it runs on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """The input with a share of `p` of its elements 0 and the others divided by 1 - p; itself outside training."""
        if not self.training or input.device.type != "cpu" or not 0 < self.p < 1:
            return super().forward(input)
        return input * kept(input, self.p)


def kept(like: Tensor, rate: float) -> Tensor:
    """What dropout multiplies with, in shape and type of `like`: 0 with probability `rate`, else 1 / (1 - rate).

    Drawn from torch's generator of the CPU.
    """
    count = like.numel()
    draws = torch.empty(-(-count // PER_DRAW), dtype=torch.int64).random_(-(2**63), None)
    bits = draws.view(torch.int16)[:count].view(like.shape)
    return (bits >= round(rate * 2**16) - 2**15).to(like.dtype).mul_(1 / (1 - rate))


def quicken(model: nn.Module) -> None:
    """Let the adapters of a model drop by QuickDropout; the dropout of the model itself stays as it is."""
    for name, layers in list(model.named_modules()):
        if name.endswith("_dropout") and isinstance(layers, nn.ModuleDict):
            for adapter, layer in layers.items():
                if type(layer) is nn.Dropout:
                    layers[adapter] = QuickDropout(layer.p)
