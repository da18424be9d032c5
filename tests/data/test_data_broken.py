"""A file with every kind of broken row among many good ones: each is reported with its line, the rest is kept."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

import tiny
from swift import cli
from swift.core.errors import DataError
from swift.data.conversations import load_conversations
from swift.data.quarantine import MAX_BYTES, write_bad_rows
from swift.data.rows import BadRow
from swift.options.data import DataOptions

GOOD = json.dumps(
    {"messages": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "\\ud83d"}]}
).encode()
DEEP = b"[" * 10_000 + b"]" * 10_000
KINDS: dict[bytes, tuple[str, str]] = {
    GOOD[:-9]: ("", "is not valid JSON"),
    GOOD.replace(b"role", b"r\xe9le", 1): ("", "is not UTF-8"),
    b"\xef\xbb\xbf" + GOOD: ("", "is not valid JSON"),
    b'{"query": NaN, "response": "a"}': ("", "NaN and Infinity are no JSON"),
    b'{"query": "\\ud83d", "response": "a"}': ("query", "half of a surrogate pair stands alone"),
    b'{"query": {"text": "u"}, "response": "a"}': ("query", "is no text"),
    b'{"messages": [{"role": null, "content": "u"}]}': ("messages[0].role", "is missing"),
    b'{"messages": [{"role": "user", "content": ' + DEEP + b"}]}": ("", "is nested too deeply"),
    b'{"query": "u", "response": "a", "response": "b"}': ("response", "the key stands twice in one object"),
    b'{"title": "of another schema", "year": 1999}': ("", "has no message, query or response"),
    b'{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": null}]}': (
        "messages[1].content",
        "is null",
    ),
    b'["a", "list"]': ("", "is no JSON object"),
}
NUM_ROWS, NUM_BAD = 10_000, 137


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, tuple[str, str]]]:
    """The file, and for the line of every bad row its key path and reason."""
    path = tmp_path_factory.mktemp("broken") / "rows.jsonl"
    long = json.dumps({"query": "u", "response": "long " * 2_000_000}).encode()
    kinds = list(KINDS.items())
    lines, bad = [GOOD] * NUM_ROWS, {}
    for number in range(NUM_BAD):
        place = number * (NUM_ROWS // NUM_BAD) + number % 7
        lines[place], bad[place + 1] = kinds[number % len(kinds)]
    lines[5_003] = long
    assert 5_004 not in bad
    path.write_bytes(b"\n".join(lines))
    return path, bad


def test_every_bad_row_is_reported_with_line_and_reason_and_every_other_is_kept(
    broken: tuple[Path, dict[int, tuple[str, str]]],
):
    path, bad = broken
    loaded = load_conversations(DataOptions(dataset=[str(path)], dataset_shuffle=False))
    assert {row.line: (row.key_path, row.reason) for row in loaded.report.bad} == bad
    assert len(loaded.report.bad) == NUM_BAD
    assert loaded.report.read == NUM_ROWS
    kept = [item.line for item in loaded.train]
    assert kept == [line for line in range(1, NUM_ROWS + 1) if line not in bad]
    assert len(loaded.train[kept.index(5_004)].conversation.messages[1].content) == 10_000_000
    counts = Counter(reason for _, reason in bad.values())
    assert Counter(row.reason for row in loaded.report.bad) == counts


def test_the_bad_rows_are_written_with_their_place_their_reason_and_their_text(
    broken: tuple[Path, dict[int, tuple[str, str]]], tmp_path: Path
):
    path, bad = broken
    report = load_conversations(DataOptions(dataset=[str(path)], dataset_shuffle=False)).report
    written = write_bad_rows(report.bad, tmp_path)
    assert written == tmp_path / "bad_rows.jsonl"
    records = [json.loads(line) for line in written.read_text(encoding="utf-8").splitlines()]
    assert [(record["file"], record["line"]) for record in records] == [(str(path), line) for line in sorted(bad)]
    lines = path.read_bytes().split(b"\n")
    for record in records:
        assert (record["key_path"], record["reason"]) == bad[record["line"]]
        raw = lines[record["line"] - 1][:MAX_BYTES]
        assert record["raw"] == raw.decode("utf-8", errors="backslashreplace")
    assert written.stat().st_size < 200_000


@pytest.mark.parameter("strict")
def test_strict_stops_at_the_first_bad_row(broken: tuple[Path, dict[int, tuple[str, str]]]):
    path, bad = broken
    with pytest.raises(DataError, match=rf"rows\.jsonl:{min(bad)}: is not valid JSON"):
        load_conversations(DataOptions(dataset=[str(path)], strict=True))


def test_a_missing_file_among_others_is_an_error_before_any_is_read(broken: tuple[Path, dict[int, tuple[str, str]]]):
    path, _ = broken
    missing = str(path.with_name("none.jsonl"))
    with pytest.raises(DataError, match="there is no file or folder"):
        load_conversations(DataOptions(dataset=[str(path), missing], strict=True))


@pytest.mark.slow
def test_a_training_leaves_its_bad_rows_in_its_folder(tmp_path: Path):
    path = tiny.jsonl(tmp_path / "rows.jsonl", [*tiny.conversations(4), {"nothing": 1}])
    command = ["sft", "--model", str(tiny.checkpoint(tmp_path / "model")), "--dataset", str(path), "--max_steps", "1"]
    assert cli.main([*command, "--output_dir", str(tmp_path / "run"), "--add_version", "false"]) == 0
    [record] = [json.loads(line) for line in (tmp_path / "run" / "bad_rows.jsonl").read_text().splitlines()]
    assert (record["line"], record["raw"]) == (5, '{"nothing": 1}')


def test_a_run_without_bad_rows_writes_no_file(tmp_path: Path):
    assert write_bad_rows([], tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_bad_rows_of_several_kinds_of_files_have_their_text(tmp_path: Path):
    rows = [{"query": f"q{i}", "n": i} for i in range(5)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=2)
    (tmp_path / "b.csv").write_bytes(b"query,response\nu,a\nonly \xff one\n")
    bad = [
        BadRow(str(tmp_path / "a.parquet"), 4, "n", "is odd"),
        BadRow(str(tmp_path / "b.csv"), 3, "", "has not as many cells"),
        BadRow(str(tmp_path / "a.parquet"), 1, "n", "is odd"),
    ]
    (tmp_path / "run").mkdir()
    written = write_bad_rows(bad, tmp_path / "run")
    assert written is not None
    records = [json.loads(line) for line in written.read_text(encoding="utf-8").splitlines()]
    assert [record["raw"] for record in records] == [
        '{"query": "q3", "n": 3}',
        "only \\xff one",
        '{"query": "q0", "n": 0}',
    ]
