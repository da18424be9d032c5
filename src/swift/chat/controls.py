"""This file knows which tokens control a chat, and keeps what people say from becoming one of them.

A user who types `<|im_end|>` means the characters. Such words are cut in two where they are said, by a character of
Unicode's private use (the joint), which the template carries along; the text is tokenized in pieces cut there, and
neither piece is the token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from swift.chat.messages import Conversation, Message
from swift.chat.spans import sentinels


class Controls:
    """The control tokens of a run.

    tokenizer: its special tokens are what users, systems and tools cannot say.
    written: a chat as the template writes it; the special tokens in it are what the assistant cannot say either. Tags
        of thinking and all other special tokens, of tools for instance, are the assistant's own words.
    """

    def __init__(self, tokenizer: Any, written: str) -> None:
        added = tokenizer.added_tokens_decoder.values()
        special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
        special = {word for word in special if len(word) > 1}
        turns = {word for word in special if "think" not in word and word in written}
        self._all, self._turns = _any_of(special), _any_of(turns)

    def guard(self, conversation: Conversation) -> tuple[Conversation, str | None]:
        """The conversation with a joint in every control token that is said, and that joint; None when none is."""
        messages = conversation.messages
        patterns = [self._turns if message.role in ("assistant", "tool_call") else self._all for message in messages]
        if not any(pattern.search(message.content) for pattern, message in zip(patterns, messages, strict=True)):
            return conversation, None
        joint = sentinels(messages, 1)[0]
        guarded = [_jointed(message, pattern, joint) for message, pattern in zip(messages, patterns, strict=True)]
        return replace(conversation, messages=tuple(guarded)), joint


def _any_of(words: set[str]) -> re.Pattern[str]:
    """Any of some words, the longest first."""
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _jointed(message: Message, pattern: re.Pattern[str], joint: str) -> Message:
    return replace(message, content=pattern.sub(lambda found: found[0][0] + joint + found[0][1:], message.content))


def parted(texts: Sequence[str], joint: str | None) -> list[str]:
    """Texts cut at the joint, without it."""
    return list(texts) if joint is None else [part for text in texts for part in text.split(joint)]
