"""This file knows in which order people speak in a chat, and what a conversation may hold."""

from __future__ import annotations

from collections.abc import Sequence

from swift.chat.messages import Conversation, Message
from swift.core.errors import DataError


def check_contents(conversation: Conversation) -> None:
    """Refuse what cannot be rendered: nothing, tools, media. Raises DataError."""
    if not conversation.messages:
        raise DataError("The conversation has no messages.")
    if conversation.tools or any(m.role in ("tool_call", "tool_response") for m in conversation.messages):
        raise DataError("not available yet: tools (`tools`, and messages of the roles tool_call and tool_response).")
    for kind, media in (
        ("images", conversation.images),
        ("videos", conversation.videos),
        ("audios", conversation.audios),
    ):
        if media:
            raise DataError(f"not available yet: {kind} in conversations.")


def check_turns(messages: Sequence[Message], *, is_chat: bool, is_answered: bool) -> None:
    """Refuse an order of speakers that no chat has. Plain text may come in any order, but has no place for a system.

    is_answered: whether the last word must be the assistant's, to learn it, or the user's, to reply to it.
    Raises DataError that names the message.
    """
    if not is_chat:
        if messages[0].role == "system":
            raise DataError(
                "Message 1 is a system message, which plain text has no place for (--use_chat_template false)."
            )
        return
    start = 1 if messages[0].role == "system" else 0
    for i, message in enumerate(messages[start:], start):
        wanted = "assistant" if (i - start) % 2 else "user"
        if message.role != wanted:
            after = f"after the {messages[i - 1].role}" if i else "in front"
            raise DataError(f"Message {i + 1} is the {message.role}'s; {after} comes the {wanted}.")
    last = messages[-1].role
    if is_answered and last != "assistant":
        raise DataError(f"Message {len(messages)}, the last, is the {last}'s: there is no reply to learn.")
    if not is_answered and last != "user":
        raise DataError(f"Message {len(messages)}, the last, is the {last}'s: there is nothing to reply to.")
