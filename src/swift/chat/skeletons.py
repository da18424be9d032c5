"""This file knows how conversations of one shape are rendered by putting their words into a text rendered once.

The shape is who speaks when, and how each reply thinks. Two conversations of one shape differ in words only, so the
spans of the replies are found once, with sentinels for words, and hold for all.

A template need not treat all words alike: it may strip them, or look for a certain string in them. What it leaves of
the white space around words is tried once for every kind of it and every place. Rows whose words hold a string the
template looks for, or white space of which no simple account can be given, are rendered, and compared with what the
skeleton gives; where the two differ the spans are found for that row alone. Of all other rows the first of every shape,
and a sample of the rest, are cut both ways.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, cast

from swift.chat.messages import Message, Role
from swift.chat.spans import Render, Span, assistant_spans, pieces_of, sentinels
from swift.core.errors import DataError

SHAPES_KEPT, OUTER_KEPT = 4096, 256
"""Shapes remembered at a time, and for each of them ways in which white space stands around words."""
ALWAYS_CHECKED, CHECKED_EVERY = 4, 64
"""The first rows of every shape, and one in so many after them, are also cut without a skeleton."""

_THINKING = re.compile(r"<think>\n(?P<thought>.*\S.*)\n</think>\n\n(?P<answer>.*)", re.DOTALL)
_EMPTY = "<think>\n\n</think>\n\n"

Shape = tuple[str, ...]
"""Who speaks when, and how: one word per message."""


class TextPiece(NamedTuple):
    """A part of a conversation's text that is tokenized on its own; see `spans.Piece`."""

    text: str
    turn: int | None = None
    is_empty_thinking: bool = False


class Pieces(NamedTuple):
    """A conversation's text in pieces, and what there is to say of its replies, by message.

    flaws: why some of them cannot be learnt.
    unopened: those that lack the block of thinking that the prompt would open.
    """

    pieces: list[TextPiece]
    flaws: dict[int, str]
    unopened: frozenset[int] = frozenset()


class PieceForm(NamedTuple):
    """A piece as a form: literal text, or the number of the words that stand there."""

    parts: tuple[str | int, ...]
    turn: int | None
    is_empty_thinking: bool


@dataclass(frozen=True, slots=True)
class Skeleton:
    """The pieces of every conversation of one shape, and what there is to say of its replies; see `Pieces`."""

    forms: tuple[PieceForm, ...]
    flaws: dict[int, str]
    unopened: frozenset[int]

    def fill(self, words: Sequence[str]) -> Pieces:
        """The pieces with these words."""
        pieces = [
            TextPiece("".join([words[part] if isinstance(part, int) else part for part in parts]), turn, is_empty)
            for parts, turn, is_empty in self.forms
        ]
        return Pieces(pieces, self.flaws, self.unopened)


@dataclass(slots=True)
class _Cached:
    """The skeleton of a shape, None when it has none, and how many rows used it.

    outer: slot, white space before its words and after them -> what the template leaves of both.
    """

    skeleton: Skeleton | None
    used: int = 0
    outer: dict[tuple[int, str, str], tuple[str, str] | None] = field(default_factory=dict)


