"""This file knows the tuners by name: what `--tuner_type` can be, and the classes that plugins add."""

from __future__ import annotations

from typing import Any

from swift.core.registry import Registry

BUILT_IN = (
    "lora", "full", "longlora", "adalora", "llamapro", "adapter", "vera", "boft", "fourierft", "reft", "bone",
)  # fmt: skip
"""The tuners that come along; they are no classes."""

TUNERS: Registry[Any] = Registry("tuner", dict.fromkeys(BUILT_IN))
"""`--tuner_type` -> None for a tuner that comes along, or a class like `Tuner` of plugins."""
