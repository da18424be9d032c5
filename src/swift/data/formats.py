"""This file knows how a row becomes a conversation, by the columns it has, and how a conversation becomes a row again."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from swift.chat.messages import Conversation, Message
from swift.core.errors import DataError
from swift.data.columns import Format, Shape, shape_of
from swift.data.fields import MEDIA, read_extra, read_label, read_media, read_tools
from swift.data.rows import Row, RowError, shown
from swift.data.sides import OF_A_SIDE, read_documents, read_rejected
from swift.data.turns import Turns, read_history, read_messages, said


@dataclass
class Met:
    """What the rows of a run had, which no row alone can tell.

    columns: the names of their columns. unread_keys: the keys of messages that mean nothing. introduced: whether a row
    wanted a persona.
    """

    columns: set[str] = field(default_factory=set)
    unread_keys: set[str] = field(default_factory=set)
    introduced: bool = False

    def add(self, other: Met) -> None:
        """Put together with what others had."""
        self.columns |= other.columns
        self.unread_keys |= other.unread_keys
        self.introduced |= other.introduced


class ConversationReader:
    """Reads rows as conversations, by their columns.

    renamed: the user's `--columns`: name in the row -> new name, `_` hides.
    keep_others: whether columns that mean nothing here go into `Conversation.extra`
        (`--remove_unused_columns false`).
    form: how the conversations are written; None finds out by the columns.
    met: receives what the rows have.
    """

    def __init__(
        self, renamed: Mapping[str, str], *, keep_others: bool, form: Format | None = None, met: Met | None = None
    ) -> None:
        self.renamed = dict(renamed)
        self.keep_others = keep_others
        self.form: Format | None = form
        self.met = met or Met()
        self._shapes: dict[tuple[str, ...], Shape | RowError] = {}

    def read(self, row: Row) -> Conversation:
        """The conversation of a row.

        Raises RowError when this row is at fault: by what it says, or by columns that leave open what they are.
        """
        shape = self._shape(row)
        values = row.values
        turns = _turns(values, shape, self.met.unread_keys)
        _put_system(turns, _part(values, shape, "system"))
        if not turns.messages:
            raise RowError("", "has no message, query or response", f"columns: {', '.join(values)}")
        media = {name: _media(values, shape, name, turns) for name in MEDIA}
        standard = {name: values[column] for name, column in shape.standard.items()}
        extra = read_extra(standard)
        if self.keep_others:
            extra.update({name: values[column] for name, column in shape.others.items()})
        conversation = Conversation(
            messages=tuple(turns.messages),
            tools=read_tools(standard.get("tools")),
            images=media["images"],
            videos=media["videos"],
            audios=media["audios"],
            label=read_label(standard.get("label")),
            extra=extra,
        )
        if not shape.has_sides:
            return conversation
        standard["system"] = _part(values, shape, "system")
        return replace(
            conversation,
            rejected=read_rejected(standard, conversation, self._read_turns),
            positives=read_documents(standard, "positive", self._read_turns),
            negatives=read_documents(standard, "negative", self._read_turns),
        )

    def _read_turns(self, value: Any, path: str) -> Turns:
        return read_messages(value, path, self.met.unread_keys)

    def _shape(self, row: Row) -> Shape:
        columns = tuple(row.values)
        shape = self._shapes.get(columns)
        if shape is None:
            self.met.columns.update(columns)
            try:
                shape = shape_of(columns, self.renamed, self.form)
            except DataError as error:
                shape = RowError("", "its columns leave open what they are", str(error).rstrip("."))
            self._shapes[columns] = shape
        if isinstance(shape, RowError):
            raise RowError("", shape.reason, shape.detail)
        return shape


def as_row(conversation: Conversation) -> dict[str, Any]:
    """The conversation in the messages format, so that reading it again gives the same conversation."""
    row = _side_as_row(conversation)
    if conversation.label is not None:
        row["label"] = conversation.label
    if conversation.rejected is not None:
        row.update({f"rejected_{name}": value for name, value in _side_as_row(conversation.rejected).items()})
    for side, documents in (("positive", conversation.positives), ("negative", conversation.negatives)):
        sides = [_side_as_row(document) for document in documents]
        names = [name for name in OF_A_SIDE if any(name in each for each in sides)]
        row.update({f"{side}_{name}": [each.get(name) for each in sides] for name in names})
    return {**row, **conversation.extra}


def _side_as_row(conversation: Conversation) -> dict[str, Any]:
    """Messages, tools, media and objects, by the names of their columns."""
    side: dict[str, Any] = {"messages": [_as_dict(message) for message in conversation.messages]}
    for name in ("tools", *MEDIA):
        if value := getattr(conversation, name):
            side[name] = list(value)
    if "objects" in conversation.extra:
        side["objects"] = conversation.extra["objects"]
    return side


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


def _media(values: dict[str, Any], shape: Shape, name: str, turns: Turns) -> tuple[Any, ...]:
    return read_media(_part(values, shape, name), shape.parts.get(name, name), turns.media.get(name, []))
