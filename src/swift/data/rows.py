"""This file knows what a row is, where it came from, and how a row that cannot be used says why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from swift.core.errors import DataError


@dataclass(slots=True)
class Row:
    """One record of a file.

    file: the path as a reader of a message can find it.
    line: where the record begins, counted from 1; the number of the row in files that have no lines (parquet).
    """

    values: dict[str, Any]
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class BadRow:
    """A record that cannot be used.

    key_path: the place inside the record, as `messages[2].role`; "" when it is the record as a whole.
    reason: what is wrong there, in words that are the same for all records with the same fault.
    detail: what stood there, shortened; "" when there is nothing to show.
    """

    file: str
    line: int
    key_path: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: {self.key_path}".removesuffix(": ")
        return f"{place}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


class RowError(DataError):
    """A fault inside one record; the record's file and line are known to whoever reads the file."""

    def __init__(self, key_path: str, reason: str, detail: str = "") -> None:
        super().__init__(key_path, reason, detail)
        self.key_path = key_path
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        words = f"{self.key_path}: {self.reason}" if self.key_path else self.reason
        return words + (f" ({self.detail})" if self.detail else "")

    def at(self, file: str, line: int) -> BadRow:
        """The same fault with its place."""
        return BadRow(file, line, self.key_path, self.reason, self.detail)


def shown(value: object, limit: int = 60) -> str:
    """A value short enough for a message."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
