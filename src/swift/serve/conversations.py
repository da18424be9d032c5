"""This file knows how the messages of a request become a conversation that a renderer takes.

Roles are those of OpenAI (`developer` is `system`, `tool` answers a call) and those of rows. Systems that follow each
other are one, parted by an empty line; so are messages of the user. What an assistant message thought
(`reasoning_content`) is put back in front of what it said, so that a template that keeps thinking finds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from swift.chat.messages import Conversation, Message
from swift.core.errors import DataError
from swift.core.logs import get_logger
from swift.data.rows import RowError
from swift.data.turns import read_messages
from swift.serve.media import no_media
from swift.serve.refusals import Refusal

JOINED = ("system", "user")
"""Roles whose messages are one when they follow each other."""
ANSWERED = frozenset({"name", "refusal", "annotations", "audio", "function_call", "reasoning", "id", "index"})
"""Keys that stand in the messages of answers, and that clients send back: they say nothing to a template."""


class Conversations:
    """Reads messages. tags: what opens and closes what a reply thinks."""

    def __init__(self, tags: tuple[str, str] = ("<think>", "</think>")) -> None:
        self._tags = tags
        self._told: set[str] = set()

    def read(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[dict[str, Any]] = (), media: Sequence[Any] = ()
    ) -> Conversation:
        """The conversation of these messages. Raises Refusal that names the message.

        media: what was sent beside the messages.
        """
        unread: set[str] = set()
        try:
            turns = read_messages([self._plain(message) for message in messages], "messages", unread)
        except RowError as error:
            raise Refusal(
                400, f"{error}.", param=error.key_path or "messages", code="invalid_messages"
            ) from None  # fmt: skip
        self._tell(unread)
        if media or any(turns.media.values()):
            raise no_media()
        return Conversation(tuple(_joined(turns.messages)), tools=tuple(tools))

    def _plain(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message as rows write it."""
        plain = {name: value for name, value in message.items() if name not in ANSWERED}
        if plain.get("role") == "developer":
            plain["role"] = "system"
        thought = plain.pop("reasoning_content", None)
        if plain.get("role") != "assistant" or not isinstance(thought, str) or not thought.strip():
            return plain
        said = "" if plain.get("content") is None else plain["content"]
        opens, closes = self._tags
        if isinstance(said, str) and opens not in said:
            plain["content"] = f"{opens}\n{thought.strip()}\n{closes}\n\n{said.lstrip()}"
        return plain

    def _tell(self, unread: set[str]) -> None:
        fresh = unread - self._told
        if fresh and len(self._told) < 100:
            self._told |= fresh
            get_logger().warning("Keys of messages that mean nothing here: %.300s", ", ".join(map(repr, sorted(fresh))))


def _joined(messages: Sequence[Message]) -> list[Message]:
    """The messages, with systems, and messages of the user, that follow each other as one."""
    joined: list[Message] = []
    for role, run in groupby(messages, key=lambda message: message.role):
        some = list(run)
        if role in JOINED and len(some) > 1:
            joined.append(replace(some[0], content="\n\n".join(message.content for message in some)))
        else:
            joined += some
    return joined


def unrendered(error: DataError) -> Refusal:
    """What to say of a conversation that the template does not take."""
    return Refusal(400, str(error), param="messages", code="invalid_messages")
