"""This file knows a conversation on a page: what is kept of it, what is asked, and how a reply grows.

A turn is a mapping of plain values, because the page keeps a conversation for each visitor: `role`, `content`, and for
replies `reasoning`, what was thought, and `is_done`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from swift.chat.reply import ReplyReader
from swift.engines.asking import Server

Turn = dict[str, Any]
CLOSES = "</think>"


@dataclass(frozen=True)
class Partner:
    """Who answers. models: those that can be asked, the first unless another is chosen. settings: how, as fields of
    OpenAI's request. stream: whether replies are shown while they grow."""

    server: Server
    models: Sequence[str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    stream: bool = True

    def answer(self, model: str, system: str, turns: Sequence[Turn]) -> Iterator[Turn]:
        """The reply of a model to a conversation as it grows. Raises EngineError when there is none."""
        growing = _Growing()
        for piece in self.server.pieces(model, messages(system, turns), self.settings, stream=self.stream):
            growing.add(piece)
            yield growing.turn(is_done=False)
        yield growing.turn(is_done=True)


def messages(system: str, turns: Sequence[Turn]) -> list[dict[str, str]]:
    """A conversation as a server is given it; what was thought is not said again. A system text that is empty is none."""
    said = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    return [{"role": "system", "content": system}, *said] if system else said


def asked(turns: Sequence[Turn], query: str) -> list[Turn]:
    """The conversation with one more question."""
    return [*turns, {"role": "user", "content": query}]


def unanswered(turns: Sequence[Turn]) -> list[Turn]:
    """The conversation up to and with its last question, for another reply; [] when nothing was asked."""
    last = max((place for place, turn in enumerate(turns) if turn["role"] == "user"), default=-1)
    return list(turns[: last + 1])


class _Growing:
    """A reply while it grows. Thinking that the server has not told apart is found by its tags."""

    def __init__(self) -> None:
        self._reader = ReplyReader()
        self._reasoning = ""
        self._content = ""

    def add(self, piece: Mapping[str, Any]) -> None:
        """Take one more piece of what the server says."""
        self._reasoning += piece.get("reasoning_content") or piece.get("reasoning") or ""
        read = self._reader.feed(piece.get("content") or "")
        self._reasoning += read.reasoning
        self._content += read.content
        if not self._reasoning and CLOSES in self._content:  # the prompt has opened the block already
            thought, _, answer = self._content.partition(CLOSES)
            self._reasoning, self._content = thought.strip(), answer.lstrip()

    def turn(self, *, is_done: bool) -> Turn:
        """What there is of it."""
        if is_done:
            rest = self._reader.finish()
            self._reasoning, self._content = self._reasoning + rest.reasoning, self._content + rest.content
        return {
            "role": "assistant", "content": self._content, "reasoning": self._reasoning, "is_done": is_done
        }  # fmt: skip
