"""This file knows how tool calls are found in what a model says, whole or while it is still being said.

A format says how its calls begin (`CallSyntax.begins`) and reads one of them from a `Scan`. What is read never depends
on how the text was cut into pieces, so that a reply read piece by piece gives what the whole reply gives.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool.

    arguments: by name; a text where the model wrote arguments that are no object.
    """

    name: str
    arguments: dict[str, Any] | str


class More(Exception):  # noqa: N818 (asks for text, and is no failure)
    """The text ends before it is certain what is being read.

    marks: nothing changes before one of these has come; () when any character may decide.
    """

    def __init__(self, *marks: str) -> None:
        super().__init__(*marks)
        self.marks = marks


class NotACall(Exception):  # noqa: N818 (says what was found)
    """What looked like the beginning of a call is none."""


class Scan:
    """A place in a text from which a call is read, mark by mark.

    at: the place. Every method moves it forward, raises More when the text ends too early, or NotACall when something
    else stands there.
    is_last: whether no more text will come.
    is_sure: whether what was read so far can only be a call; set by those who read.
    """

    def __init__(self, text: str, *, is_last: bool = False) -> None:
        self.text = text
        self.at = 0
        self.is_sure = False
        self._is_last = is_last

    def space(self) -> None:
        """Skip white space."""
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def sees(self, mark: str) -> bool:
        """Whether this mark stands here."""
        if self.text.startswith(mark, self.at):
            return True
        if not self._is_last and mark.startswith(self.text[self.at :]):
            raise More
        return False

    def skips(self, mark: str) -> bool:
        """Whether this mark stands here; if so it is passed."""
        if not self.sees(mark):
            return False
        self.at += len(mark)
        return True

    def take(self, mark: str) -> None:
        """Pass this mark."""
        if not self.skips(mark):
            raise NotACall

    def until(self, *marks: str) -> str:
        """The text before the first of these marks, which is passed."""
        found = [(place, mark) for mark in marks if (place := self.text.find(mark, self.at)) >= 0]
        if not found:
            raise self._missing(*marks)
        place, mark = min(found)
        before, self.at = self.text[self.at : place], place + len(mark)
        return before

    def through(self, marks: tuple[str, ...]) -> str:
        """The text before the first of these marks, which stay, or up to the end of the reply."""
        places = [place for mark in marks if (place := self.text.find(mark, self.at)) >= 0]
        if not places and not self._is_last:
            raise More(*marks)
        begin, self.at = self.at, min(places, default=len(self.text))
        return self.text[begin : self.at]

    def rest(self) -> str:
        """All the text from here on, once it will not grow any more."""
        if not self._is_last:
            raise More("\0")  # a character that no text holds
        begin, self.at = self.at, len(self.text)
        return self.text[begin:]

    def matches(self, pattern: re.Pattern[str]) -> str:
        """The text here that a pattern matches, when something else follows it."""
        found = pattern.match(self.text, self.at)
        end = found.end() if found else self.at
        if end == len(self.text) and not self._is_last:
            raise More
        if found is None:
            raise NotACall
        self.at = end
        return found[0]

    def value(self) -> Any:
        """An object or a list in JSON, or as Python writes one."""
        if self.at == len(self.text):
            raise self._missing()
        if self.text[self.at] not in "{[":
            raise NotACall
        end = _closing(self.text, self.at)
        if end is None:
            raise self._missing("}", "]")
        try:
            value = literal(self.text[self.at : end])
        except ValueError:
            raise NotACall from None
        self.at = end
        return value

    def _missing(self, *marks: str) -> More | NotACall:
        return NotACall() if self._is_last else More(*marks)


Read = Callable[[Scan], list[ToolCall]]
"""Reads calls from a place where they may begin; [] for marks that hold calls together and say nothing."""


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """How calls are written.

    begins: the marks with which a call, or a mark to be passed over, begins.
    read: reads what stands there.
    is_bare: whether a call may also begin without a mark, where nothing has been said before it.
    is_line: whether a mark counts only at the beginning of a line.
    is_untyped: whether every argument is read as text, and its type has to be found.
    """

    begins: tuple[str, ...]
    read: Read
    is_bare: bool = False
    is_line: bool = False
    is_untyped: bool = False


