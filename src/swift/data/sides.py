"""This file knows the other sides of a row: what was preferred less, and the documents that match or do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from swift.chat.messages import Conversation, Message
from swift.data.fields import MEDIA, read_media, read_tools
from swift.data.rows import RowError, shown
from swift.data.turns import Turns, from_text, said

ReadTurns = Callable[[Any, str], Turns]
"""What reads a value as messages; the second argument is its place in the row."""

OF_A_SIDE = ("messages", *MEDIA, "tools", "objects")
"""What a side may have of its own, each in a column as `rejected_messages`."""


def read_rejected(standard: Mapping[str, Any], chosen: Conversation, read: ReadTurns) -> Conversation | None:
    """The conversation that was preferred less; None when the row has none.

    `rejected_messages` is all of it: nothing is taken over from the chosen side, except the `system` column. Without
    it, the rejected side is the chosen one with `rejected_response` in place of its reply, and with the media and
    tools that are given for it.

    standard: the standard columns of the row, by their standard names.
    Raises RowError, also when both sides are the same.
    """
    own = {name: standard.get(f"rejected_{name}") for name in OF_A_SIDE}
    whole, reply = own["messages"], standard.get("rejected_response")
    if whole is not None and reply is not None:
        raise RowError("rejected_response", "stands beside rejected_messages, which is the losing side already")
    if whole is not None:
        rejected = _side(own, "rejected_", None, read)
        if rejected.system is None and (system := standard.get("system")) is not None:
            rejected = replace(rejected, messages=(*said(system, "system", "system"), *rejected.messages))
        same = "rejected_messages"
    else:
        if reply is None and all(value is None for value in own.values()):
            if "rejected_response" in standard:
                raise RowError("rejected_response", "is null")
            return None
        messages = chosen.messages if reply is None else _with_reply(chosen.messages, reply, read)
        given = {name: value for name, value in own.items() if value is not None}
        rejected = replace(chosen, messages=messages, **_belongings(given, "rejected_", chosen.extra))
        same = "rejected_response" if reply is not None else next(f"rejected_{name}" for name in given)
    if _compared(rejected) == _compared(chosen):
        words = "equals the response" if same == "rejected_response" else "equals the chosen side"
        raise RowError(same, words, shown(rejected.messages[-1].content))
    return rejected


def read_documents(standard: Mapping[str, Any], side: str, read: ReadTurns) -> tuple[Conversation, ...]:
    """The documents of `positive_messages` or `negative_messages`, each a list of messages, with media of their own.

    Element i of every column `positive_...` belongs to document i; a column that is null belongs to none.
    Raises RowError.
    """
    prefix = f"{side}_"
    columns = {name: standard.get(f"{prefix}{name}") for name in OF_A_SIDE}
    columns = {name: _listed(value, f"{prefix}{name}") for name, value in columns.items() if value is not None}
    if "messages" not in columns:
        if columns:
            raise RowError(f"{prefix}{next(iter(columns))}", f"belongs to no document: {prefix}messages is missing")
        return ()
    count = len(columns["messages"])
    for name, values in columns.items():
        if len(values) != count:
            raise RowError(f"{prefix}{name}", "has not one element per document", f"{len(values)} for {count}")
    documents = []
    for index in range(count):
        own = {name: values[index] for name, values in columns.items()}
        if isinstance(own["messages"], dict):
            raise RowError(f"{prefix}messages[{index}]", "is one message; every document is a list of messages")
        documents.append(_side(own, prefix, index, read))
    return tuple(documents)


def _side(own: Mapping[str, Any], prefix: str, index: int | None, read: ReadTurns) -> Conversation:
    """A conversation made of its own columns alone. `index`: the element of the columns it comes from, for messages."""
    suffix = "" if index is None else f"[{index}]"
    turns = read(own["messages"], f"{prefix}messages{suffix}")
    given = {name: value for name, value in own.items() if value is not None and name != "messages"}
    side = Conversation(tuple(turns.messages), **_belongings(given, prefix, {}, suffix))
    inside = {}
    for kind, found in turns.media.items():
        if getattr(side, kind):
            raise RowError(f"{prefix}{kind}{suffix}", "stands both inside the messages and in a column of its own")
        inside[kind] = tuple(found)
    return replace(side, **inside) if inside else side


def _belongings(given: Mapping[str, Any], prefix: str, extra: Mapping[str, Any], suffix: str = "") -> dict[str, Any]:
    """Media, tools and objects as the fields of a conversation."""
    fields: dict[str, Any] = {
        kind: read_media(given[kind], f"{prefix}{kind}{suffix}", []) for kind in MEDIA if kind in given
    }
    if "tools" in given:
        fields["tools"] = read_tools(given["tools"], f"{prefix}tools{suffix}")
    if "objects" in given:
        fields["extra"] = {**extra, "objects": given["objects"]}
    return fields


def _with_reply(chosen: Sequence[Message], value: Any, read: ReadTurns) -> tuple[Message, ...]:
    """The chosen messages with another reply: a text, or messages.

    What is replaced comes after the last turn of the user or of a tool. Messages that bring tool responses of their
    own tell everything that happened after the last turn of the user, and replace all of that.
    """
    if isinstance(value, (list, tuple)):
        reply = read(value, "rejected_response").messages
    else:
        reply = said(value, "assistant", "rejected_response")
    if any(message.role in ("user", "system") for message in reply):
        raise RowError("rejected_response", "is a reply and must hold no user or system message")
    askers = ("user", "system") if any(message.role == "tool_response" for message in reply) else _ASKERS
    return (*chosen[: _end_of_question(chosen, askers)], *reply)


_ASKERS = ("user", "system", "tool_response")


def _end_of_question(messages: Sequence[Message], askers: Sequence[str]) -> int:
    """Where the reply begins."""
    return next((i + 1 for i in range(len(messages) - 1, -1, -1) if messages[i].role in askers), 0)


def _listed(value: Any, column: str) -> list[Any]:
    if isinstance(value, str):
        value = from_text(value, column)
    if not isinstance(value, (list, tuple)):
        raise RowError(column, "is no list with an element per document", shown(value))
    return list(value)


def _compared(side: Conversation) -> tuple[object, ...]:
    """What makes two sides differ."""
    spoken = [(message.role, message.content) for message in side.messages]
    return spoken, side.images, side.videos, side.audios, side.tools, side.extra.get("objects")
