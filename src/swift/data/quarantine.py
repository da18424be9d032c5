"""This file knows how the rows that could not be used are kept: place, reason and text, in a file beside the run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from pyarrow import parquet

from swift.data.formats import write_rows
from swift.data.rows import BadRow

FILE_NAME = "bad_rows.jsonl"
MAX_BYTES = 4096
"""How much of a row's text is kept."""


def write_bad_rows(rows: Sequence[BadRow], folder: Path) -> Path | None:
    """Write `bad_rows.jsonl` into `folder`, behind what stands there of other rows; None when there are none to write.

    A line is an object of `file`, `line`, `key_path`, `reason`, `detail` and `raw`: the beginning of the row as it
    stands in its file, at most `MAX_BYTES` of UTF-8, in which bytes that are none are written as `\\xff`.
    """
    if not rows:
        return None
    path = folder / FILE_NAME
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    places = {(row.file, row.line) for row in rows}
    before = [each for each in map(json.loads, lines) if (each["file"], each["line"]) not in places]
    beside = path.with_suffix(".new")
    write_rows(beside, chain(before, _records(rows)))
    return beside.replace(path)


def note_bad_rows(rows: Sequence[BadRow], folder: Path) -> None:
    """Add rows at once and without their texts, which take a walk through their files, for a run that may be killed.

    Several processes may do so; `write_bad_rows` of the same rows takes the place of what they wrote.
    """
    text = "".join(json.dumps({**asdict(row), "raw": ""}, ensure_ascii=False) + "\n" for row in rows)
    with (folder / FILE_NAME).open("ab", buffering=0) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def _records(rows: Sequence[BadRow]) -> Iterator[dict[str, Any]]:
    for file, group in groupby(rows, key=lambda row: row.file):
        some = list(group)
        texts = _texts(Path(file), {row.line for row in some})
        for row in some:
            yield {**asdict(row), "raw": texts.get(row.line, "")}


def _texts(path: Path, lines: set[int]) -> dict[int, str]:
    """The beginnings of these lines; of a parquet file, of these rows, written as JSON."""
    if path.suffix.lower() == ".parquet":
        return _parquet_texts(path, lines)
    with path.open("rb") as file:
        return {number: _shortened(line) for number, line in _chosen(file, lines)}


def _chosen(file: Iterable[bytes], lines: set[int]) -> Iterator[tuple[int, bytes]]:
    last = max(lines)
    for number, line in enumerate(file, 1):
        if number in lines:
            yield number, line.rstrip(b"\r\n")
        if number == last:
            return


def _shortened(line: bytes) -> str:
    return line[:MAX_BYTES].decode("utf-8", errors="backslashreplace")


def _parquet_texts(path: Path, rows: set[int]) -> dict[int, str]:
    texts, first = {}, 1
    with parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            chosen = sorted(row for row in rows if first <= row < first + count)
            if chosen:
                table = file.read_row_group(group)
                for row in chosen:
                    texts[row] = _shortened(_as_json(table.slice(row - first, 1)).encode())
            first += count
    return texts


def _as_json(table: Any) -> str:
    try:
        return json.dumps(table.to_pylist()[0], ensure_ascii=False, default=str)
    except UnicodeDecodeError:
        return str(table)
