"""This file knows what a default is that follows from other options, and how many processes there will be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from swift.core import environment
from swift.options.conditions import Values
from swift.options.device_groups import processes_on_ray

Derived = tuple[Any, str] | None
"""A value and why it was chosen."""
Derives = Callable[[Values], Derived]


class Derivations:
    """Functions that derive options, by name; filled by decorating them with it."""

    def __init__(self) -> None:
        self.rows: dict[str, Derives] = {}

    def __call__(self, name: str) -> Callable[[Derives], Derives]:
        """Register the function below as that which derives the option `name`."""

        def register(function: Derives) -> Derives:
            self.rows[name] = function
            return function

        return register


def processes() -> int:
    """The number of processes of this run: those there are, or before the launch those that are asked for."""
    if environment.WORLD_SIZE.is_set():
        return environment.world_size()
    return (environment.NPROC_PER_NODE.integer() or 1) * (environment.NNODES.integer() or 1)


def training_processes(values: Values) -> int:
    """As `processes`; with `--use_ray`, before they are there, as many as the group that trains has ranks."""
    on_ray = None if environment.WORLD_SIZE.is_set() else processes_on_ray(values)
    return on_ray or processes()
