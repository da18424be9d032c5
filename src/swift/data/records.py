"""This file knows where each record of a file begins, so that reading can go on from any of them.

Reading is done in two steps: `scan` finds the records and their places at the speed of the disk, `decode` makes a row
of one of them. So a process that needs every eighth row pays for the other seven no more than finding their ends.
"""

from __future__ import annotations

import csv
import json
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import pyarrow
from pyarrow import parquet

from swift.core.errors import DataError
from swift.data.files import (
    LINE_READERS,
    READERS,
    JsonReader,
    after_space,
    bad_byte,
    csv_row,
    parquet_rows,
    without_mark,
)
from swift.data.rows import BadRow, Row, RowError

_ROWS_PER_BATCH = 1000


class Place(NamedTuple):
    """Where a record begins.

    offset: in the unit of its file: bytes, characters of a JSON list, rows of a parquet file.
    line: for readers of messages, counted from 1.
    """

    offset: int
    line: int


START = Place(0, 1)


class Record(NamedTuple):
    """A record that has been found and not been decoded.

    end: where the next one may begin.
    payload: what `decode` of its file needs.
    """

    place: Place
    end: Place
    payload: Any


class Records(Protocol):
    """A file that can be read from any of its records on. It opens the file only when it is read."""

    path: Path

    @property
    def size(self) -> int:
        """The offset of its end."""
        ...

    def scan(self, start: Place) -> Iterator[Record]:
        """The records from `start` on, which is `START` or the place or end of one of them."""
        ...

    def at(self, places: Sequence[Place]) -> list[Record]:
        """The records at these places, which ascend."""
        ...

    def decode(self, record: Record) -> Row | BadRow:
        """The row that a record of this file holds, or what is wrong with it."""
        ...


def open_records(path: Path) -> Records:
    """The records of one file, by the kind that its suffix names. Raises DataError when it cannot be read."""
    kind = path.suffix.lower()
    try:
        if kind in LINE_READERS:
            return _Lines(path, kind)
        if kind == ".json":
            return _JsonValues(path) if _is_one_value(path) else _Lines(path, ".jsonl")
        if kind in _KINDS:
            return _KINDS[kind](path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    raise DataError(f"{path} is of no kind that can be read; the kinds are {', '.join(READERS)}.")


# -------------------------------------------------------------------------------------------------------------- lines


class _Lines:
    """One record per line that is not empty; offsets are bytes."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self.size = path.stat().st_size
        self._read = LINE_READERS[kind]

    def scan(self, start: Place) -> Iterator[Record]:
        with self.path.open("rb") as file:
            file.seek(start.offset)
            offset, line = start
            for raw in file:
                place = Place(offset, line)
                offset, line = offset + len(raw), line + 1
                text = raw if place.offset else without_mark(raw, self.path)
                if text.strip():
                    yield Record(place, Place(offset, line), text)

    def at(self, places: Sequence[Place]) -> list[Record]:
        return [next(self.scan(place)) for place in places]

    def decode(self, record: Record) -> Row | BadRow:
        raw: bytes = record.payload
        line = record.place.line
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            return BadRow(str(self.path), line, "", "is not UTF-8", bad_byte(raw, error))
        return next(self._read([(line, text)], str(self.path)))


# ---------------------------------------------------------------------------------------------------------------- csv


class _Counted:
    """The lines of a CSV file as text, with the place up to which they have been handed out."""

    def __init__(self, file: BinaryIO, path: Path, start: Place) -> None:
        file.seek(start.offset)
        self._file = file
        self._path = path
        self.place = start

    def __iter__(self) -> Iterator[str]:
        for raw in self._file:
            text = raw if self.place.offset else without_mark(raw, self._path)
            self.place = Place(self.place.offset + len(raw), self.place.line + 1)
            yield text.decode("utf-8", errors="surrogateescape")


class _Csv:
    """A header and records, which may go over several lines; offsets are bytes. A payload is the list of cells."""

    def __init__(self, path: Path) -> None:
        csv.field_size_limit(sys.maxsize)  # of the process; documents are longer than the 128 KiB a cell may have
        self.path = path
        self.size = path.stat().st_size
        self._header: list[str] = []
        self._body = START
        with path.open("rb") as file:
            lines = _Counted(file, path, START)
            self._header = next(csv.reader(iter(lines), strict=True), [])
            self._body = lines.place
        double = sorted({column for column in self._header if self._header.count(column) > 1})
        if double:
            raise DataError(f"{path}: the header names a column twice: {', '.join(double)}. Rename one of them.")

    def scan(self, start: Place) -> Iterator[Record]:
        with self.path.open("rb") as file:
            lines = _Counted(file, self.path, max(start, self._body))
            reader = csv.reader(iter(lines), strict=True)
            while True:
                place = lines.place
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    fault = BadRow(str(self.path), place.line, "", "is not valid CSV", str(error))
                    yield Record(place, lines.place, fault)
                    continue
                if cells:
                    yield Record(place, lines.place, cells)

    def at(self, places: Sequence[Place]) -> list[Record]:
        return [next(self.scan(place)) for place in places]

    def decode(self, record: Record) -> Row | BadRow:
        cells: list[str] | BadRow = record.payload
        return cells if isinstance(cells, BadRow) else csv_row(self._header, cells, str(self.path), record.place.line)


# --------------------------------------------------------------------------------------------------------------- json


def _is_one_value(path: Path) -> bool:
    """Whether a .json file is a list or one object, and not one object per line."""
    with path.open("rb") as file:
        for number, raw in enumerate(file):
            line = (raw if number else without_mark(raw, path)).strip()
            if line:
                return line.startswith(b"[") or (line.startswith(b"{") and not line.endswith(b"}"))
    return False


class _JsonValues:
    """The elements of a JSON list, or a single object; offsets are characters. The file is held in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._text: str | None = None
        self._decoder = JsonReader()

    @property
    def size(self) -> int:
        return len(self._content())

    def scan(self, start: Place) -> Iterator[Record]:
        text = self._content()
        try:
            place = self._first(text) if start == START else start
            while place.offset < len(text):
                value, end = self._decoder.next_record(text, place.offset)
                after = _next_value(text, end)
                following = Place(after, place.line + text.count("\n", place.offset, after))
                yield Record(place, following, value)
                place = following
        except (json.JSONDecodeError, RecursionError) as error:
            at = f":{error.lineno}: column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            words = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            raise DataError(
                f"{self.path}{at}: is not valid JSON ({words}). A JSON list cannot be read past a mistake: correct "
                "it, or write one object per line into a .jsonl file, where a broken line costs that line alone."
            ) from None

    def at(self, places: Sequence[Place]) -> list[Record]:
        return [next(self.scan(place)) for place in places]

    def decode(self, record: Record) -> Row | BadRow:
        value: dict[str, Any] | RowError = record.payload
        name, line = str(self.path), record.place.line
        return value.at(name, line) if isinstance(value, RowError) else Row(value, name, line)

    def _content(self) -> str:
        if self._text is None:
            raw = without_mark(self.path.read_bytes(), self.path)
            try:
                self._text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                line = raw.count(b"\n", 0, error.start) + 1
                raise DataError(
                    f"{self.path}:{line}: is not UTF-8 (byte 0x{raw[error.start]:02x}); save it as UTF-8."
                ) from None
        return self._text

    def _first(self, text: str) -> Place:
        """Where the first value begins; the end of the text when the list is empty."""
        position = after_space(text, 0)
        if text[position : position + 1] == "[":
            position = after_space(text, position + 1)
        if text[position : position + 1] == "]":
            position = len(text)
        return Place(position, 1 + text.count("\n", 0, position))


