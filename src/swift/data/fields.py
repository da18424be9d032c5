"""This file knows what the columns beside the conversation hold: media, tools, labels, margins, channels."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from swift.data.rows import RowError, shown
from swift.data.turns import from_text

MEDIA = ("images", "videos", "audios")
"""The kinds of media, as their columns are called."""

Label = bool | int | float | list[Any] | None


def read_media(value: Any, column: str, inside: list[Any]) -> tuple[Any, ...]:
    """References to media of one kind: one, a list, or those that stood `inside` the messages. Raises RowError."""
    if value is None or value in ("", []):
        return tuple(inside)
    if inside:
        raise RowError(column, "stands both inside the messages and in a column of its own")
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def read_tools(value: Any, column: str = "tools") -> tuple[dict[str, Any], ...]:
    """JSON schemas of tools; a list, one tool or the text of either; bare functions are wrapped. Raises RowError."""
    if isinstance(value, str) and value.strip():
        value = from_text(value, column)
    if not value:
        return ()
    if not isinstance(value, (list, tuple, dict)):
        raise RowError(column, "is no list of objects that describe functions", shown(value))
    tools = []
    for index, tool in enumerate([value] if isinstance(value, dict) else value):
        path = f"{column}[{index}]"
        schema = from_text(tool, path) if isinstance(tool, str) else tool
        if not isinstance(schema, dict) or not schema:
            raise RowError(path, "is no object that describes a function", shown(schema))
        tools.append(schema if "function" in schema else {"type": "function", "function": schema})
    return tuple(tools)


def read_label(value: Any) -> Label:
    """A class, score, desirability, or several of them; text is read as JSON, for files that have only text.

    Raises RowError for anything else.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise RowError("label", "is no number, true, false or list of numbers", shown(value)) from None
    numbers = value if isinstance(value, list) else [value]
    if value is not None and not all(isinstance(x, (bool, int, float)) and math.isfinite(x) for x in numbers):
        raise RowError("label", "is no number, true, false or list of numbers", shown(value))
    return value


def read_extra(standard: Mapping[str, Any]) -> dict[str, Any]:
    """The standard columns that travel beside a conversation, where they are given. Raises RowError."""
    extra = {}
    for name, read in _TRAVELLING.items():
        value = standard.get(name)
        if value is not None:
            extra[name] = read(value)
    return extra


def _channel(value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise RowError("channel", "is no text", shown(value))
    return value


def _margin(value: Any) -> float:
    try:
        margin = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except ValueError:
        margin = math.nan
    if not math.isfinite(margin):
        raise RowError("margin", "is no number", shown(value))
    return margin


def _objects(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        value = from_text(value, "objects")
    if not isinstance(value, dict):
        raise RowError("objects", "is no object with ref and bbox", shown(value))
    return value


_TRAVELLING = {"channel": _channel, "margin": _margin, "objects": _objects}
