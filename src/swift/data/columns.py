"""This file knows which column of a row plays which part: the reply may be called `response`, `answer` or `output`.

Column names are compared without regard to case. A column that already has the name of its part wins over those that
have only a similar one; where two similar ones compete, nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from swift.core.errors import DataError

Format = Literal["messages", "alpaca", "query"]

HIDDEN = "_"
"""What `--columns` maps a column to that is not to be seen."""

_MEDIA = {
    "images": ("image", "images"),
    "videos": ("video", "videos"),
    "audios": ("audio", "audios"),
}
_SYSTEM = {"system": ("system", "system_prompt")}
_QUERY = ("query", "prompt", "input", "instruction", "question", "problem")
_RESPONSE = (
    "response", "answer", "output", "targets", "target", "answer_key", "answers", "solution", "text", "completion",
    "content",
)  # fmt: skip

PARTS: dict[Format, dict[str, tuple[str, ...]]] = {
    "messages": {"messages": ("messages", "conversation", "conversations"), **_SYSTEM, **_MEDIA},
    "alpaca": {
        "instruction": ("instruction",),
        "input": ("input",),
        "response": _RESPONSE,
        "history": ("history",),
        **_SYSTEM,
        **_MEDIA,
    },
    "query": {"query": _QUERY, "response": _RESPONSE, "history": ("history",), **_SYSTEM, **_MEDIA},
}
"""Format -> part -> the names of columns that may play it."""

_SIDES = ("rejected_", "positive_", "negative_")
STANDARD = frozenset(
    ["tools", "objects", "label", "channel", "margin", "rejected_response"]
    + [f"{side}{what}" for side in _SIDES for what in ("messages", "images", "videos", "audios", "tools", "objects")]
)
"""Columns that mean something by their own name in every format."""


@dataclass(frozen=True)
class Shape:
    """What the columns of a row are.

    format: how the conversation is written.
    parts: part -> the column that plays it, by the name it has in the row.
    standard: the columns of `STANDARD` that are there: standard name -> name in the row.
    others: all other columns, by the name they have after `--columns` -> name in the row.
    has_sides: whether there is more than the conversation itself: a rejected side, documents.
    """

    format: Format
    parts: dict[str, str]
    standard: dict[str, str]
    others: dict[str, str]
    has_sides: bool


def shape_of(columns: Sequence[str], renamed: Mapping[str, str], form: Format | None = None) -> Shape:
    """The parts that the columns of a row play, after the user's own renaming (`--columns`).

    form: how the conversation is written; None finds out by the columns.
    Raises DataError when two columns compete for one part.
    """
    names = rename(columns, renamed)
    if form is None:
        form = _format_of({name.lower() for name in names})
    parts = {}
    for part, aliases in PARTS[form].items():
        winner = _winner(part, aliases, list(names), form)
        if winner is not None:
            parts[part] = names[winner]
    if form == "alpaca":
        _no_second_query(list(names))
    taken = set(parts.values())
    standard = _standard(names)
    others = {
        name: column
        for name, column in names.items()
        if (column not in taken or name.lower() == "solution") and name.lower() not in STANDARD
    }
    return Shape(form, parts, standard, others, has_sides=any(name.startswith(_SIDES) for name in standard))


def _format_of(lower: set[str]) -> Format:
    if lower & set(PARTS["messages"]["messages"]):
        return "messages"
    return "alpaca" if {"instruction", "input"} <= lower else "query"


def rename(columns: Sequence[str], renamed: Mapping[str, str]) -> dict[str, str]:
    """Name after `--columns` -> name in the row, without the hidden ones.

    Raises DataError when two columns end up under one name.
    """
    names: dict[str, str] = {}
    for column in columns:
        name = renamed_as(column, columns, renamed)
        if name == HIDDEN:
            continue
        if name in names:
            raise DataError(
                f"--columns leaves two columns under the name {name!r}: {names[name]!r} and {column!r}. "
                f"Hide the one that is not wanted: {hint({names[name]: HIDDEN})} or {hint({column: HIDDEN})}."
            )
        names[name] = column
    return names


def renamed_as(column: str, columns: Sequence[str], renamed: Mapping[str, str]) -> str:
    """The new name of a column: that of its own spelling, else that of another spelling no column has."""
    if column in renamed:
        return renamed[column]
    for old, new in renamed.items():
        if old.lower() == column.lower() and old not in columns:
            return new
    return column


def check_met(renamed: Mapping[str, str], columns: set[str]) -> None:
    """Raise DataError when a column of `--columns` is not among those that rows have."""
    lower = {column.lower() for column in columns}
    absent = [name for name in renamed if name.lower() not in lower]
    if absent and lower:
        raise DataError(
            f"--columns names {', '.join(absent)}, and no row has such a column. "
            f"There are: {', '.join(sorted(columns))}."
        )


def hint(mapping: Mapping[str, str]) -> str:
    """A `--columns` option as a user would type it."""
    pairs = ", ".join(f'"{old}": "{new}"' for old, new in mapping.items())
    return f"--columns '{{{pairs}}}'"


def _winner(part: str, aliases: tuple[str, ...], names: list[str], form: Format) -> str | None:
    candidates = [name for name in names if name.lower() in aliases]
    # An alpaca file calls its reply `output`; one published with `text` beside it holds the whole prompt there.
    exact = (part, "output") if form == "alpaca" and part == "response" else (part,)
    best = [name for name in candidates if name in exact] or [name for name in candidates if name.lower() in exact]
    chosen = best or candidates
    if len(chosen) > 1:
        raise DataError(_competing(part, chosen))
    return chosen[0] if chosen else None


def _standard(names: Mapping[str, str]) -> dict[str, str]:
    """Standard name -> name in the row; the exact spelling wins over others. Raises DataError when others compete."""
    standard = {}
    for name in STANDARD & {name.lower() for name in names}:
        spellings = [name] if name in names else [other for other in names if other.lower() == name]
        if len(spellings) > 1:
            raise DataError(_competing(name, spellings))
        standard[name] = names[spellings[0]]
    return standard


def _no_second_query(names: list[str]) -> None:
    rivals = [name for name in names if name.lower() in _QUERY and name.lower() not in ("instruction", "input")]
    if rivals:
        listed = ", ".join(rivals)
        raise DataError(
            f"the columns instruction and input make up the query together, and {listed} could be it too. Hide what "
            f"is not wanted: {hint(dict.fromkeys(rivals, HIDDEN))}, or {hint({'instruction': HIDDEN, 'input': HIDDEN})}."
        )


def _competing(part: str, names: list[str]) -> str:
    listed = " and ".join(repr(name) for name in names)
    hidden = hint(dict.fromkeys(names[1:], HIDDEN))
    return (
        f"the columns {listed} compete for the part {part!r}. Say which one it is, as {hint({names[0]: part})}, "
        f"or hide the others, as {hidden}."
    )
