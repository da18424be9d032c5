"""This file knows how what a model writes becomes the parts of an answer: thinking, words, calls of tools.

There is one way for answers in one piece and in many: a whole answer is its pieces, put together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol
from uuid import uuid4

from swift.chat.calls import ToolCall
from swift.chat.reply import Reply, ReplyReader
from swift.chat.tools import Tool, ToolFormat
from swift.engines.base import Completion, Delta, TokenLogprob
from swift.serve.answers import FunctionCall, ToolCallAnswer
from swift.serve.cutting import StopCutter

Reason = Literal["stop", "length", "tool_calls"]
TAGS = ("<think>", "</think>")
"""What opens and closes thinking where nothing else is known."""


class Parts(Protocol):
    """What is thought and what is said in a piece of a reply."""

    @property
    def thought(self) -> str:
        """What is thought."""
        ...

    @property
    def said(self) -> str:
        """What is said."""
        ...


class Splitter(Protocol):
    """Splits one reply piece by piece, otherwise than by tags."""

    def feed(self, text: str, token_ids: Sequence[int], *, is_last: bool = False) -> Parts:
        """The parts of the next piece, whose tokens are these; the last one brings what was held back."""
        ...


@dataclass(frozen=True)
class Reading:
    """How the replies to one prompt are read.

    prefix: what the prompt has already begun of the reply. cut: words at which a reply ends, and that are not told.
    form, tools: how calls are written, and what may be called; form None looks for no calls.
    forced: the name of the only tool that may be called: the reply is its arguments; "" when the reply is an object
        with the `name` of a tool and its `arguments`; None forces nothing.
    one_call: whether the reply is over with its first call.
    tags: what opens and closes thinking.
    splits: makes what tells thinking from words; None goes by the tags.
    """

    prefix: str = ""
    cut: tuple[str, ...] = ()
    form: ToolFormat | None = None
    tools: Sequence[Tool] = ()
    forced: str | None = None
    one_call: bool = False
    tags: tuple[str, str] = TAGS
    splits: Callable[[], Splitter] | None = None


@dataclass(frozen=True)
class Piece:
    """What a reply has grown by; with `reason` it is the last. `calls` are new, the first of them has this `number`."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[ToolCall, ...] = ()
    number: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reason: Reason | None = None

    @property
    def says(self) -> bool:
        """Whether there is anything in it."""
        return bool(self.reasoning or self.content or self.calls or self.reason)


class ChoiceReader:
    """Reads one reply piece by piece."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._cutter = StopCutter(reading.cut)
        self._thought_cutter = StopCutter(reading.cut)
        self._splitter = None if reading.splits is None else reading.splits()
        tags = reading.tags if reading.splits is None else None
        self._reader = ReplyReader(reading.form, reading.tools, tags=tags)
        self._forced_text = ""
        self._calls = 0
        self._logprobs: list[TokenLogprob] = []
        self._is_over = False
        self._begun = self._prefix() if reading.prefix and reading.forced is None else Reply()

    def feed(self, delta: Delta) -> Piece:
        """What is certain with this delta; nothing once the reply is over."""
        if self._is_over:
            return Piece()
        said, self._begun = self._begun + self._read(delta), Reply()
        if delta.completion is not None:
            said += self._rest()
        self._logprobs += delta.logprobs
        return self._piece(said, delta.completion)

    def _prefix(self) -> Reply:
        """What the prompt has begun. Thinking in it has tags, and what splits the reply has seen it."""
        if self._splitter is None:
            return self._reader.feed(self._reading.prefix)
        reader = ReplyReader(tags=self._reading.tags)
        begun = reader.feed(self._reading.prefix) + reader.finish()
        return Reply(begun.reasoning) + self._reader.feed(begun.content)

    def _read(self, delta: Delta) -> Reply:
        if self._splitter is not None:
            parts = self._splitter.feed(delta.text, delta.token_ids, is_last=delta.completion is not None)
            thought = self._thought_cutter.feed(parts.thought)
            return Reply(thought) + self._reader.feed(self._cutter.feed(parts.said))
        text = self._cutter.feed(delta.text)
        if self._reading.forced is None:
            return self._reader.feed(text)
        self._forced_text += text
        return Reply()

    def _rest(self) -> Reply:
        """What is left at the end. A call in the middle of which the reply ends is told as what it is: text."""
        held = self._cutter.finish()
        if self._reading.forced is None:
            said = Reply(self._thought_cutter.finish()) + self._reader.feed(held) + self._reader.finish()
            return Reply(said.reasoning, said.content + said.unfinished, said.calls)
        call = forced_call(self._forced_text, self._reading.forced)
        return Reply(content=self._forced_text) if call is None else Reply(calls=(call,))

    def _piece(self, said: Reply, completion: Completion | None) -> Piece:
        calls, number = said.calls, self._calls
        if self._reading.one_call and calls:
            calls, self._is_over = calls[:1], True
        self._calls += len(calls)
        reason: Reason | None = None
        if self._is_over or completion is not None:
            self._is_over = True
            reason = "stop" if completion is None else completion.finish_reason
            is_complete = reason == "stop" or self._reading.forced is not None
            reason = "tool_calls" if self._calls and is_complete else reason
        if not (said.reasoning or said.content or calls or reason):
            return Piece()
        logprobs, self._logprobs = self._logprobs, []
        return Piece(said.reasoning, said.content, calls, number, logprobs, reason)


def joined(pieces: Sequence[Piece]) -> Piece:
    """The reply that these pieces, all that there were, are."""
    return Piece(
        "".join(piece.reasoning for piece in pieces),
        "".join(piece.content for piece in pieces),
        tuple(call for piece in pieces for call in piece.calls),
        0,
        [each for piece in pieces for each in piece.logprobs],
        next((piece.reason for piece in reversed(pieces) if piece.reason), None),
    )


def forced_call(text: str, name: str) -> ToolCall | None:
    """The call that a forced reply is; None when it is none, because it was cut off."""
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    if name:
        return ToolCall(name, value)
    called, given = value.get("name"), value.get("arguments")
    return ToolCall(called, given) if isinstance(called, str) and isinstance(given, dict) else None


def tool_calls(piece: Piece) -> list[ToolCallAnswer]:
    """Calls as the protocol writes them, each with an id of its own."""
    return [
        ToolCallAnswer(
            id=f"call_{uuid4().hex}", type="function", index=piece.number + place,
            function=FunctionCall(name=call.name, arguments=arguments(call)),
        )
        for place, call in enumerate(piece.calls)
    ]  # fmt: skip


def arguments(call: ToolCall) -> str:
    """The arguments of a call as JSON text, or what the model wrote in their place."""
    return call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments, ensure_ascii=False)
