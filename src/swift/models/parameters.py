"""This file knows how many parameters a model has, and which of them are trained."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from swift.models.quantize import quantized_layers
from swift.parallel.partitions import size_of

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters of one name in all layers: `layers.*.mlp.up_proj.weight`."""

    name: str
    trained: int
    total: int


@dataclass(frozen=True)
class ParameterTable:
    """What is trained: counts of elements, in all and by group; groups in the order of the model."""

    trained: int
    total: int
    groups: tuple[ParameterGroup, ...]

    @property
    def percent(self) -> float:
        """The share of the parameters that is trained, in percent."""
        return 100 * self.trained / self.total if self.total else 0.0

    def __str__(self) -> str:
        rows = [(group.name, f"{group.trained:,}") for group in self.groups if group.trained]
        width = max((len(name) for name, _ in rows), default=0)
        head = f"trained: {self.trained:,} of {self.total:,} parameters ({self.percent:.4g}%)"
        return "\n".join([head, *(f"  {name:<{width}}  {count:>14}" for name, count in rows)])


def num_parameters(model: nn.Module) -> int:
    """The elements of all parameters; tied ones count once, packed ones as many as they stand for."""
    return sum(count for _, _, count in _elements(model))


def parameter_table(model: nn.Module) -> ParameterTable:
    """The parameters of a model grouped over its layers, and how many of them are trained; tied ones count once."""
    counts: dict[str, tuple[int, int]] = {}
    for name, is_trained, count in _elements(model):
        group = _NUMBER.sub("*", name)
        trained, total = counts.get(group, (0, 0))
        counts[group] = (trained + count * is_trained, total + count)
    groups = tuple(ParameterGroup(name, trained, total) for name, (trained, total) in counts.items())
    return ParameterTable(sum(group.trained for group in groups), sum(group.total for group in groups), groups)


def _elements(model: nn.Module) -> Iterator[tuple[str, bool, int]]:
    """Name, whether it is trained, and number of elements of each parameter.

    The weight of a quantized layer, which may be packed and no parameter at all, counts as the matrix it stands for.
    """
    packed: dict[str, Any] = {name: model.get_submodule(name) for name in quantized_layers(model)}
    for name, layer in packed.items():
        yield f"{name}.weight", False, layer.in_features * layer.out_features
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[0] not in packed or name.endswith(".bias"):
            yield name, parameter.requires_grad, size_of(parameter)
