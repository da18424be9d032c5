from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

import tiny
from swift.core.errors import DataError
from swift.data.files import READERS, read_file
from swift.data.library import Library
from swift.data.rows import BadRow, Row
from swift.options.data import DataOptions
from swift.options.row_sources import KINDS, parse_source


def values(path: Path) -> list[dict]:
    rows = list(read_file(path))
    assert all(isinstance(row, Row) for row in rows), rows
    return [row.values for row in rows if isinstance(row, Row)]


def read(argument: str) -> list[dict]:
    readings = Library.of(DataOptions()).readings(parse_source(argument))
    return [row.values for reading in readings for row in read_file(reading.file) if isinstance(row, Row)]


# ---------------------------------------------------------------------------------------------------------- arguments


def test_an_argument_is_taken_apart():
    source = parse_source("ms::swift/stsb:positive/reg#500")
    assert (source.hub, source.name, source.subsets, source.count) == ("ms", "swift/stsb", ("positive", "reg"), 500)
    assert parse_source("HF::a/b").hub == "hf"
    assert parse_source("a/b").count is None


def test_a_path_that_exists_as_written_is_taken_as_written(tmp_path: Path):
    odd = tiny.jsonl(tmp_path / "a:b#3.jsonl", [{"query": "q"}])
    assert parse_source(str(odd)).path == odd
    assert parse_source(str(odd)).count is None
    with_number = parse_source(f"{odd}#7")
    assert (with_number.path, with_number.count, with_number.subsets) == (odd, 7, ())


def test_the_home_folder_can_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny.jsonl(tmp_path / "rows.jsonl", [{"query": "q"}])
    assert read("~/rows.jsonl#5") == [{"query": "q"}]


@pytest.mark.parametrize("number", ["0", "-3", "many", "1.5", "", "²"])
def test_a_number_of_rows_that_is_none_is_refused(number: str):
    with pytest.raises(DataError, match="whole number from 1"):
        parse_source(f"rows.jsonl#{number}")


@pytest.mark.parametrize("argument", ["", "#5", "hf::", ":small"])
def test_an_argument_without_a_name_is_refused_and_not_taken_for_this_folder(argument: str):
    with pytest.raises(DataError, match="names no file, folder or data set"):
        parse_source(argument)


@pytest.mark.parametrize("name", ["./rows.jsonl", "/nowhere/rows", "rows.csv", "~/nowhere"])
def test_a_path_that_does_not_exist_is_named(name: str):
    with pytest.raises(DataError, match=f"no file or folder {name}"):
        read(name)


def test_messages_name_the_option_that_was_used():
    with pytest.raises(DataError, match=r"--val_dataset nowhere\.jsonl"):
        Library.of(DataOptions()).readings(parse_source("nowhere.jsonl", "--val_dataset"))


def test_a_file_has_no_subsets(tmp_path: Path):
    path = tiny.jsonl(tmp_path / "rows.jsonl", [{"query": "q"}])
    with pytest.raises(DataError, match="has no subsets"):
        read(f"{path}:small")


# -------------------------------------------------------------------------------------------------------------- kinds


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path):
    rows = [{"query": "one, two", "response": 'say "three"\nfour'}, {"query": "NA", "response": "你好"}]
    tiny.jsonl(tmp_path / "a.jsonl", rows)
    tiny.jsonl(tmp_path / "lines.json", rows)
    (tmp_path / "list.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
    (tmp_path / "a.csv").write_text('query,response\n"one, two","say ""three""\nfour"\nNA,你好\n', encoding="utf-8")
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "lines.json", "list.json", "a.csv", "a.parquet"):
        assert values(tmp_path / name) == rows, name


def test_a_single_object_is_a_row(tmp_path: Path):
    path = tmp_path / "one.json"
    path.write_text('{\n  "query": "q"\n}\n', encoding="utf-8")
    assert values(path) == [{"query": "q"}]


