"""This file knows how weights look that ZeRO stage 3 has partitioned: empty here, and whole inside `whole`.

Everybody else may ask a parameter for its shape; under ZeRO-3 the answer is that of a placeholder.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from swift.core.extras import need
from swift.core.logs import get_logger


def is_partitioned(parameter: Tensor) -> bool:
    """Whether this process has a part of the parameter only."""
    return "ds_shape" in vars(parameter)


def shape_of(parameter: Tensor) -> tuple[int, ...]:
    """The shape of a parameter, partitioned or not."""
    return tuple(vars(parameter).get("ds_shape", parameter.shape))


def size_of(parameter: Tensor) -> int:
    """The number of elements of a parameter, partitioned or not."""
    return math.prod(shape_of(parameter))


def gather_experts_together(model: nn.Module) -> None:
    """Let ZeRO-3 gather a block of experts as one; nothing to do where weights are not partitioned.

    Which experts a batch needs differs between processes, and a process that waits for another one to gather a weight it
    does not need itself would wait for ever.
    """
    blocks = {type(block) for block in model.modules() if "experts" in dict(block.named_children())}
    if blocks and any(is_partitioned(parameter) for parameter in model.parameters()):
        utils: Any = need("deepspeed.utils", "--deepspeed")
        utils.set_z3_leaf_modules(model, list(blocks))
        get_logger().info("ZeRO-3 gathers each %s as one", ", ".join(sorted(block.__name__ for block in blocks)))


def whole(parameters: Iterable[Tensor], *, changed: bool = False) -> AbstractContextManager[Any]:
    """Hold these parameters whole on every process; on leaving they are partitioned again.

    changed: what the first process has written into them meanwhile is kept, for all. All processes enter together.
    """
    partitioned = [parameter for parameter in parameters if is_partitioned(parameter)]
    if not partitioned:
        return nullcontext()
    zero: Any = need("deepspeed", "--deepspeed").zero
    return zero.GatheredParameters(partitioned, modifier_rank=0 if changed else None)
