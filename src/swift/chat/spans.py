"""This file knows which characters of a rendered conversation the assistant says, by asking the template itself.

A reply is learnt from where sampling would begin (the conversation up to it, rendered with the generation prompt) to
the word that ends generation. Where its content ends is found by rendering again with a sentinel in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from swift.chat.messages import Message
from swift.chat.thinking import EMPTY_THINKING, FRAME_END, OPENING, split_reply, thoughts


class Render(Protocol):
    """A chat template with everything fixed but the messages."""

    def __call__(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The text of a conversation; raises DataError when the template refuses it."""
        ...


@dataclass(frozen=True, slots=True)
class Span:
    """The characters of one reply.

    turn: the index of the message.
    start, end: the characters `text[start:end]`, the word that ends the reply included; equal when none were found.
    flaw: why these characters cannot be learnt; None when they can.
    is_unopened: whether the prompt would open a block of thinking here that the reply is without.
    """

    turn: int
    start: int
    end: int
    flaw: str | None = None
    is_unopened: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text that is tokenized on its own.

    turn: the reply it belongs to, by the index of the message; None for what is only read.
    is_empty_thinking: whether it is the reply's block of thinking in which nothing is thought.
    """

    start: int
    end: int
    turn: int | None = None
    is_empty_thinking: bool = False


def assistant_spans(render: Render, messages: Sequence[Message], stops: Sequence[str]) -> tuple[str, list[Span]]:
    """The text of a conversation and a span for each reply in it, in order.

    stops: the words that end generation.
    """
    text = render(messages, add_generation_prompt=False)
    spans: list[Span] = []
    for turn, message in enumerate(messages):
        if message.role == "assistant":
            begin = spans[-1].end if spans else 0
            spans.append(_span(render, messages, turn, text, stops, begin))
    return text, spans


def pieces_of(text: str, spans: Sequence[Span]) -> list[Piece]:
    """The parts of a text, in order and without gaps: what is only read, and the replies.

    A block of empty thinking is a piece of its own, because the prompt may bring it along.
    """
    pieces: list[Piece] = []
    at = 0
    for span in spans:
        if span.start == span.end:
            continue
        if at < span.start:
            pieces.append(Piece(at, span.start))
        at = span.start
        if block := EMPTY_THINKING.match(text, span.start, span.end):
            pieces.append(Piece(at, block.end(), span.turn, is_empty_thinking=True))
            at = block.end()
        if at < span.end:
            pieces.append(Piece(at, span.end, span.turn))
        at = span.end
    if at < len(text):
        pieces.append(Piece(at, len(text)))
    return pieces


def sentinels(messages: Sequence[Message], count: int) -> list[str]:
    """`count` short words, each one character of Unicode's private use, that none of the messages contain."""
    said = "".join(message.content for message in messages)
    free = (character for code in range(0xE100, 0xF8FF) if (character := chr(code)) not in said)
    return [next(free) for _ in range(count)]


def _span(render: Render, messages: Sequence[Message], turn: int, text: str, stops: Sequence[str], begin: int) -> Span:
    """The span of one reply. `begin` is where the reply before it ends."""
    prompt = render(messages[:turn], add_generation_prompt=True)
    start = start_of(prompt, text)
    if start is None:
        return Span(turn, 0, 0, "what stands before it is not the prompt that the model would be given at that point")
    reply = messages[turn].content
    head, answer, tail = split_reply(reply)
    mark = sentinels(messages, 1)[0]
    probe = [*messages[:turn], replace(messages[turn], content=head + mark + tail), *messages[turn + 1 :]]
    before, found, after = render(probe, add_generation_prompt=False).partition(mark)
    if not found or mark in after:
        return Span(turn, 0, 0, "the template does not write it, or writes it twice")
    content_end = len(text) - len(after)
    if not (text.startswith(before) and text.endswith(after) and start <= len(before) <= content_end):
        return Span(turn, 0, 0, "how the template writes it depends on what it says")
    end = stop_after(text, content_end, stops)
    if start < begin:
        return Span(turn, 0, 0, "it begins before the reply in front of it has ended")
    if text[len(before) : content_end].strip() != answer.strip():
        return Span(turn, start, end, "the template changes what it says")
    if any(thought not in text[start : len(before)] for thought in thoughts(reply)):
        return Span(turn, start, end, "the template leaves out what it thinks")
    return Span(turn, start, end, is_unopened=start < len(prompt))


def start_of(prompt: str, text: str) -> int | None:
    """Where the reply begins: after the prompt, or after the prompt without a block of thinking that it opens."""
    if text.startswith(prompt):
        return len(prompt)
    opening = OPENING.search(prompt)
    if opening and text.startswith(prompt[: opening.start()]):
        return opening.start()
    return None


def stop_after(text: str, end: int, stops: Sequence[str]) -> int:
    """The end of the word that ends generation, when one follows `end` after nothing but white space; else `end`.

    The tag that closes a framed answer belongs to the reply as well.
    """
    at = _past_space(text, end)
    if text.startswith(FRAME_END, at):
        end = at + len(FRAME_END)
        at = _past_space(text, end)
    found = [stop for stop in stops if stop and text.startswith(stop, at)]
    return at + len(max(found, key=len)) if found else end


def _past_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at