@dataclass(frozen=True, slots=True)
class Said:
    """What a reply, or a piece of it, says.

    content: what is said beside calls.
    calls: the calls that became complete.
    unfinished: the beginning of a call in the middle of which the reply ends.
    """

    content: str = ""
    calls: tuple[ToolCall, ...] = ()
    unfinished: str = ""

    def __add__(self, other: Said) -> Said:
        return Said(self.content + other.content, self.calls + other.calls, self.unfinished + other.unfinished)


class CallReader:
    """Reads one reply while it is said; no part of a call is ever given out as content.

    syntax: how the model was taught to call. Calls in the manner of ReAct are understood as well, as long as there
    was no other.
    tools: what could be called; arguments of an untyped syntax are text where these say so, else values if they can be.

    White space around calls belongs to the format and is left out of the content. What begins like a call and is none
    is content.
    """

    def __init__(self, syntax: CallSyntax, tools: Sequence[dict[str, Any]] = ()) -> None:
        self._texts = _texts(tools)
        self._syntaxes: tuple[CallSyntax, ...] = (syntax,) if syntax.begins == REACT.begins else (syntax, REACT)
        self._text = ""
        self._space = ""
        self._line = ""
        self._awaited: tuple[str, ...] = ()
        self._is_fresh = True
        self._has_called = False

    def feed(self, piece: str) -> Said:
        """What is certain with this piece."""
        begin = max(0, len(self._text) - max(map(len, self._awaited), default=0))
        self._text += piece
        if self._awaited and not any(self._text.find(mark, begin) >= 0 for mark in self._awaited):
            return Said()
        return self._read(is_last=False)

    def finish(self) -> Said:
        """What is left when the reply has ended."""
        said = self._read(is_last=True)
        return said if self._has_called or said.unfinished else said + Said(self._space)

    def _read(self, *, is_last: bool) -> Said:
        said, self._awaited = Said(), ()
        while True:
            place, syntax = self._next(is_last=is_last)
            said += Said(self._say(place))
            if syntax is None:
                return said
            scan = Scan(self._text)
            try:
                calls = self._attempt(syntax, scan, is_last=is_last)
            except More as more:
                self._awaited = more.marks
                if not is_last:
                    return said
                rest, self._text = self._text, ""
                return said + Said(unfinished=rest)
            except NotACall:
                said += Said(self._refuse())
                continue
            if syntax.is_untyped:
                calls = [_typed(call, self._texts) for call in calls]
            said += Said(calls=tuple(calls))
            self._pass(scan.at, syntax if calls else None)

    def _attempt(self, syntax: CallSyntax, scan: Scan, *, is_last: bool) -> list[ToolCall]:
        """The calls at the beginning of the text; More means, at the end, that a call was cut off."""
        try:
            return syntax.read(scan)
        except More:
            if not is_last:
                raise
        last = Scan(self._text, is_last=True)
        try:
            calls = syntax.read(last)
        except NotACall:
            if scan.is_sure:
                raise More from None
            raise
        scan.at = last.at
        return calls

    def _next(self, *, is_last: bool) -> tuple[int, CallSyntax | None]:
        """Where the next call may begin, and how it is written; else up to where none begins."""
        if self._is_fresh and self._syntaxes[0].is_bare and self._text:
            return 0, self._syntaxes[0]
        places = [place for syntax in self._syntaxes if (place := self._first(syntax))]
        partial = len(self._text) if is_last else min(self._partial(syntax) for syntax in self._syntaxes)
        place, _, syntax = min(places, default=(partial, 0, None), key=lambda found: found[:2])
        return (place, syntax) if place <= partial else (partial, None)

    def _first(self, syntax: CallSyntax) -> tuple[int, int, CallSyntax] | None:
        for found in _pattern(syntax.begins).finditer(self._text):
            if not syntax.is_line or self._begins_line(found.start()):
                return found.start(), self._syntaxes.index(syntax), syntax
        return None

    def _partial(self, syntax: CallSyntax) -> int:
        """Where a mark may have begun that the text ends within; the end of the text when none has."""
        end = len(self._text)
        for place in range(max(0, end - max(map(len, syntax.begins)) + 1), end):
            tail = self._text[place:]
            is_mark = any(mark.startswith(tail) for mark in syntax.begins)
            if is_mark and (not syntax.is_line or self._begins_line(place)):
                return place
        return end

    def _begins_line(self, place: int) -> bool:
        return not (self._line + self._text[:place]).rpartition("\n")[2].strip()

    def _say(self, count: int) -> str:
        """The next characters as content; white space at their end waits for what follows."""
        taken, self._text = self._text[:count], self._text[count:]
        self._line = (self._line + taken).rpartition("\n")[2]
        words = self._space + taken
        said = words.rstrip()
        self._space = words[len(said) :]
        self._is_fresh = self._is_fresh and not said
        return said

    def _refuse(self) -> str:
        """What to say of text that is no call after all."""
        if self._is_fresh and self._syntaxes[0].is_bare:
            self._is_fresh = False
            return ""
        return self._say(1)

    def _pass(self, count: int, found: CallSyntax | None) -> None:
        """Leave what was read, and the white space in front of it."""
        self._text, self._space, self._line, self._is_fresh = self._text[count:], "", "", True
        if found:
            self._syntaxes, self._has_called = (found,), True


