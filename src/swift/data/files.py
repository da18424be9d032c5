"""This file knows how files of rows are read, kind by kind, so that a broken record costs that record alone.

Every reader gives Rows and, in place of each record that cannot be read, a BadRow with its line and the reason. A line
that is empty is no record. What makes a file unreadable as a whole raises DataError.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from swift.core.errors import DataError
from swift.data.rows import BadRow, Row, RowError, shown

_SPACE = re.compile(r"[ \t\r\n]*")
_ROWS_PER_BATCH = 1000
_BYTES_PER_BLOCK = 1 << 20


def read_file(path: Path) -> Iterator[Row | BadRow]:
    """The records of one file, in order, by the kind that its suffix names.

    Raises DataError when the file cannot be opened, has an unknown suffix or is broken as a whole.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path} is of no kind that can be read; the kinds are {', '.join(READERS)}.")
    try:
        yield from reader(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


@dataclass(frozen=True, slots=True)
class Block:
    """Some lines of a file of one record per line, that any process can read by itself.

    start, end: the bytes of the file they take up; a block begins where a line begins.
    line: the number of its first line, from 1.
    """

    path: Path
    start: int
    end: int
    line: int

    def records(self) -> Iterator[Row | BadRow]:
        """The records of these lines, as `read_file` gives them. Raises DataError when the file cannot be read."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                lines = io.BytesIO(file.read(self.end - self.start))
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror or error}.") from error
        yield from LINE_READERS[self.path.suffix.lower()](_numbered(lines, self.line, self.path), str(self.path))


def blocks(path: Path) -> Iterator[Block]:
    """A file of one record per line (`LINE_READERS`) in blocks of about 1 MiB, which are quick to find."""
    start, line = 0, 1
    try:
        with path.open("rb") as file:
            while lines := file.read(_BYTES_PER_BLOCK):
                lines += file.readline()
                yield Block(path, start, start + len(lines), line)
                start, line = start + len(lines), line + lines.count(b"\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


# ------------------------------------------------------------------------------------------------------------- json


class JsonReader:
    """Decodes JSON and notes, without losing its place, what JSON would let pass: duplicate keys and NaN."""

    def __init__(self) -> None:
        self._fault: RowError | None = None
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            self._fault = RowError(twice, "the key stands twice in one object")
        return made

    def _constant(self, name: str) -> None:
        self._fault = RowError("", "NaN and Infinity are no JSON", name)

    def record(self, text: str) -> dict[str, Any]:
        """The object that a whole line holds. Raises RowError."""
        self._fault = None
        try:
            return self._checked(self._decoder.decode(text), text)
        except RowError:
            raise
        except json.JSONDecodeError as error:
            raise RowError("", "is not valid JSON", f"{error.msg}, character {error.pos + 1}") from None
        except RecursionError:
            raise RowError("", "is nested too deeply") from None
        except ValueError as error:
            raise RowError("", "is not valid JSON", shown(error)) from None

    def next_record(self, text: str, start: int) -> tuple[dict[str, Any] | RowError, int]:
        """The object that begins at `start`, or what is wrong with it, and where it ends. Raises JSONDecodeError."""
        self._fault = None
        value, end = self._decoder.raw_decode(text, start)
        try:
            return self._checked(value, text[start:end]), end
        except RowError as fault:
            return fault, end

    def _checked(self, value: Any, text: str) -> dict[str, Any]:
        if self._fault is not None:
            raise self._fault
        if not isinstance(value, dict):
            raise RowError("", "is no JSON object", shown(value))
        if "\\ud" in text or "\\uD" in text:
            path = _lone_surrogate(value, "")
            if path is not None:
                raise RowError(path, "half of a surrogate pair stands alone")
        return value


def _lone_surrogate(value: Any, path: str) -> str | None:
    """The key path of the first text that is no Unicode, or None."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return path
        return None
    if isinstance(value, dict):
        items = [(f"{path}.{key}" if path else str(key), item) for key, item in value.items()]
        if any(_lone_surrogate(key, "") is not None for key in value):
            return path
    elif isinstance(value, list):
        items = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    else:
        return None
    return next((found for place, item in items if (found := _lone_surrogate(item, place)) is not None), None)


def _lines(path: Path) -> Iterator[tuple[int, str | BadRow]]:
    with path.open("rb") as file:
        yield from _numbered(file, 1, path)


def _numbered(lines: Iterable[bytes], first: int, path: Path) -> Iterator[tuple[int, str | BadRow]]:
    """The lines that are not empty, with their numbers; a line that is no UTF-8 comes as a BadRow."""
    for number, raw in enumerate(lines, first):
        line = without_mark(raw, path) if number == 1 else raw
        if not line.strip():
            continue
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            yield number, BadRow(str(path), number, "", "is not UTF-8", bad_byte(line, error))


def without_mark(start: bytes, path: Path) -> bytes:
    """The first bytes of a file without a byte order mark. Raises DataError for UTF-16 and UTF-32."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        raise DataError(f"{path} is written in UTF-16 or UTF-32; save it as UTF-8.")
    return start.removeprefix(codecs.BOM_UTF8)


def bad_byte(text: bytes, error: UnicodeDecodeError) -> str:
    """The first byte that is no UTF-8, and its place in the line."""
    return f"byte 0x{text[error.start]:02x} at column {error.start + 1}"


def _read_jsonl(path: Path) -> Iterator[Row | BadRow]:
    """One JSON object per line."""
    return _json_records(_lines(path), str(path))


def _json_records(lines: Iterable[tuple[int, str | BadRow]], name: str) -> Iterator[Row | BadRow]:
    decoder = JsonReader()
    for number, line in lines:
        if isinstance(line, BadRow):
            yield line
            continue
        try:
            yield Row(decoder.record(line), name, number)
        except RowError as fault:
            yield fault.at(name, number)


def _read_json(path: Path) -> Iterator[Row | BadRow]:
    """A list of objects, one object, or one object per line."""
    raw = without_mark(path.read_bytes(), path)
    start = raw.lstrip()
    first_line = start.partition(b"\n")[0].rstrip()
    if not start.startswith(b"[") and (not start.startswith(b"{") or first_line.endswith(b"}")):
        yield from _read_jsonl(path)
        return
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: is not UTF-8 (byte 0x{raw[error.start]:02x}); save it as UTF-8.") from None
    try:
        yield from _json_values(text, str(path))
    except (json.JSONDecodeError, RecursionError) as error:
        place = f":{error.lineno}: column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        words = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise DataError(
            f"{path}{place}: is not valid JSON ({words}). A JSON list cannot be read past a mistake: correct it, or "
            "write one object per line into a .jsonl file, where a broken line costs that line alone."
        ) from None


def _json_values(text: str, name: str) -> Iterator[Row | BadRow]:
    """The elements of a list, or a single object. Raises JSONDecodeError where the text breaks."""
    decoder = JsonReader()
    position = after_space(text, 0)
    is_list = text[position] == "["
    if is_list:
        position = after_space(text, position + 1)
    line, counted = 1, 0
    while not (is_list and text[position : position + 1] == "]"):
        line, counted = line + text.count("\n", counted, position), position
        value, position = decoder.next_record(text, position)
        yield value.at(name, line) if isinstance(value, RowError) else Row(value, name, line)
        position = after_space(text, position)
        if not is_list:
            break
        if text[position : position + 1] == ",":
            position = after_space(text, position + 1)
            if text[position : position + 1] == "]":
                raise json.JSONDecodeError("Value expected after the comma", text, position)
        elif text[position : position + 1] != "]":
            raise json.JSONDecodeError("Comma or closing bracket expected", text, position)
    end = after_space(text, position + 1 if is_list else position)
    if end != len(text):
        raise json.JSONDecodeError("Nothing more expected", text, end)


def after_space(text: str, position: int) -> int:
    """The first position from `position` on that holds none of JSON's blanks."""
    space = _SPACE.match(text, position)
    assert space is not None, "the pattern matches nothing too"
    return space.end()


# ------------------------------------------------------------------------------------------------ csv, text, parquet


def _read_csv(path: Path) -> Iterator[Row | BadRow]:
    """A header and records; every cell is text as it stands: `NA`, `null` and the empty cell are no special values."""
    name = str(path)
    csv.field_size_limit(sys.maxsize)  # of the process; documents are longer than the 128 KiB a cell may have
    with path.open("rb") as file:
        reader = csv.reader(_csv_lines(file, path), strict=True)
        header = next(reader, None)
        if header is None:
            return
        double = sorted({column for column in header if header.count(column) > 1})
        if double:
            raise DataError(f"{path}: the header names a column twice: {', '.join(double)}. Rename one of them.")
        while True:
            line = reader.line_num + 1
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield BadRow(name, line, "", "is not valid CSV", str(error))
                continue
            if record:
                yield csv_row(header, record, name, line)


def _csv_lines(file: Iterable[bytes], path: Path) -> Iterator[str]:
    for number, raw in enumerate(file):
        line = raw if number else without_mark(raw, path)
        yield line.decode("utf-8", errors="surrogateescape")


def csv_row(header: list[str], record: list[str], name: str, line: int) -> Row | BadRow:
    """The row of one CSV record, whose bytes that are no UTF-8 are surrogates."""
    if len(record) != len(header):
        return BadRow(name, line, "", "has not as many cells as the header", f"{len(record)} of {len(header)}")
    for column, cell in zip(header, record, strict=True):
        if not cell.isascii() and _lone_surrogate(cell, "") is not None:
            return BadRow(name, line, column, "is not UTF-8")
    return Row(dict(zip(header, record, strict=True)), name, line)


def _read_text(path: Path) -> Iterator[Row | BadRow]:
    """One row per line, in the column `text`."""
    return _text_records(_lines(path), str(path))


def _text_records(lines: Iterable[tuple[int, str | BadRow]], name: str) -> Iterator[Row | BadRow]:
    for number, line in lines:
        yield line if isinstance(line, BadRow) else Row({"text": line.rstrip("\r\n")}, name, number)


def _read_parquet(path: Path) -> Iterator[Row | BadRow]:
    """The rows of a parquet file; their number stands for the line."""
    name, number = str(path), 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_ROWS_PER_BATCH):
                for values in parquet_rows(batch):
                    number += 1
                    if isinstance(values, RowError):
                        yield values.at(name, number)
                    else:
                        yield Row(values, name, number)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is no readable parquet file: {error}.") from error


def parquet_rows(batch: pyarrow.RecordBatch) -> list[dict[str, Any] | RowError]:
    """The rows of a batch; a row with text that is no UTF-8 is a RowError in its place."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            return [RowError("", "is not UTF-8")]
        return [row for index in range(batch.num_rows) for row in parquet_rows(batch.slice(index, 1))]


READERS: dict[str, Callable[[Path], Iterator[Row | BadRow]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".txt": _read_text,
    ".parquet": _read_parquet,
}
"""Suffix -> reader of the files that have it."""

LINE_READERS: dict[str, Callable[[Iterable[tuple[int, str | BadRow]], str], Iterator[Row | BadRow]]] = {
    ".jsonl": _json_records,
    ".txt": _text_records,
}
"""Suffix -> reader of numbered lines, for the kinds of files in which every line is a record of its own."""