def _next_value(text: str, end: int) -> int:
    """Where the value after the one that ends at `end` begins; the end of the text after the last one."""
    position = after_space(text, end)
    mark = text[position : position + 1]
    if mark == ",":
        return after_space(text, position + 1)
    rest = after_space(text, position + 1 if mark == "]" else position)
    if rest != len(text):
        raise json.JSONDecodeError("Comma or closing bracket expected", text, position)
    return rest


# ------------------------------------------------------------------------------------------------------------ parquet


class _Parquet:
    """The rows of a parquet file; offsets are their numbers. A payload is a batch of rows and the place in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as file:
            groups = [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]
        self._ends = list(accumulate(groups))

    @property
    def size(self) -> int:
        return self._ends[-1] if self._ends else 0

    def scan(self, start: Place) -> Iterator[Record]:
        with self._open() as file:
            for group in range(bisect_right(self._ends, start.offset), len(self._ends)):
                row = self._ends[group - 1] if group else 0
                for batch in self._batches(file, group):
                    for index in range(max(0, start.offset - row), batch.num_rows):
                        number = row + index
                        yield Record(Place(number, number + 1), Place(number + 1, number + 2), (batch, index))
                    row += batch.num_rows

    def at(self, places: Sequence[Place]) -> list[Record]:
        wanted: dict[int, set[int]] = {}
        for place in places:
            wanted.setdefault(bisect_right(self._ends, place.offset), set()).add(place.offset)
        found: dict[int, Record] = {}
        for offsets in wanted.values():
            for record in self.scan(Place(min(offsets), 0)):
                if record.place.offset in offsets:
                    found[record.place.offset] = record
                if record.place.offset >= max(offsets):
                    break
        return [found[place.offset] for place in places]

    def decode(self, record: Record) -> Row | BadRow:
        batch, index = record.payload
        [values] = parquet_rows(batch.slice(index, 1))
        name, line = str(self.path), record.place.line
        return values.at(name, line) if isinstance(values, RowError) else Row(values, name, line)

    def _open(self) -> parquet.ParquetFile:
        try:
            return parquet.ParquetFile(self.path)
        except pyarrow.ArrowException as error:
            raise DataError(f"{self.path} is no readable parquet file: {error}.") from error

    def _batches(self, file: parquet.ParquetFile, group: int) -> Iterator[pyarrow.RecordBatch]:
        try:
            yield from file.iter_batches(batch_size=_ROWS_PER_BATCH, row_groups=[group])
        except pyarrow.ArrowException as error:
            raise DataError(f"{self.path} is no readable parquet file: {error}.") from error


_KINDS: dict[str, Callable[[Path], Records]] = {".csv": _Csv, ".parquet": _Parquet}
