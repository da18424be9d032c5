"""This file knows in which order people speak in a chat, and what a conversation may hold."""

from __future__ import annotations

from collections.abc import Sequence

from swift.chat.messages import Conversation, Message, Role
from swift.core.errors import DataError

_FOLLOWING: dict[Role | None, tuple[Role, ...]] = {
    None: ("user",),
    "system": ("user",),
    "user": ("assistant", "tool_call"),
    "assistant": ("user", "tool_call", "tool_response"),
    "tool_call": ("tool_response", "tool_call", "user"),
    "tool_response": ("assistant", "tool_call", "tool_response"),
}
"""Who may speak after whom; calls and results of tools may be several in a row."""


def check_contents(conversation: Conversation) -> None:
    """Refuse what cannot be rendered: nothing, media. Raises DataError."""
    if not conversation.messages:
        raise DataError("The conversation has no messages.")
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
    before = messages[start - 1].role if start else None
    for i, message in enumerate(messages[start:], start):
        wanted = _FOLLOWING[before]
        if message.role not in wanted:
            after = f"after the {before}" if before else "in front"
            raise DataError(f"Message {i + 1} is the {message.role}'s; {after} comes the {' or the '.join(wanted)}.")
        before = message.role
    last = messages[-1].role
    if is_answered and last not in ("assistant", "tool_call"):
        raise DataError(f"Message {len(messages)}, the last, is the {last}'s: there is no reply to learn.")
    if not is_answered and last not in ("user", "tool_response"):
        raise DataError(f"Message {len(messages)}, the last, is the {last}'s: there is nothing to reply to.")