class Cutter:
    """Conversations into pieces.

    render: the chat template.
    stops: the words that end generation.
    looks_for: strings that the template may look for in what is said.
    add_generation_prompt: whether a reply is to follow.
    """

    def __init__(
        self, render: Render, stops: Sequence[str], looks_for: Sequence[str], *, add_generation_prompt: bool
    ) -> None:
        self._render = render
        self._stops = stops
        self._special = re.compile("|".join(map(re.escape, looks_for)) or "(?!)")
        self._prompts = add_generation_prompt
        self._cache: dict[Shape, _Cached | None] = {}

    def cut(self, messages: Sequence[Message]) -> Pieces:
        """The pieces of one conversation. Raises DataError when the template refuses it."""
        taken = take_apart(messages)
        cached = self._cached(taken[0], messages) if taken else None
        if taken is None or cached is None or cached.skeleton is None:
            return self.cut_alone(messages)
        pieces = self._filled(cached, cached.skeleton, taken, messages)
        if pieces is None:
            return self.cut_alone(messages)
        cached.used += 1
        if cached.used > ALWAYS_CHECKED and cached.used % CHECKED_EVERY:
            return pieces
        alone = self.cut_alone(messages)
        if alone != pieces:
            if cached.used > ALWAYS_CHECKED:
                raise DataError(
                    "The chat template decides by the words of a conversation, not by its turns, what a reply is. "
                    "Choose a named layout with --template."
                )
            cached.skeleton = None
        return alone

    def cut_alone(self, messages: Sequence[Message]) -> Pieces:
        """The same, found for this conversation without regard to others: two renderings per reply."""
        text, spans = assistant_spans(self._given, messages, self._stops)
        pieces = [TextPiece(text[p.start : p.end], p.turn, p.is_empty_thinking) for p in pieces_of(text, spans)]
        return Pieces(pieces, *remarks(spans))

    def _given(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """A prompt's replies are looked for in its own text: with what opens the reply that is to follow."""
        is_whole = self._prompts and messages[-1].role != "assistant"
        return self._render(messages, add_generation_prompt=add_generation_prompt or is_whole)

    def _cached(self, shape: Shape, messages: Sequence[Message]) -> _Cached | None:
        """The skeleton of a shape that is met again; None the first time, because most long shapes are met once."""
        if shape not in self._cache:
            if len(self._cache) >= SHAPES_KEPT:
                self._cache.clear()
            self._cache[shape] = None
            return None
        cached = self._cache[shape]
        if cached is None:
            cached = self._cache[shape] = _Cached(self._build(shape, messages))
        return cached

    def _build(self, shape: Shape, messages: Sequence[Message]) -> Skeleton | None:
        """The skeleton of a shape; None when the template writes some words more than once."""
        marks = sentinels((), sum(2 if kind == "thinking" else 1 for kind in shape))
        words = iter(marks)
        blank = [replace(m, content=_with_words(kind, words)) for m, kind in zip(messages, shape, strict=True)]
        text, spans = assistant_spans(self._given, blank, self._stops)
        if any(text.count(mark) > 1 for mark in marks):
            return None
        numbers = {mark: i for i, mark in enumerate(marks)}
        slots = re.compile("([" + "".join(marks) + "])")
        forms = []
        for piece in pieces_of(text, spans):
            parts = [part for part in slots.split(text[piece.start : piece.end]) if part]
            form = tuple(numbers.get(part, part) for part in parts)
            forms.append(PieceForm(form, piece.turn, piece.is_empty_thinking))
        return Skeleton(tuple(forms), *remarks(spans))

    def _filled(
        self, cached: _Cached, skeleton: Skeleton, taken: tuple[Shape, list[str]], messages: Sequence[Message]
    ) -> Pieces | None:
        """The skeleton with the words of a row as the template writes them; None when that is not to be foreseen."""
        shape, words = taken
        stripped = [word.strip() for word in words]
        is_special = any(map(self._special.search, words))
        if not is_special and stripped == words:
            return skeleton.fill(words)
        if not is_special and (written := self._written(cached, skeleton, shape, words, stripped)) is not None:
            return skeleton.fill(written)
        rendered = self._given(messages, add_generation_prompt=False)
        for said in (words, stripped):
            filled = skeleton.fill(said)
            if "".join([piece.text for piece in filled.pieces]) == rendered:
                return filled
        return None

    def _written(
        self, cached: _Cached, skeleton: Skeleton, shape: Shape, words: Sequence[str], stripped: Sequence[str]
    ) -> list[str] | None:
        """The words with as much of the white space around each as the template leaves there; None when unclear."""
        written = list(stripped)
        for slot, (word, core) in enumerate(zip(words, stripped, strict=True)):
            if word == core:
                continue
            at = word.index(core)
            outer = (slot, word[:at], word[at + len(core) :])
            if outer not in cached.outer:
                if len(cached.outer) >= OUTER_KEPT:
                    return None
                cached.outer[outer] = self._outer(skeleton, shape, outer)
            left = cached.outer[outer]
            if left is None:
                return None
            written[slot] = left[0] + core + left[1]
        return written

    def _outer(self, skeleton: Skeleton, shape: Shape, outer: tuple[int, str, str]) -> tuple[str, str] | None:
        """What the template leaves of white space before and after the words of one slot; None when it is unclear.

        It is tried with all other words as sentinels, which is what the template can tell words by: their outer white
        space, and strings it looks for, which are not there.
        """
        slot, before, after = outer
        marks = sentinels((), sum(2 if kind == "thinking" else 1 for kind in shape))
        said = [before + mark + after if i == slot else mark for i, mark in enumerate(marks)]
        words = iter(said)
        roles = ["assistant" if kind in ("thinking", "empty") else kind for kind in shape]
        blank = [Message(cast("Role", role), _with_words(kind, words)) for role, kind in zip(roles, shape, strict=True)]
        rendered = self._given(blank, add_generation_prompt=False)
        for left in dict.fromkeys([(before, after), ("", ""), (before, ""), ("", after)]):
            marks[slot] = left[0] + said[slot].strip() + left[1]
            if "".join([piece.text for piece in skeleton.fill(marks).pieces]) == rendered:
                return left
        return None


def remarks(spans: Sequence[Span]) -> tuple[dict[int, str], frozenset[int]]:
    """The flaws of replies, and those that the prompt would open otherwise; see `Pieces`."""
    flaws = {span.turn: span.flaw for span in spans if span.flaw}
    return flaws, frozenset(span.turn for span in spans if span.is_unopened)


def take_apart(messages: Sequence[Message]) -> tuple[Shape, list[str]] | None:
    """The shape and the words of a conversation; None when a message has no usual form."""
    turns: list[str] = []
    words: list[str] = []
    for message in messages:
        content = message.content
        kind: str = message.role
        if not content or content.isspace() or (kind == "assistant" and content[0].isspace()):
            return None
        if kind == "assistant" and "think>" in content:
            parted = _part_thinking(content)
            if parted is None:
                return None
            kind, said = parted
            words += said
        else:
            words.append(content)
        turns.append(kind)
    return tuple(turns), words


def _part_thinking(reply: str) -> tuple[str, list[str]] | None:
    """The kind of a thinking reply and its words: thought and answer, or the answer alone after an empty block."""
    if reply.startswith(_EMPTY):
        kind, words = "empty", [reply[len(_EMPTY) :]]
    elif found := _THINKING.fullmatch(reply):
        kind, words = "thinking", [found["thought"], found["answer"]]
    else:
        return None
    usual = all(word.strip() and "think>" not in word for word in words) and not words[-1][0].isspace()
    return (kind, words) if usual else None


def _with_words(kind: str, words: Iterator[str]) -> str:
    if kind == "empty":
        return _EMPTY + next(words)
    if kind == "thinking":
        return f"<think>\n{next(words)}\n</think>\n\n{next(words)}"
    return next(words)
