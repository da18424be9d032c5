"""This file knows the JSON schema of a command, with which an editor completes and checks a configuration file."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from swift.options.declare import Command, Flag, flags
from swift.options.parse import EXTRA_TYPES
from swift.options.training_extra import TRAINING_EXTRA


def schema(command: type[Command]) -> dict[str, Any]:
    """The schema of a YAML or JSON file for `--config`: every option with its type, default and meaning."""
    properties = {flag.name: _property(flag) for flag in flags(command).values()}
    if command.name in ("pt", "sft", "rlhf"):
        for name, kind in TRAINING_EXTRA.items():
            about = "A training argument of transformers, passed on as it is."
            properties[name] = {**TypeAdapter(EXTRA_TYPES[kind]).json_schema(), "description": about}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"swift {command.name}",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def _property(flag: Flag) -> dict[str, Any]:
    made = TypeAdapter(flag.annotation).json_schema()
    if flag.is_list:
        item = made.get("items") or next((arm["items"] for arm in made.get("anyOf", ()) if "items" in arm), {})
        made = {"anyOf": [{"type": "array", "items": item}, item, {"type": "null"}]}
    flag.marks(made)
    return {**made, "description": flag.help, "default": flag.default}
