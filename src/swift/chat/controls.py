"""This file knows which tokens control a chat, and keeps what people say from becoming one of them.

A user who types `<|im_end|>` means the characters. Such words are cut in two where they are said, by a character of
Unicode's private use (the joint), which the template carries along; the text is tokenized in pieces cut there, and
neither piece is the token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
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
        """The conversation with a joint in every control token that is said, and that joint; None when none is.

        What tools are called and how they are described is said too.
        """
        messages, tools = conversation.messages, conversation.tools
        patterns = [self._turns if message.role in ("assistant", "tool_call") else self._all for message in messages]
        described = [text for tool in tools for text in _texts(tool)]
        if not any(self._all.search(text) for text in described) and not any(
            pattern.search(message.content) for pattern, message in zip(patterns, messages, strict=True)
        ):
            return conversation, None
        joint = sentinels([*messages, *(Message("system", text) for text in described)], 1)[0]
        guarded = tuple(
            replace(message, content=_jointed(message.content, pattern, joint))
            for message, pattern in zip(messages, patterns, strict=True)
        )
        return replace(
            conversation, messages=guarded, tools=tuple(_jointed_value(tool, self._all, joint) for tool in tools)
        ), joint


def _any_of(words: set[str]) -> re.Pattern[str]:
    """Any of some words, the longest first."""
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _texts(value: Any) -> Iterator[str]:
    """All texts in plain values, keys among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _jointed(text: str, pattern: re.Pattern[str], joint: str) -> str:
    return pattern.sub(lambda found: found[0][0] + joint + found[0][1:], text)


def _jointed_value(value: Any, pattern: re.Pattern[str], joint: str) -> Any:
    """Plain values with the joint in all their texts."""
    if isinstance(value, str):
        return _jointed(value, pattern, joint)
    if isinstance(value, dict):
        return {
            _jointed_value(key, pattern, joint): _jointed_value(item, pattern, joint) for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_jointed_value(item, pattern, joint) for item in value]
    return value


def parted(texts: Sequence[str], joint: str | None) -> list[str]:
    """Texts cut at the joint, without it."""
    return list(texts) if joint is None else [part for text in texts for part in text.split(joint)]
