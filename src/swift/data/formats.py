"""This file knows how a row becomes a conversation, by the columns it has, and how a conversation becomes a row again."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from swift.chat.messages import Conversation, Message
from swift.core.errors import DataError
from swift.core.logs import get_logger
from swift.data.columns import Shape, shape_of
from swift.data.rows import Row, RowError, shown
from swift.data.turns import Turns, from_text, read_history, read_messages, said

_MEDIA = ("images", "videos", "audios")
_OWN_FIELDS = ("tools", "label", "rejected_response", "rejected_messages")
"""Standard columns that become fields of a conversation; the other standard ones travel in `extra`."""


class ConversationReader:
    """Reads the rows of one run as conversations.

    It keeps what one row alone cannot tell: the parts of columns for every set of columns seen, which of the user's
    `--columns` were met, and which keys of messages mean nothing.

    renamed: the user's `--columns`: name in the row -> new name, `_` hides.
    keep_others: whether columns that mean nothing here go into `Conversation.extra`
        (`--remove_unused_columns false`).
    """

    def __init__(self, renamed: Mapping[str, str], *, keep_others: bool) -> None:
        self.renamed = dict(renamed)
        self.keep_others = keep_others
        self._shapes: dict[tuple[str, ...], Shape] = {}
        self._unread_keys: set[str] = set()

    def read(self, row: Row) -> Conversation:
        """The conversation of a row.

        Raises RowError when this row is at fault, DataError when its columns leave open what they are.
        """
        shape = self._shape(row)
        values = row.values
        turns = _turns(values, shape, self._unread_keys)
        _put_system(turns, _part(values, shape, "system"))
        if not turns.messages:
            raise RowError("", "has no message, query or response", f"columns: {', '.join(values)}")
        media = {name: _media(values, shape, name, turns) for name in _MEDIA}
        standard = {name: values[column] for name, column in shape.standard.items()}
        extra = {name: value for name, value in standard.items() if name not in _OWN_FIELDS and value is not None}
        if self.keep_others:
            extra.update({name: values[column] for name, column in shape.others.items()})
        return Conversation(
            messages=tuple(turns.messages),
            tools=_tools(standard.get("tools")),
            images=media["images"],
            videos=media["videos"],
            audios=media["audios"],
            rejected=_rejected(turns.messages, standard, self._unread_keys),
            label=_label(standard.get("label")),
            extra=extra,
        )

    def finish(self) -> None:
        """Say what was not read; raise DataError when a column of `--columns` was in no row."""
        columns = {column for shape in self._shapes for column in shape}
        lower = {column.lower() for column in columns}
        absent = [name for name in self.renamed if name.lower() not in lower]
        if absent and columns:
            raise DataError(
                f"--columns names {', '.join(absent)}, and no row has such a column. "
                f"There are: {', '.join(sorted(columns))}."
            )
        if self._unread_keys:
            keys = ", ".join(sorted(self._unread_keys))
            get_logger().warning("these keys of messages mean nothing here and were not read: %s", keys)

    def _shape(self, row: Row) -> Shape:
        columns = tuple(row.values)
        shape = self._shapes.get(columns)
        if shape is None:
            try:
                shape = shape_of(columns, self.renamed)
            except DataError as error:
                raise DataError(f"{row.file}:{row.line}: {error}") from None
            self._shapes[columns] = shape
        return shape


def as_row(conversation: Conversation) -> dict[str, Any]:
    """The conversation in the messages format, so that reading it again gives the same conversation."""
    row: dict[str, Any] = {"messages": [_as_dict(message) for message in conversation.messages]}
    for name in ("tools", *_MEDIA):
        if value := getattr(conversation, name):
            row[name] = list(value)
    if conversation.rejected is not None:
        row["rejected_response"] = [_as_dict(message) for message in conversation.rejected]
    if conversation.label is not None:
        row["label"] = conversation.label
    return {**row, **conversation.extra}


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows as a jsonl file; bytes are written in base64, and what JSON has no word for as its text."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, default=_plain) + "\n")


def _plain(value: Any) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _as_dict(message: Message) -> dict[str, Any]:
    return message.as_dict() if message.loss is None else {**message.as_dict(), "loss": message.loss}


# ---------------------------------------------------------------------------------------------------------- formats


def _turns(values: dict[str, Any], shape: Shape, unread: set[str]) -> Turns:
    column = shape.parts.get("messages")
    if column is None:
        return _ask_and_reply(values, shape)
    if values[column] is None:
        raise RowError(column, "is null")
    return read_messages(values[column], column, unread)


def _ask_and_reply(values: dict[str, Any], shape: Shape) -> Turns:
    """History, query, reply; what is null is left out. Of several replies in a list, the first."""
    is_alpaca = shape.format == "alpaca"
    query = _instruction(values, shape) if is_alpaca else _part(values, shape, "query")
    messages = read_history(_part(values, shape, "history"))
    messages += said(query, "user", shape.parts.get("instruction" if is_alpaca else "query", "query"))
    response, column = _part(values, shape, "response"), shape.parts.get("response", "response")
    if isinstance(response, list):
        if not response:
            raise RowError(column, "is an empty list")
        response, column = response[0], f"{column}[0]"
    return Turns(messages + said(response, "assistant", column))


def _instruction(values: dict[str, Any], shape: Shape) -> str | None:
    """The query of an alpaca row: instruction, newline, input; the one that is not empty where the other is."""
    texts = []
    for part in ("instruction", "input"):
        text = _part(values, shape, part)
        if text is not None and not isinstance(text, str):
            raise RowError(part, "is no text", shown(text))
        texts.append(text)
    if texts == [None, None]:
        return None
    return "\n".join(text for text in texts if text)


def _part(values: dict[str, Any], shape: Shape, part: str) -> Any:
    column = shape.parts.get(part)
    return None if column is None else values[column]


def _put_system(turns: Turns, system: Any) -> None:
    """A system column goes in front, unless the messages begin with a system of their own."""
    if system is None or (turns.messages and turns.messages[0].role == "system"):
        return
    turns.messages[:0] = said(system, "system", "system")


# ------------------------------------------------------------------------------------------------------ other columns


def _media(values: dict[str, Any], shape: Shape, name: str, turns: Turns) -> tuple[Any, ...]:
    """References to media: one or a list of them, from a column of their own or from inside the messages."""
    value = _part(values, shape, name)
    inside = turns.media.get(name, [])
    if value is None or value in ("", []):
        return tuple(inside)
    if inside:
        raise RowError(name, "stands both inside the messages and in a column of its own")
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _tools(value: Any) -> tuple[dict[str, Any], ...]:
    """JSON schemas of tools; a list, one tool or the text of either; bare functions are wrapped."""
    if isinstance(value, str) and value.strip():
        value = from_text(value, "tools")
    if not value:
        return ()
    tools = []
    for index, tool in enumerate([value] if isinstance(value, dict) else value):
        path = f"tools[{index}]"
        schema = from_text(tool, path) if isinstance(tool, str) else tool
        if not isinstance(schema, dict):
            raise RowError(path, "is no object that describes a function", shown(schema))
        tools.append(schema if "function" in schema else {"type": "function", "function": schema})
    return tuple(tools)


def _label(value: Any) -> bool | int | float | list[float] | None:
    """A class, score, desirability, or several of them; text is read as JSON, for files that have only text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise RowError("label", "is no number, true, false or list of numbers", shown(value)) from None
    numbers = value if isinstance(value, list) else [value]
    if value is not None and not all(isinstance(x, (bool, int, float)) and math.isfinite(x) for x in numbers):
        raise RowError("label", "is no number, true, false or list of numbers", shown(value))
    return value


