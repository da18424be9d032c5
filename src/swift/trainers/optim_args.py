"""This file knows `--optim_args`: settings of an optimizer written as `name=value,name=value`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from swift.core.errors import UsageError
from swift.core.registry import did_you_mean

Kind = Literal["int", "float", "bool", "str"]


def read_optim_args(text: str | None, kinds: Mapping[str, Kind], optimizer: str) -> dict[str, Any]:
    """The settings by name, each of its kind.

    optimizer: what takes them, for messages: `--optimizer muon`.

    Raises UsageError for a text of another form, a name that is not in `kinds`, and a value of another kind.
    """
    settings: dict[str, Any] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise UsageError(f"--optim_args {text}: {part.strip()!r} is not of the form name=value.")
        if name not in kinds:
            raise UsageError(_unknown(name, kinds, optimizer))
        if name in settings:
            raise UsageError(f"--optim_args {text}: {name} is given twice.")
        settings[name] = _value(name, value, kinds[name])
    return settings


def _value(name: str, text: str, kind: Kind) -> Any:
    if kind == "bool" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        if kind == "int":
            return int(text)
        if kind == "float":
            return float(text)
    except ValueError:
        pass
    if kind == "str":
        return text
    expected = {"int": "a whole number", "float": "a number", "bool": "true or false"}[kind]
    raise UsageError(f"--optim_args {name}={text}: must be {expected}.")


def _unknown(name: str, kinds: Mapping[str, Kind], optimizer: str) -> str:
    if not kinds:
        return f"--optim_args {name}: {optimizer} takes no further settings. Remove it."
    guess = did_you_mean(name, kinds)
    return f"--optim_args {name}: {optimizer} has no such setting.{guess} There are: {', '.join(sorted(kinds))}."