def test_text_has_a_row_per_line_that_is_not_empty(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_bytes("one\r\n\n  two\u2028three\n".encode())
    assert list(read_file(path)) == [
        Row({"text": "one"}, str(path), 1),
        Row({"text": "  two\u2028three"}, str(path), 3),
    ]


def test_csv_cells_are_text_as_they_stand(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text("a,b,c\nNA,null,\n1,1.50,nan\n", encoding="utf-8")
    assert values(path) == [{"a": "NA", "b": "null", "c": ""}, {"a": "1", "b": "1.50", "c": "nan"}]


def test_csv_rows_are_numbered_by_the_line_they_begin_on(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text('a,b\n"x\ny",1\nz,2\n', encoding="utf-8")
    assert [row.line for row in read_file(path)] == [2, 4]


def test_a_csv_cell_may_be_as_long_as_a_document(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text(f"text\n{'x' * 300_000}\n", encoding="utf-8")
    assert len(values(path)[0]["text"]) == 300_000


def test_a_byte_order_mark_belongs_to_no_row(tmp_path: Path):
    for name, text in {"a.jsonl": '{"q": 1}', "b.json": '[{"q": 1}]', "c.csv": "q\n1"}.items():
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert list(values(tmp_path / name)[0]) == ["q"], name


def test_utf16_is_recognised(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"q": 1}', encoding="utf-16")
    with pytest.raises(DataError, match="UTF-16"):
        values(tmp_path / "a.jsonl")


def test_a_list_that_breaks_is_an_error_with_line_and_column(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text('[\n{"q": 1},\n{"q": 2,}\n]', encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.json:3: column 9.*jsonl"):
        values(path)
    path.write_text('[\n{"q": 1},\n{"q": 2}', encoding="utf-8")
    with pytest.raises(DataError, match="is not valid JSON"):
        values(path)
    for text in ('[{"q": 1},]', '[{"q": 1}] 2', '[{"q": 1} {"q": 2}]', '{\n"q": 1\n}\n{"q": 2}'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match="is not valid JSON"):
            values(path)


def test_a_bad_element_of_a_list_costs_that_element(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text('[\n{"q": 1},\n{"q": NaN},\n[1],\n{"q": 1, "q": 2},\n{"q": 5}]', encoding="utf-8")
    rows = list(read_file(path))
    assert [(type(row), row.line) for row in rows] == [(Row, 2), (BadRow, 3), (BadRow, 4), (BadRow, 5), (Row, 6)]


def test_a_broken_parquet_file_is_an_error(tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(DataError, match="no readable parquet"):
        values(tmp_path / "a.parquet")


def test_an_unknown_kind_is_refused_with_the_kinds_there_are(tmp_path: Path):
    (tmp_path / "a.xlsx").write_bytes(b"")
    with pytest.raises(DataError, match=r"the kinds are \.jsonl"):
        values(tmp_path / "a.xlsx")


BROKEN = {
    b'{"query": "a", "response": "b"': "is not valid JSON",
    b"{'query': 'a'}": "is not valid JSON",
    b'{"query": "\xff\xfe"}': "is not UTF-8",
    b'{"query": "caf\xe9"}': "is not UTF-8",
    b'{"query": NaN}': "NaN and Infinity are no JSON",
    b'{"label": -Infinity}': "NaN and Infinity are no JSON",
    b'{"query": "\\ud83d"}': "half of a surrogate pair",
    b'{"\\ud83d": 1}': "half of a surrogate pair",
    b'{"messages": [{"role": "user", "content": "\\uDE00 x"}]}': "half of a surrogate pair",
    b'["a", "list"]': "is no JSON object",
    b'"text"': "is no JSON object",
    b"null": "is no JSON object",
    b'{"query": "a", "query": "b"}': "the key stands twice",
    b'{"messages": [{"role": "user", "role": "assistant"}]}': "the key stands twice",
    b'{"query": "a"} {"query": "b"}': "is not valid JSON",
    b"[" * 100_000: "is nested too deeply",
    b'{"query": "\\ud83d\\ude00", "x": ' + b"[" * 600 + b"]" * 600 + b"}": "is nested too deeply",
    b'{"n": ' + b"9" * 5000 + b"}": "is not valid JSON",
    b'{"query": "tab\there"}': "is not valid JSON",
    b"\x00\x00": "is not valid JSON",
}


def test_every_broken_line_is_named_with_its_line_and_the_rest_is_kept(tmp_path: Path):
    path = tmp_path / "broken.jsonl"
    lines = [line for broken in BROKEN for line in (b'{"query": "fine \\ud83d\\ude00"}', broken)]
    path.write_bytes(b"\n".join(lines))
    rows = list(read_file(path))
    assert len(rows) == len(lines)
    for number, (row, (line, reason)) in enumerate(zip(rows[1::2], BROKEN.items(), strict=True), 1):
        assert isinstance(row, BadRow), line
        assert reason in row.reason, (line[:50], row)
        assert row.line == 2 * number
        assert str(row).startswith(f"{path}:{2 * number}: ")
    assert all(isinstance(row, Row) and row.values == {"query": "fine 😀"} for row in rows[::2])


def test_the_place_of_a_lone_surrogate_is_named(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "x", "content": "\\ud83d"}]}')
    [row] = read_file(path)
    assert isinstance(row, BadRow)
    assert row.key_path == "messages[1].content"


def test_broken_csv_records_cost_only_themselves(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"query,response\na,b\nc\nd,e,f\ncaf\xe9,x\n\nlast,row\n")
    rows = list(read_file(path))
    assert [row.values["query"] for row in rows if isinstance(row, Row)] == ["a", "last"]
    bad = [(row.line, row.reason) for row in rows if isinstance(row, BadRow)]
    assert bad == [
        (3, "has not as many cells as the header"),
        (4, "has not as many cells as the header"),
        (5, "is not UTF-8"),
    ]


def test_a_csv_header_names_a_column_once(tmp_path: Path):
    (tmp_path / "a.csv").write_text("a,b,a\n1,2,3\n")
    with pytest.raises(DataError, match="names a column twice: a"):
        values(tmp_path / "a.csv")


# ------------------------------------------------------------------------------------------------------------ folders


@pytest.mark.parametrize("name", ["evaluation", "testing", "eval", "dev"])
def test_a_file_of_another_split_is_not_trained_on(tmp_path: Path, name: str):
    (tmp_path / "rows.jsonl").write_text('{"text": "learnt"}\n')
    (tmp_path / f"{name}.jsonl").write_text('{"text": "held back"}\n')
    assert [row["text"] for row in read(str(tmp_path))] == ["learnt"]


@pytest.mark.parameter("dataset")
def test_a_folder_is_all_its_files_in_order_and_nothing_else(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / ".git").mkdir()
    tiny.jsonl(tmp_path / "data" / "b.jsonl", [{"query": "2"}])
    tiny.jsonl(tmp_path / "a.jsonl", [{"query": "1"}])
    tiny.jsonl(tmp_path / ".git" / "c.jsonl", [{"query": "hidden"}])
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / "README.md").write_text("words")
    assert read(str(tmp_path)) == [{"query": "1"}, {"query": "2"}]


def test_of_a_folder_with_splits_the_training_split_is_read(tmp_path: Path):
    tiny.jsonl(tmp_path / "train-00000-of-00002.jsonl", [{"query": "1"}])
    tiny.jsonl(tmp_path / "train-00001-of-00002.jsonl", [{"query": "2"}])
    tiny.jsonl(tmp_path / "test.jsonl", [{"query": "3"}])
    tiny.jsonl(tmp_path / "extra.jsonl", [{"query": "4"}])
    assert read(str(tmp_path)) == [{"query": "1"}, {"query": "2"}]


def test_of_a_folder_with_another_split_only_the_rest_is_read(tmp_path: Path):
    tiny.jsonl(tmp_path / "rows.jsonl", [{"query": "1"}])
    tiny.jsonl(tmp_path / "validation.jsonl", [{"query": "2"}])
    assert read(str(tmp_path)) == [{"query": "1"}]


def test_a_folder_that_holds_one_split_only_is_read(tmp_path: Path):
    tiny.jsonl(tmp_path / "test.jsonl", [{"query": "1"}])
    assert read(str(tmp_path)) == [{"query": "1"}]


def test_subsets_are_folders_or_files_of_the_folder(tmp_path: Path):
    for name in ("large", "small"):
        (tmp_path / name).mkdir()
        tiny.jsonl(tmp_path / name / "rows.jsonl", [{"query": name}])
    tiny.jsonl(tmp_path / "other.jsonl", [{"query": "other"}])
    assert read(f"{tmp_path}:small") == [{"query": "small"}]
    assert read(f"{tmp_path}:other/large") == [{"query": "other"}, {"query": "large"}]
    with pytest.raises(DataError, match=r"no subset 'tiny'. There are: large, other, small"):
        read(f"{tmp_path}:tiny")


def test_a_folder_without_data_is_an_error(tmp_path: Path):
    (tmp_path / "README.md").write_text("words")
    with pytest.raises(DataError, match="holds no file of the kinds"):
        read(str(tmp_path))


def test_the_kinds_of_files_that_a_name_is_known_by_are_those_that_are_read():
    assert set(KINDS) == set(READERS)


@pytest.mark.parameter("dataset")
def test_a_text_that_is_too_long_for_a_name_is_refused_in_short():
    with pytest.raises(
        DataError, match=r"--val_dataset a+\.\.\.: no file, folder or data set .*: File name too long"
    ) as caught:
        parse_source("a" * 5000, "--val_dataset")
    assert len(str(caught.value)) < 250
