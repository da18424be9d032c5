"""This file knows whether the saved states of an optimizer belong to the optimizer that is to go on with them.

torch takes whatever has as many parameters: states of another optimizer would be loaded, and what they lack would begin
at zero.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch.optim import Optimizer

from swift.core.errors import RunError
from swift.core.logs import get_logger

MADE_BY = "made_by"
"""The key under which a saved state names the class of its optimizer."""
FREE = {"params", "lr", "initial_lr", "param_names", "foreach", "fused", "capturable", "differentiable"}
"""Settings of a group that follow the schedule, or do not change what is computed."""
NOT_SAVED = ("LayerWiseDummyOptimizer", "Lomo", "AdaLomo")
"""Optimizers that keep their states where no checkpoint finds them."""


def mark(optimizer: Optimizer) -> None:
    """Let every saved state of this optimizer name its class."""
    name = type(optimizer).__name__
    optimizer.register_state_dict_post_hook(lambda _, saved: {**saved, MADE_BY: name})


def check_saved(file: Path, optimizer: Optimizer | AcceleratedOptimizer) -> None:
    """Compare the states in a checkpoint with the optimizer of this run; nothing to compare where there is no such file.

    Settings that differ are warned of: those of the checkpoint are what the run goes on with.

    Raises RunError when they are of another optimizer, or for other parameters.
    """
    if not file.is_file():
        return
    inner = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
    saved = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    name, made_by = type(inner).__name__, saved.get(MADE_BY)
    if name in NOT_SAVED:
        raise RunError(f"{file.parent} cannot be resumed: {name} keeps its states to itself, and they were not saved.")
    if made_by is not None and made_by != name:
        raise RunError(
            f"{file.parent} was saved by another optimizer, {made_by}, and this run has {name}. Use the --optim and "
            "--optimizer of the checkpoint, which its args.json names."
        )
    sizes = [[len(group["params"]) for group in groups] for groups in (saved["param_groups"], inner.param_groups)]
    if sizes[0] != sizes[1]:
        raise RunError(
            f"{file.parent} was saved with other groups of parameters (of {_listed(sizes[0])}, and this run has groups of "
            f"{_listed(sizes[1])}). Train the same parameters by the same --optimizer."
        )
    _warn_of_settings(saved["param_groups"], inner.param_groups)


def _warn_of_settings(saved: list[dict[str, Any]], now: list[dict[str, Any]]) -> None:
    told: set[str] = set()
    for old, new in zip(saved, now, strict=True):
        pairs = {name: (old[name], new[name]) for name in old.keys() & new.keys() - FREE}
        if "initial_lr" in old and "initial_lr" in new:
            pairs["learning_rate"] = (old["initial_lr"], new["initial_lr"])
        for name, (before, after) in sorted(pairs.items()):
            if _plain(before) != _plain(after) and name not in told:
                told.add(name)
                get_logger().warning(
                    "%s is %s in the checkpoint and %s in this run: a resumed run goes on with the checkpoint's",
                    name, before, after,
                )  # fmt: skip


def _plain(value: Any) -> Any:
    """Lists and tuples alike."""
    return tuple(value) if isinstance(value, list) else value


def _listed(sizes: list[int]) -> str:
    return " + ".join(str(size) for size in sizes)