def _rejected(chosen: list[Message], standard: Mapping[str, Any], unread: set[str]) -> tuple[Message, ...] | None:
    """What was preferred less than the messages after the last user turn."""
    if standard.get("rejected_messages") is not None:
        return _rejected_messages(chosen, standard["rejected_messages"], unread)
    if "rejected_response" not in standard:
        return None
    value = standard["rejected_response"]
    if value is None:
        raise RowError("rejected_response", "is null")
    if isinstance(value, list):
        rejected = read_messages(value, "rejected_response", unread).messages
        if any(message.role == "user" for message in rejected):
            raise RowError("rejected_response", "is a reply and must hold no user message")
    else:
        rejected = said(value, "assistant", "rejected_response")
    if [m.content for m in rejected] == [m.content for m in _reply(chosen)]:
        raise RowError("rejected_response", "equals the response", shown(rejected[0].content))
    return tuple(rejected)


def _rejected_messages(chosen: list[Message], value: Any, unread: set[str]) -> tuple[Message, ...]:
    """The reply of a whole conversation that was preferred less and begins like the chosen one."""
    rejected = read_messages(value, "rejected_messages", unread).messages
    asked = [message for message in chosen[: len(chosen) - len(_reply(chosen))] if message.role != "system"]
    other = [message for message in rejected[: len(rejected) - len(_reply(rejected))] if message.role != "system"]
    if [(m.role, m.content) for m in asked] != [(m.role, m.content) for m in other]:
        raise RowError("rejected_messages", "differs from messages before the last reply already")
    return tuple(_reply(rejected))


def _reply(messages: list[Message]) -> list[Message]:
    """What comes after the last user turn."""
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].role in ("user", "system"):
            return messages[index + 1 :]
    return messages
