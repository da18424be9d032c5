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

STANDARD = frozenset(
    ["tools", "objects", "label", "channel", "margin", "rejected_response"]
    + [
        f"{side}_{what}"
        for side in ("rejected", "positive", "negative")
        for what in ("messages", "images", "videos", "audios", "tools", "objects")
    ]
)
"""Columns that mean something by their own name in every format."""


@dataclass(frozen=True)
class Shape:
    """What the columns of a row are.

    format: how the conversation is written.
    parts: part -> the column that plays it, by the name it has in the row.
    standard: the columns of `STANDARD` that are there: standard name -> name in the row.
    others: all other columns, by the name they have after `--columns` -> name in the row.
    """

    format: Format
    parts: dict[str, str]
    standard: dict[str, str]
    others: dict[str, str]


def shape_of(columns: Sequence[str], renamed: Mapping[str, str]) -> Shape:
    """The parts that the columns of a row play, after the user's own renaming (`--columns`).

    Raises DataError when two columns compete for one part.
    """
    names = rename(columns, renamed)
    lower = {name.lower() for name in names}
    if lower & set(PARTS["messages"]["messages"]):
        form: Format = "messages"
    elif {"instruction", "input"} <= lower:
        form = "alpaca"
    else:
        form = "query"
    parts = {}
    for part, aliases in PARTS[form].items():
        winner = _winner(part, aliases, list(names), form)
        if winner is not None:
            parts[part] = names[winner]
    if form == "alpaca":
        _no_second_query(list(names))
    taken = set(parts.values())
    standard = {name.lower(): column for name, column in names.items() if name.lower() in STANDARD}
    others = {
        name: column
        for name, column in names.items()
        if (column not in taken or name.lower() == "solution") and name.lower() not in STANDARD
    }
    return Shape(form, parts, standard, others)


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
