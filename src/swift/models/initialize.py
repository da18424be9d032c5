"""This file knows how parameters that a checkpoint lacks, or holds no usable numbers for, are given their first values.

Axes: I inputs and O outputs of a matrix O x I.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from swift.core.errors import ModelError
from swift.core.logs import get_logger

FAR = 1e7
"""|mean| / deviation beyond which numbers are taken for what happened to stand in memory."""

Fill = Callable[[Tensor], object]


def _kaiming_uniform(values: Tensor) -> Tensor:
    return nn.init.kaiming_uniform_(values, a=0.1, mode="fan_out", nonlinearity="leaky_relu")


def _kaiming_normal(values: Tensor) -> Tensor:
    return nn.init.kaiming_normal_(values, mode="fan_in", nonlinearity="relu")


FILLS: dict[str, tuple[Fill, bool]] = {
    "zero": (nn.init.zeros_, False),
    "uniform": (lambda values: nn.init.uniform_(values, -0.1, 0.1), False),
    "normal": (lambda values: nn.init.normal_(values, 0.0, 0.01), False),
    "xavier_uniform": (nn.init.xavier_uniform_, True),
    "xavier_normal": (nn.init.xavier_normal_, True),
    "kaiming_uniform": (_kaiming_uniform, True),
    "kaiming_normal": (_kaiming_normal, True),
    "orthogonal": (nn.init.orthogonal_, True),
}
"""--init_strategy -> what fills a parameter, and whether it knows matrices only.

Uniform on [-0.1, 0.1]; normal with deviation 0.01; Glorot and Bengio 2010 (variance 2 / (I + O)); He et al. 2015
(uniform: over O, for leaky ReLU of slope 0.1; normal: over I, for ReLU, variance 2 / I); Saxe et al. 2013.
"""


def fill_missing(model: nn.Module, missing: Iterable[str], strategy: str) -> list[str]:
    """Fill the parameters that the checkpoint lacks, and those without usable numbers; the names of what was filled.

    missing: names of parameters. With a strategy for matrices, vectors are filled with what changes nothing: scales of
    a normalisation with 1, all other vectors with 0. Raises ModelError for a parameter that is not in memory.
    """
    lacking = set(missing)
    fill, for_matrices = FILLS[strategy]
    filled = []
    for name, parameter in model.named_parameters():
        if name not in lacking and not is_unusable(parameter):
            continue
        if parameter.is_meta:
            raise ModelError(
                f"--init_strategy cannot fill {name}, which is offloaded to disk. Use another --device_map."
            )
        with torch.no_grad():
            if for_matrices and parameter.dim() < 2:
                parameter.fill_(float(_is_scale(model, name)))
            else:
                _filled(parameter, fill)
        filled.append(name)
    if filled:
        get_logger().info("init_strategy %s filled %d parameters: %s", strategy, len(filled), ", ".join(filled))
    else:
        get_logger().warning("--init_strategy %s filled nothing: the checkpoint holds every parameter.", strategy)
    return filled


def is_unusable(parameter: Tensor) -> bool:
    """Whether the numbers of a parameter are none: infinite, not a number, or all far from zero and near each other.

    The last is |mean| / deviation > 10^7, which the random bits of fresh memory give and weights do not. Constant
    vectors such as the ones of a new normalisation are weights.
    """
    if parameter.is_meta or not parameter.is_floating_point() or parameter.numel() == 0:
        return False
    values = parameter.detach().double()
    if not bool(values.isfinite().all()):
        return True
    mean, deviation = float(values.mean()), float(values.std(correction=0))
    return deviation > 0 and abs(mean) / deviation > FAR


def _filled(parameter: nn.Parameter, fill: Fill) -> None:
    """Fill through float32, which some of the formulas need, and the parameter's own type may be half of."""
    values = torch.empty(parameter.shape, dtype=torch.float32, device=parameter.device)
    fill(values)
    parameter.copy_(values)


def _is_scale(model: nn.Module, name: str) -> bool:
    """Whether a vector is the scale of a normalisation: models bring classes of their own, the name decides."""
    owner, _, last = name.rpartition(".")
    return last == "weight" and "norm" in type(model.get_submodule(owner)).__name__.lower()
