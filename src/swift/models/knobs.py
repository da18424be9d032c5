"""This file knows what to say of `--model_kwargs`: which knobs are turned, and which of them nobody is known to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swift.catalog.knobs import KNOBS
from swift.core import environment
from swift.core.logs import get_logger


def tell_knobs(given: Mapping[str, Any], family: str | None) -> None:
    """Log the knobs of `--model_kwargs`; warn of those that neither this family nor Swiftlet itself is known to read.

    They stand in the environment all the same, where the code of a plugin or of a checkpoint may read them.
    """
    known = knobs_of(family)
    for name in given:
        knob = name.upper()
        get_logger().info("model_kwargs: %s = %s", knob, environment.knob_text(given[name]))
        if knob in known or knob in environment.names():
            continue
        listed = ", ".join(sorted(known)) if known else "none"
        get_logger().warning(
            "--model_kwargs %s is no knob that models of the family %s are known to have (%s). It is set in the "
            "environment, and has an effect only if code of a plugin or of the checkpoint reads it there.",
            name, family or "of no name", listed,
        )  # fmt: skip


def knobs_of(family: str | None) -> frozenset[str]:
    """The names of the knobs that a family has, in capitals."""
    return frozenset(name for row in KNOBS if family in row.families for name in row.defaults)
