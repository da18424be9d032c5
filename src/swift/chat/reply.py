"""This file knows what a generated reply consists of: thinking, words and calls of tools, whole or while it is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swift.chat.calls import CallReader, Said, ToolCall
from swift.chat.tools import Tool, ToolFormat


@dataclass(frozen=True, slots=True)
class Reply:
    """What a reply, or a piece of it, consists of.

    reasoning: what is thought, without tags.
    content: what is said beside that and beside calls.
    calls: the calls that became complete.
    unfinished: the beginning of a call in the middle of which the reply ends.
    """

    reasoning: str = ""
    content: str = ""
    calls: tuple[ToolCall, ...] = ()
    unfinished: str = ""

    def __add__(self, other: Reply) -> Reply:
        return Reply(
            self.reasoning + other.reasoning,
            self.content + other.content,
            self.calls + other.calls,
            self.unfinished + other.unfinished,
        )


class ReplyReader:
    """Reads one reply piece by piece; joined, the pieces give what the whole reply gives.

    form: how the model was taught to call; None when it has no tools.
    tools: what it could call.
    is_thinking: whether the prompt has already opened a block of thinking that the reply goes on with.
    tags: what opens and closes such a block; None where all of the reply is said.

    Only a block with which the reply begins is thinking. White space at its ends is left out, as is that in front of
    what is said after it.
    """

    def __init__(
        self,
        form: ToolFormat | None = None,
        tools: Sequence[Tool] = (),
        *,
        is_thinking: bool = False,
        tags: tuple[str, str] | None = ("<think>", "</think>"),
    ) -> None:
        self._calls = CallReader(form.syntax, tools) if form else None
        self._opens, self._closes = tags or ("", "")
        self._is_thinking = is_thinking
        self._is_decided = is_thinking or tags is None
        self._is_lead = is_thinking
        self._text = ""

    def feed(self, piece: str) -> Reply:
        """What is certain with this piece."""
        self._text += piece
        reasoning = ""
        if not self._is_decided:
            self._decide()
        if self._is_thinking:
            reasoning = self._think()
        if self._is_thinking or not self._is_decided:
            return Reply(reasoning)
        if self._is_lead:
            self._text = self._text.lstrip()
            self._is_lead = not self._text
        text, self._text = self._text, ""
        said = self._calls.feed(text) if self._calls else Said(text)
        return Reply(reasoning, said.content, said.calls)

    def finish(self) -> Reply:
        """What is left when the reply has ended."""
        text, self._text = self._text, ""
        if self._is_thinking:
            return Reply(text.rstrip())
        if self._calls is None:
            return Reply(content=text)
        said = self._calls.feed(text) + self._calls.finish()
        return Reply(content=said.content, calls=said.calls, unfinished=said.unfinished)

    def _decide(self) -> None:
        """Find out whether the reply begins with thinking."""
        begin = self._text.lstrip()
        if begin.startswith(self._opens):
            self._is_thinking = self._is_decided = self._is_lead = True
            self._text = begin.removeprefix(self._opens)
        elif not self._opens.startswith(begin):
            self._is_decided = True

    def _think(self) -> str:
        """What is certainly thought: up to the closing tag, or to where it may begin, or to white space at the end."""
        if self._is_lead:
            self._text = self._text.lstrip()
            self._is_lead = not self._text
        thought, closing, rest = self._text.partition(self._closes)
        if closing:
            self._text, self._is_thinking, self._is_lead = rest, False, True
            return thought.rstrip()
        tail = range(max(0, len(thought) - len(self._closes) + 1), len(thought))
        end = next((at for at in tail if self._closes.startswith(thought[at:])), len(thought))
        certain = thought[:end].rstrip()
        self._text = thought[len(certain) :]
        return certain


def read_reply(
    text: str, form: ToolFormat | None = None, tools: Sequence[Tool] = (), *, is_thinking: bool = False
) -> Reply:
    """What a whole reply consists of; see `ReplyReader`."""
    reader = ReplyReader(form, tools, is_thinking=is_thinking)
    return reader.feed(text) + reader.finish()
