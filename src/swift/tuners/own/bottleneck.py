"""This file knows the bottleneck adapter: a small network behind every MLP (arXiv:1902.00751).

Axes: B rows, T tokens, D channels of hidden states, L channels of the bottleneck.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from swift.core.errors import UsageError
from swift.core.registry import did_you_mean
from swift.tuners.own.layers import device_of, hidden_size, linear_in_type, mlps

NAME = "bottleneck"
"""Under which it stands in the MLP that it follows."""


@dataclass(frozen=True)
class BottleneckConfig:
    """length: channels of the bottleneck. act: the activation in it, by transformers' name."""

    length: int
    act: str


class Bottleneck(nn.Module):
    """y = h + U act(D h + a) + b for the output h of an MLP, with D [L, D] and U [D, L] (section 2.1).

    U and b begin at zero, so that the model is at first what it was: the near-identity that the paper asks for, exactly.
    The weights are float32 whatever the type of the model, and computed with in the type of h.
    """

    def __init__(self, width: int, config: BottleneckConfig, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.down = nn.Linear(width, config.length, dtype=torch.float32)
        self.act = act
        self.up = nn.Linear(config.length, width, dtype=torch.float32)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """The hidden states with what the bottleneck adds."""
        inner_BTL = self.act(linear_in_type(hidden_BTD, self.down))
        return hidden_BTD + linear_in_type(inner_BTL, self.up).to(hidden_BTD.dtype)

    def follow(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        """The output of the MLP, changed; experts give their router's scores along, which stay."""
        return (self(output[0]), *output[1:]) if isinstance(output, tuple) else self(output)


def add_bottlenecks(model: PreTrainedModel, config: BottleneckConfig) -> list[str]:
    """Put a bottleneck behind the MLP of every layer; the names of the new modules.

    Raises ModelError for a model whose layers have no MLP of a known name, UsageError for an unknown activation.
    """
    if config.act not in ACT2FN:
        guess = did_you_mean(config.act, ACT2FN)
        raise UsageError(f"--adapter_act {config.act} is no activation of transformers.{guess}")
    names = []
    for name, mlp in mlps(model):
        bottleneck = Bottleneck(hidden_size(model), config, ACT2FN[config.act]).to(device_of(mlp))
        mlp.add_module(NAME, bottleneck)
        mlp.register_forward_hook(bottleneck.follow)
        names.append(f"{name}.{NAME}")
    return names
