"""This file knows where a reply thinks and where it answers, and edits conversations accordingly."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

from swift.chat.messages import Conversation, Message

EMPTY_THINKING = re.compile(r"\s*(?:<think>\s*)?</think>\n{0,2}")
"""A block of thinking in which nothing is thought, with the newlines that part it from the answer; its opening tag may
stand in the prompt."""
OPENING = re.compile(r"(?:<think>\s*(?:</think>\s*)?|</think>\s*)\Z")
"""What a prompt ends with when it has begun the reply already: a block of thinking, opened or closed."""

FRAME_END = "</response>"
"""What closes the answer of models that put tags around it."""
_FRAMED = re.compile(r"(<response>\n?)(.*?)(\n?</response>)", re.DOTALL)


def split_thinking(reply: str) -> tuple[str, str]:
    """The reply up to and with its last `</think>` and the white space after it, and the answer that follows."""
    at = reply.rfind("</think>")
    if at < 0:
        return "", reply
    at += len("</think>")
    while at < len(reply) and reply[at].isspace():
        at += 1
    return reply[:at], reply[at:]


def split_reply(reply: str) -> tuple[str, str, str]:
    """What stands in front of the answer of a reply, the answer, and what stands behind it.

    In front: thinking, messages on other channels (<|channel|> ... <|message|>), the tag that opens a framed answer.
    """
    if reply.startswith("<|channel|>") and "<|message|>" in reply:
        at = reply.rindex("<|message|>") + len("<|message|>")
        return reply[:at], reply[at:], ""
    head, answer = split_thinking(reply)
    framed = _FRAMED.fullmatch(answer)
    return (head + framed[1], framed[2], framed[3]) if framed else (head, answer, "")


def thoughts(reply: str) -> list[str]:
    """What is thought in a reply, block by block and without outer white space; calls between blocks count as well."""
    return [part.strip() for part in re.split("</?think>", split_thinking(reply)[0]) if part.strip()]


def last_user(messages: tuple[Message, ...]) -> int:
    """The index of the last message of the user; -1 when there is none."""
    return max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)


def add_non_thinking_prefix(
    conversation: Conversation, prefix: str, *, last_round: bool, prefixed: Literal["all", "after_user", "last"] = "all"
) -> Conversation:
    """Put `prefix` in front of replies that do not think; `last_round` leaves those before the last user alone.

    prefixed: all of these, those that follow a user message, or the last of the conversation.
    """
    messages = conversation.messages
    after = last_user(messages) if last_round else -1
    last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=-1)

    def edited(i: int, message: Message) -> Message:
        if message.role != "assistant" or i < after or message.content.startswith(("<think>", prefix)):
            return message
        is_left = (prefixed == "last" and i != last) or (
            prefixed == "after_user" and i > 0 and messages[i - 1].role != "user"
        )
        return message if is_left else Message(message.role, prefix + message.content, message.loss)

    return replace(conversation, messages=tuple([edited(i, m) for i, m in enumerate(messages)]))


def strip_history(
    conversation: Conversation, history_prefix: str, past_answer: tuple[str, str] | None = None
) -> Conversation:
    """Remove the thinking of replies before the last user; `history_prefix` stands in its place, or in front.

    past_answer: tags; of a past reply that has them, what stands between them is kept.
    """
    before = last_user(conversation.messages)

    def edited(i: int, message: Message) -> Message:
        if message.role != "assistant" or i > before:
            return message
        head, answer = split_thinking(message.content)
        if past_answer and past_answer[0] in answer:
            answer = answer.rpartition(past_answer[0])[2].partition(past_answer[1])[0].strip()
        return replace(message, content=history_prefix + (answer.strip() if head else answer))

    return replace(conversation, messages=tuple(edited(i, m) for i, m in enumerate(conversation.messages)))
