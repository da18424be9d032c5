"""This file knows where a reply thinks and where it answers, and edits conversations accordingly."""

from __future__ import annotations

import re
from dataclasses import replace

from swift.chat.messages import Conversation, Message

EMPTY_THINKING = re.compile(r"\s*(?:<think>\s*)?</think>\n{0,2}")
"""A block of thinking in which nothing is thought, with the newlines that part it from the answer; its opening tag may
stand in the prompt."""
OPENING = re.compile(r"(?:<think>\s*(?:</think>\s*)?|</think>\s*)\Z")
"""What a prompt ends with when it has begun the reply already: a block of thinking, opened or closed."""


def split_thinking(reply: str) -> tuple[str, str]:
    """The reply up to and with its last `</think>` and the white space after it, and the answer that follows."""
    at = reply.rfind("</think>")
    if at < 0:
        return "", reply
    at += len("</think>")
    while at < len(reply) and reply[at].isspace():
        at += 1
    return reply[:at], reply[at:]


def thoughts(reply: str) -> str:
    """What is thought in a reply, without tags and outer white space; "" when nothing is."""
    return split_thinking(reply)[0].replace("<think>", "").replace("</think>", "").strip()


def last_user(messages: tuple[Message, ...]) -> int:
    """The index of the last message of the user; -1 when there is none."""
    return max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)


def add_non_thinking_prefix(conversation: Conversation, prefix: str, *, last_round: bool) -> Conversation:
    """Put `prefix` in front of replies that do not think; `last_round` leaves those before the last user alone."""
    after = last_user(conversation.messages) if last_round else -1

    def edited(i: int, message: Message) -> Message:
        if message.role != "assistant" or i < after or message.content.startswith(("<think>", prefix)):
            return message
        return replace(message, content=prefix + message.content)

    return replace(conversation, messages=tuple(edited(i, m) for i, m in enumerate(conversation.messages)))


def strip_history(conversation: Conversation, history_prefix: str) -> Conversation:
    """Remove the thinking of replies before the last user; `history_prefix` stands in its place, or in front."""
    before = last_user(conversation.messages)

    def edited(i: int, message: Message) -> Message:
        if message.role != "assistant" or i > before:
            return message
        head, answer = split_thinking(message.content)
        return replace(message, content=history_prefix + (answer.strip() if head else answer))

    return replace(conversation, messages=tuple(edited(i, m) for i, m in enumerate(conversation.messages)))