def read_calls(text: str, syntax: CallSyntax, tools: Sequence[dict[str, Any]] = ()) -> Said:
    """What a whole reply says; see `CallReader`."""
    reader = CallReader(syntax, tools)
    return reader.feed(text) + reader.finish()


def literal(text: str) -> Any:
    """The value that a text writes in JSON or, failing that, as Python does. Raises ValueError."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        try:
            return ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise ValueError("neither JSON nor a Python literal") from None


def keyword_syntax(call: str, arguments: str, result: str) -> CallSyntax:
    """Calls in the manner of ReAct: one keyword before the name, one before the arguments, one before the result.

    Arguments that are no object or list go on to the next keyword, and stay text.
    """
    return CallSyntax((call,), partial(_read_keywords, (call, arguments, result)), is_line=True)


def _read_keywords(keywords: tuple[str, str, str], scan: Scan) -> list[ToolCall]:
    call, arguments, result = keywords
    scan.take(call)
    name = scan.until("\n").strip()
    scan.space()
    scan.is_sure = scan.at < len(scan.text)
    scan.take(arguments)
    scan.space()
    if not name:
        raise NotACall
    try:
        given = scan.value()
    except NotACall:
        given = scan.through(("\n" + result, "\n" + call)).strip()
    at = scan.at
    scan.space()
    if not scan.skips(result):
        scan.at = at
    return [ToolCall(name, given if isinstance(given, (dict, str)) else json.dumps(given, ensure_ascii=False))]


_STRUCTURE = re.compile(r"\\.|[\"'{}\[\]]", re.DOTALL)
"""What decides where an object ends: brackets, quotes, and escaped characters, which decide nothing."""
REACT = keyword_syntax("Action:", "Action Input:", "Observation:")


def _texts(tools: Sequence[dict[str, Any]]) -> set[tuple[str, str]]:
    """The arguments that are texts: (tool, argument)."""
    abouts = [tool.get("function", tool) for tool in tools]
    return {
        (about.get("name", ""), name)
        for about in abouts
        for name, field in ((about.get("parameters") or {}).get("properties") or {}).items()
        if isinstance(field, dict) and "string" in field.get("type", ())
    }


def _typed(call: ToolCall, texts: set[tuple[str, str]]) -> ToolCall:
    """A call whose arguments are all text with those that are none as values."""

    def value(name: str, text: str) -> Any:
        if (call.name, name) in texts:
            return text
        try:
            return literal(text)
        except ValueError:
            return text

    assert isinstance(call.arguments, dict), "an untyped syntax reads arguments by name"
    return ToolCall(call.name, {name: value(name, text) for name, text in call.arguments.items()})


@cache
def _pattern(marks: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))) or "(?!)")


def _closing(text: str, at: int) -> int | None:
    """The end of the object or list that begins at `at`; None when it does not end. Quoted brackets do not count."""
    depth, quote = 0, ""
    for found in _STRUCTURE.finditer(text, at):
        mark = found[0]
        if quote:
            quote = "" if mark == quote else quote
        elif mark in "\"'":
            quote = mark
        elif mark in "{[":
            depth += 1
        elif mark in "}]":
            depth -= 1
            if not depth:
                return found.end()
    return None
