"""This file knows how hidden states become logits: the output layer, and what a model does to its result.

Axes: N predictions, D channels of a hidden state, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear


def _none() -> Iterable[Tensor]:
    return ()


@dataclass(frozen=True)
class Projection:
    """From hidden states [N, D] to logits [N, V]: `cap * tanh(scale * layer(h) / cap)`, or without a cap `scale * layer(h)`.

    vocabulary: V.
    parameters: gives the leaves that the layer computes with; those that require a gradient get one.
    """

    layer: Callable[[Tensor], Tensor]
    vocabulary: int
    parameters: Callable[[], Iterable[Tensor]] = _none
    scale: float = 1.0
    cap: float | None = None

    def __call__(self, hidden_ND: Tensor) -> Tensor:
        """The logits."""
        logits_NV = self.layer(hidden_ND)
        if self.scale != 1:
            logits_NV = logits_NV * self.scale
        return logits_NV if self.cap is None else torch.tanh(logits_NV / self.cap) * self.cap

    def learnt(self) -> list[Tensor]:
        """The parameters that require a gradient, each once."""
        return list({id(value): value for value in self.parameters() if value.requires_grad}.values())


def plain(weight_VD: Tensor, bias_V: Tensor | None = None) -> Projection:
    """The projection of a linear layer: `h W^T + b`."""
    given = [value for value in (weight_VD, bias_V) if value is not None]
    return Projection(lambda hidden_ND: linear(hidden_ND, weight_VD, bias_V), len(weight_VD), lambda: given)


def identity(vocabulary: int) -> Projection:
    """The projection of what are logits already."""
    return Projection(lambda logits_NV: logits_NV, vocabulary)
