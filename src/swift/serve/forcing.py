"""This file knows how a model is made to call a tool: its reply is begun as a call, and has to go on as one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from swift.chat.calls import ToolCall
from swift.chat.tools import Tool, ToolFormat, dumps
from swift.engines.base import Structure
from swift.serve.refusals import Refusal

MARKED = {"Qk1": "Qv1"}
"""Arguments that are found again in the words of a call."""
DEFINITIONS = ("$defs", "definitions")
AS_TAUGHT = {
    "x-guidance": {
        "whitespace_flexible": False, "whitespace_pattern": "", "item_separator": ", ", "key_separator": ": ",
    }
}  # fmt: skip
"""JSON as `dumps` writes it, which is how models were taught to write arguments; with free white space a small model
writes nothing else."""


@dataclass(frozen=True)
class Forced:
    """A call that has to be made.

    prefix: how the reply begins, in the words of the format. structure: what follows.
    name: the tool whose arguments follow; "" when an object with `name` and `arguments` does.
    """

    prefix: str
    structure: Structure
    name: str


def forced(form: ToolFormat | None, tools: Sequence[Tool]) -> Forced:
    """The one tool, or any of several, that has to be called. Raises Refusal for schemas that exclude each other.

    Where the format writes calls in JSON, the model is led up to it in the words it was taught; elsewhere the reply is
    JSON from its beginning.
    """
    first = tools[0]["function"]
    text = form.write([ToolCall(first["name"], dict(MARKED))]) if form is not None else ""
    if len(tools) == 1:
        before, found, _ = text.partition(dumps(MARKED))
        return Forced(
            before if found else "", Structure(json_schema={**_parameters(first), **AS_TAUGHT}), first["name"]
        )
    return Forced(_before_object(text), Structure(json_schema=_any_of(tools)), "")


def _before_object(text: str) -> str:
    """What stands in front of a call that is an object with `name` and `arguments` and nothing else; else ""."""
    at = text.find("{")
    if at < 0:
        return ""
    try:
        value, _ = json.JSONDecoder().raw_decode(text, at)
    except ValueError:
        return ""
    return text[:at] if list(value) == ["name", "arguments"] else ""


def _any_of(tools: Sequence[Tool]) -> dict[str, Any]:
    """The schema of a call of any of the tools. Definitions that their schemas refer to stand at its root."""
    root: dict[str, Any] = {}
    calls = []
    for tool in tools:
        name, schema = tool["function"]["name"], _parameters(tool["function"])
        for key in DEFINITIONS:
            for word, meant in (schema.pop(key, None) or {}).items():
                if root.setdefault(key, {}).setdefault(word, meant) != meant:
                    raise Refusal(400, f"Two of the `tools` mean different things by {key}/{word}.", param="tools")
        properties = {"name": {"const": name}, "arguments": schema}
        calls.append({
            "type": "object", "properties": properties, "required": ["name", "arguments"],
            "additionalProperties": False,
        })  # fmt: skip
    return {"anyOf": calls, **root, **AS_TAUGHT}


def _parameters(function: dict[str, Any]) -> dict[str, Any]:
    """The schema of the arguments of a function: an object, if it says nothing."""
    return {"type": "object", **(function.get("parameters") or {})}
