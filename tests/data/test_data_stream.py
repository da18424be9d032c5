"""Rows read while training goes on: their order, their shares, and going on from any place."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

import tiny
from swift.chat.render import Renderer, Sample
from swift.core.errors import DataError, RunError, SwiftError, UsageError
from swift.data.cursor import Cursor, resumption
from swift.data.files import read_file
from swift.data.mixing import interleave
from swift.data.records import START, open_records
from swift.data.report import Report
from swift.data.rows import BadRow
from swift.data.stream import Dealer, Share, Stream, load_stream, open_stream
from swift.options.data import DataOptions
from swift.options.template import TemplateOptions

# ------------------------------------------------------------------------------------------------------------- records

JSONL = (
    b'\xef\xbb\xbf{"query": "a", "response": "b"}\n\n{"query": "\xff"}\r\n{"query": \n  \n{"a": NaN}\n["no object"]\n'
    b'{"query": "\xe4\xbd\xa0", "response": "last, without newline"}'
)
CSV = 'query,response\na,b\n"two\nlines","say ""x"""\n\nonly one cell\nc,d\n'
LIST = '[{"query": "a"},\n {"query": "b", "query": "c"}, 5,\n\n {"query": "d"}]\n'


def made(folder: Path, kind: str) -> Path:
    """A file of every kind, with whatever can be wrong in it without making it unreadable."""
    file = folder / f"rows.{kind.partition(' ')[0]}"
    if kind == "parquet":
        table = pyarrow.table({"query": [f"q{i}" for i in range(25)], "number": list(range(25))})
        parquet.write_table(table, file, row_group_size=7)
        return file
    texts = {
        "jsonl": JSONL, "csv": CSV.encode(), "txt": b"one\n\n  \ntwo\n\xff\nthree", "json": LIST.encode(),
        "json lines": b'{"query": "a"}\n{"query": "b"}\n', "json object": b'\n{"query":\n "a"}\n', "json empty": b"[]",
    }  # fmt: skip
    file.write_bytes(texts[kind])
    return file


KINDS = ("jsonl", "csv", "txt", "json", "json lines", "json object", "json empty", "parquet")


@pytest.mark.parametrize("kind", KINDS)
def test_records_are_the_rows_of_the_file_whatever_is_wrong_with_them(tmp_path, kind):
    file = made(tmp_path, kind)
    records = open_records(file)
    assert [records.decode(record) for record in records.scan(START)] == list(read_file(file))


@pytest.mark.parametrize("kind", KINDS)
def test_reading_goes_on_from_every_record_and_every_record_can_be_read_alone(tmp_path, kind):
    records = open_records(made(tmp_path, kind))
    found = list(records.scan(START))
    rows = [records.decode(record) for record in found]
    for number, record in enumerate(found):
        assert [records.decode(each) for each in records.scan(record.place)] == rows[number:]
        assert [records.decode(each) for each in records.scan(record.end)] == rows[number + 1 :]
        assert record.place < record.end
        assert record.end.offset <= records.size
    some = found[::2]
    again = open_records(records.path)
    assert [again.decode(each) for each in again.at([record.place for record in some])] == rows[::2]


def test_a_broken_list_and_an_unknown_kind_are_named(tmp_path):
    (tmp_path / "a.json").write_text('[{"query": "a"},\n {"query" "b"}]')
    with pytest.raises(DataError, match=r"a\.json:2: column"):
        list(open_records(tmp_path / "a.json").scan(START))
    (tmp_path / "a.xyz").touch()
    with pytest.raises(DataError, match="kinds are"):
        open_records(tmp_path / "a.xyz")
    with pytest.raises(DataError, match="cannot be read"):
        open_records(tmp_path / "none.jsonl")


# --------------------------------------------------------------------------------------------------------------- order


def numbered(file: Path, count: int, first: int = 0, words: int = 0) -> str:
    """Rows that say their number, and so do their samples."""
    rows = [{"query": "n", "response": f"{first + i}" + " and" * (i % (words + 1))} for i in range(count)]
    return str(tiny.jsonl(file, rows))


def opened(*files: str, max_length: int | None = 100, strategy: Any = "delete", packing_length: int | None = None,
           chat: bool = True, **options: Any) -> Stream:  # fmt: skip
    data = DataOptions(dataset=list(files), streaming=True, **options)
    template = TemplateOptions(max_length=max_length, truncation_strategy=strategy, use_chat_template=chat)
    renderer = Renderer(tiny.tokenizer(), template)
    return open_stream(data, template, renderer, packing_length=packing_length)


def said(sample: Sample) -> int:
    """The number that a sample learns to say."""
    text = tiny.tokenizer().decode([label for label in sample.labels if label != -100])
    return int(text.partition(" ")[0].partition("<")[0])


def numbers(stream: Stream, count: int) -> list[int]:
    """The first `count` rows, by a process that makes batches of one."""
    dealer = Dealer(stream, Share(1, 1))
    return [said(dealer.batch(0)[0]) for _ in range(count)]


@pytest.mark.parameter("streaming")
def test_without_shuffling_rows_come_in_the_order_of_the_files_pass_after_pass(tmp_path):
    files = numbered(tmp_path / "a.jsonl", 5), numbered(tmp_path / "b.jsonl", 3, first=5)
    assert numbers(opened(*files, dataset_shuffle=False), 20) == [*range(8), *range(8), *range(4)]


@pytest.mark.parameter("dataset")
def test_a_number_takes_the_first_rows(tmp_path):
    files = numbered(tmp_path / "a.jsonl", 5) + "#2", numbered(tmp_path / "b.jsonl", 3, first=5) + "#9"
    assert numbers(opened(*files, dataset_shuffle=False), 10) == [0, 1, 5, 6, 7] * 2


@pytest.mark.parameter("shuffle_buffer_size")
@pytest.mark.parameter("dataset_shuffle")
@pytest.mark.parametrize("size", [1, 4, 1000])
def test_shuffled_rows_come_once_per_pass_and_none_before_its_buffer_is_reached(tmp_path, size):
    order = numbers(opened(numbered(tmp_path / "a.jsonl", 40), shuffle_buffer_size=size), 80)
    first, second = order[:40], order[40:]
    assert sorted(first) == sorted(second) == list(range(40))
    assert all(row < place + size for place, row in enumerate(first))
    assert (first == list(range(40))) is (size == 1)
    assert (first == second) is (size == 1)
    if size == 1000:
        assert any(row >= place + 10 for place, row in enumerate(first))


@pytest.mark.parameter("data_seed")
def test_the_seed_decides_the_order(tmp_path):
    file = numbered(tmp_path / "a.jsonl", 30)
    orders = [numbers(opened(file, data_seed=seed), 30) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parameter("interleave_prob")
@pytest.mark.parameter("stopping_strategy")
@pytest.mark.parametrize("stopping", ["first_exhausted", "all_exhausted"])
def test_data_sets_are_interleaved_as_those_that_are_read_beforehand(tmp_path, stopping):
    files = numbered(tmp_path / "a.jsonl", 6), numbered(tmp_path / "b.jsonl", 11, first=100)
    stream = opened(*files, dataset_shuffle=False, interleave_prob=[0.3, 0.7], stopping_strategy=stopping, data_seed=5)
    wanted = []
    for seed in (5, 6):
        pairs = interleave([6, 11], [0.3, 0.7], stopping, Random(seed))
        wanted += [100 * dataset + position for dataset, position in pairs]
    assert numbers(stream, len(wanted)) == wanted


def test_probabilities_that_fit_nothing_are_an_error(tmp_path):
    with pytest.raises(DataError, match="sum to 1"):
        opened(numbered(tmp_path / "a.jsonl", 6), numbered(tmp_path / "b.jsonl", 6), interleave_prob=[0.5, 0.4])


def test_the_size_of_files_tells_how_far_a_pass_is(tmp_path):
    dealer = Dealer(opened(numbered(tmp_path / "a.jsonl", 100), shuffle_buffer_size=10), Share(1, 1))
    reached = []
    for _ in range(250):
        dealer.batch(0)
        reached.append(dealer.cursor().progress)
    assert reached == sorted(reached)
    assert reached[49] == pytest.approx(0.5, abs=0.05)
    assert [reached[99], reached[199]] == [1, 2]


# -------------------------------------------------------------------------------------------------- rows left out, cut


def mixed(file: Path, count: int = 60) -> str:
    """Rows of which every seventh is broken and every fifth very long."""
    lines = []
    for i in range(count):
        response = f"{i}" + " word" * (200 if i % 5 == 4 else i % 4)
        lines.append("{broken" if i % 7 == 6 else json.dumps({"query": "n", "response": response}))
    file.write_text("\n".join(lines))
    return str(file)


def heard(dealer: Dealer, steps: int) -> Report:
    for _ in range(steps):
        for number in range(dealer.share.accumulation):
            dealer.batch(number)
    return dealer.news


def test_rows_that_cannot_be_used_are_counted_and_replaced_by_the_next(tmp_path):
    report = heard(Dealer(opened(mixed(tmp_path / "a.jsonl"), dataset_shuffle=False), Share(1, 1)), 41)
    assert report.read == 59
    assert report.train == 41
    broken, long = report.dropped["is not valid JSON"], report.dropped["longer than --max_length 100"]
    assert (broken[0], broken[1].line) == (8, 7)
    assert (long[0], long[1].line) == (10, 5)
    assert [row.line for row in report.bad] == [7, 14, 21, 28, 35, 42, 49, 56]


@pytest.mark.parameter("strict")
def test_strict_ends_the_stream_at_the_first_bad_row_and_not_at_a_long_one(tmp_path):
    dealer = Dealer(opened(mixed(tmp_path / "a.jsonl"), dataset_shuffle=False, strict=True), Share(1, 1))
    assert [said(dealer.batch(0)[0]) for _ in range(5)] == [0, 1, 2, 3, 5]
    with pytest.raises(DataError, match=r"a\.jsonl:7: is not valid JSON"):
        dealer.batch(0)


@pytest.mark.parameter("truncation_strategy")
def test_a_row_that_is_split_gives_all_its_pieces_one_after_the_other(tmp_path):
    text = tmp_path / "a.jsonl"
    tiny.jsonl(text, [{"text": " ".join(str(i) for i in range(40 + row, 140))} for row in range(6)])
    stream = opened(str(text), strategy="split", max_length=16, chat=False, dataset_shuffle=False)
    whole = opened(str(text), max_length=None, chat=False, dataset_shuffle=False)
    dealer, uncut = Dealer(stream, Share(1, 1)), Dealer(whole, Share(1, 1))
    for _ in range(6):
        wanted, got = uncut.batch(0)[0].input_ids, []
        while len(got) + 1 < len(wanted):  # a last piece of one token learns nothing
            got += dealer.batch(0)[0].input_ids
        assert got == wanted[: len(got)]
    assert dealer.news.cut == 6


def test_a_stream_of_nothing_but_bad_rows_ends_and_says_why(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("{broken\n" * 10)
    with pytest.raises(DataError, match=r"None of the last \d+ rows can be used:\n *\d+  is not valid JSON"):
        Dealer(opened(str(file)), Share(2, 2)).batch(0)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="has no rows"):
        opened(str(tmp_path / "empty.jsonl"))


@pytest.mark.parameter("columns")
def test_a_column_that_no_row_has_is_told_after_the_first_pass(tmp_path):
    dealer = Dealer(opened(numbered(tmp_path / "a.jsonl", 4), columns={"nowhere": "query"}), Share(1, 1))
    heard(dealer, 3)
    assert dealer.remarks == []
    heard(dealer, 6)
    [remark] = dealer.remarks
    assert "nowhere" in remark


@pytest.mark.parameter("val_dataset")
def test_rows_to_validate_on_are_read_at_once(tmp_path):
    data = DataOptions(dataset=[numbered(tmp_path / "a.jsonl", 9)], val_dataset=[numbered(tmp_path / "b.jsonl", 3, 50)],
                       columns={"query": "question"}, streaming=True)  # fmt: skip
    template = TemplateOptions(max_length=100, truncation_strategy="delete")
    made: list[Any] = []

    def once(make: Callable[[], Any]) -> Any:  # as the one process of several that makes them for all
        made.append(make())
        return pickle.loads(pickle.dumps(made[0]))

    loaded = load_stream(data, template, Renderer(tiny.tokenizer(), template), once=once)
    assert len(made) == 1
    assert loaded.val is not None
    assert [said(loaded.val[i]) for i in range(3)] == [50, 51, 52]
    assert said(loaded.train.first()) in range(9)


# -------------------------------------------------------------------------------------------------------------- shares


class Counting:
    """A renderer that counts the conversations it is given."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        self.count = 0

    def samples(self, conversations: list[Any]) -> list[Sample | DataError]:
        self.count += len(conversations)
        return self.renderer.samples(conversations)


def step(dealer: Dealer) -> list[list[Sample]]:
    """The batches of a step of one process."""
    return [dealer.batch(number) for number in range(dealer.share.accumulation)]


def total(dealers: list[Dealer]) -> list[Sample]:
    """The samples of a step of all processes, in the order of their places in the total batch."""
    parts = [step(dealer) for dealer in dealers]
    return [sample for number in range(len(parts[0])) for part in parts for sample in part[number]]


SETTINGS = {
    "shuffled": {"shuffle_buffer_size": 16},
    "in order": {"dataset_shuffle": False},
    "packed": {"shuffle_buffer_size": 16, "packing_length": 100},
    "split": {"strategy": "split", "max_length": 24, "chat": False, "shuffle_buffer_size": 5},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_step_is_the_same_whatever_the_number_of_processes(tmp_path, setting):
    stream = opened(mixed(tmp_path / "a.jsonl"), **SETTINGS[setting])
    ways = [
        [Dealer(stream, Share(2, 4))],
        [Dealer(stream, Share(2, 2, rank, 2)) for rank in range(2)],
        [Dealer(stream, Share(1, 2, rank, 4)) for rank in range(4)],
        [Dealer(stream, Share(1, 1, rank, 8)) for rank in range(8)],
    ]
    for _ in range(12):
        steps = [total(dealers) for dealers in ways]
        assert all(each == steps[0] for each in steps)


def test_a_process_tokenizes_its_own_share_only(tmp_path):
    data = DataOptions(dataset=[numbered(tmp_path / "a.jsonl", 400)], streaming=True)
    template = TemplateOptions(max_length=100, truncation_strategy="delete")
    counting = Counting(Renderer(tiny.tokenizer(), template))
    dealer = Dealer(open_stream(data, template, counting), Share(1, 2, 3, 4))
    heard(dealer, 50)
    assert counting.count == 100


def test_every_row_is_seen_in_every_pass_even_where_it_does_not_fill_the_last_step(tmp_path):
    dealers = [Dealer(opened(numbered(tmp_path / "a.jsonl", 37)), Share(2, 2, rank, 2)) for rank in range(2)]
    seen = [said(sample) for _ in range(37) for sample in total(dealers)]
    assert Counter(seen) == dict.fromkeys(range(37), 8)
    assert set(seen[:40]) == set(range(37))


def test_no_lane_is_left_with_bad_rows_only(tmp_path):
    """16 rows for 16 lanes: row by row each would get the same one in every pass."""
    file = tmp_path / "a.jsonl"
    lines = ["{broken" if i < 8 else json.dumps({"query": "n", "response": str(i)}) for i in range(16)]
    file.write_text("\n".join(lines))
    dealer = Dealer(opened(str(file), dataset_shuffle=False), Share(16, 1))
    assert {said(sample) for _ in range(4) for sample in dealer.batch(0)} == set(range(8, 16))


# ------------------------------------------------------------------------------------------------------------- packing


@pytest.mark.parameter("packing")
@pytest.mark.parameter("packing_length")
def test_packs_are_full_hold_every_sample_once_and_none_waits_for_ever(tmp_path):
    stream = opened(numbered(tmp_path / "a.jsonl", 900, words=25), packing_length=100)
    dealer = Dealer(stream, Share(1, 1))
    packs = []
    while dealer.cursor().finished < 1:
        packs.append(dealer.batch(0))
    lengths = [sum(len(sample) for sample in pack) for pack in packs]
    assert max(lengths) <= 100
    assert sum(lengths) / (100 * len(packs)) > 0.96
    seen = Counter(said(sample) for pack in packs for sample in pack)
    assert set(seen) == set(range(900))
    assert seen.total() - 900 < 200


def test_a_pack_that_rows_may_not_fit_into_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UsageError, match="--packing_length 50 is shorter"):
        opened(numbered(tmp_path / "a.jsonl", 4), packing_length=50)


# ------------------------------------------------------------------------------------------------------------ going on


def went_on(stream: Stream, cursors: list[Cursor], share: Share) -> Dealer:
    """A process that begins where others were, which wrote their places as JSON."""
    read = [Cursor.from_json(json.loads(json.dumps(cursor.as_json()))) for cursor in cursors]
    return Dealer(stream, share, resumption(read, stream.plan(share.lanes), share.own))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", ["jsonl", "csv", "json", "parquet"])
def test_from_every_step_the_stream_goes_on_as_if_it_had_never_stopped(tmp_path, setting, kind):
    rows = [
        row.values for row in islice(read_file(Path(mixed(tmp_path / "rows.jsonl"))), 60) if not isinstance(row, BadRow)
    ]
    file = tmp_path / f"again.{kind}"
    if kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=13)
    elif kind == "csv":
        file.write_text("query,response\n" + "".join(f'{row["query"]},"{row["response"]}"\n' for row in rows))
    else:
        file.write_text(json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)))
    other = mixed(tmp_path / "b.jsonl", 31)
    stream = opened(
        str(file), other, interleave_prob=[0.6, 0.4], stopping_strategy="all_exhausted", **SETTINGS[setting]
    )
    share = Share(2, 2)
    whole = Dealer(stream, share)
    cursors, steps = [], []
    for _ in range(12):
        cursors.append(whole.cursor())
        steps.append(step(whole))
    for place in (0, 1, 4, 7, 10):
        resumed = went_on(stream, [cursors[place]], share)
        assert [step(resumed) for _ in steps[place : place + 2]] == steps[place : place + 2]


@pytest.mark.parametrize("setting", SETTINGS)
def test_another_number_of_processes_goes_on_where_these_were(tmp_path, setting):
    stream = opened(mixed(tmp_path / "a.jsonl"), **SETTINGS[setting])
    before = [Dealer(stream, Share(2, 2, rank, 2)) for rank in range(2)]
    for _ in range(7):
        total(before)
    cursors = [dealer.cursor() for dealer in before]
    assert cursors[0].reading.position != cursors[1].reading.position or setting == "in order"
    for processes in (1, 2, 4, 8):
        after = [went_on(stream, cursors, Share(1, 8 // processes, rank, processes)) for rank in range(processes)]
        control = [went_on(stream, cursors, Share(2, 2, rank, 2)) for rank in range(2)]
        for _ in range(5):
            assert total(after) == total(control)


def test_going_on_reads_nothing_of_what_was_read_and_given_out(tmp_path):
    """What lies before the place in the file could as well be gone."""
    file = Path(numbered(tmp_path / "a.jsonl", 3000))
    stream = opened(str(file), shuffle_buffer_size=50)
    whole = Dealer(stream, Share(4, 2))
    for _ in range(200):
        step(whole)
    cursor = whole.cursor()
    wanted = [step(whole) for _ in range(20)]
    offsets = [row.ref.offset for row in cursor.reading.rows()]
    offsets += [ref.offset for lane in cursor.lanes.values() for ref in lane.refs()]
    assert len(offsets) < 70
    content = bytearray(file.read_bytes())
    kept = [slice(offset, content.index(b"\n", offset)) for offset in offsets]
    erased = bytearray(b"#" * (cursor.reading.sets[0][1] - 1))
    for place in kept:
        erased[place] = content[place]
        erased[place.stop : place.stop + 1] = b"\n"
    file.write_bytes(erased + content[len(erased) :])
    resumed = went_on(opened(str(file), shuffle_buffer_size=50), [cursor], Share(4, 2))
    assert [step(resumed) for _ in range(20)] == wanted
    assert resumed.news.bad == []


def test_another_stream_and_missing_places_are_refused(tmp_path):
    file = numbered(tmp_path / "a.jsonl", 60)
    dealers = [Dealer(opened(file), Share(2, 2, rank, 2)) for rank in range(2)]
    total(dealers)
    cursors = [dealer.cursor() for dealer in dealers]
    with pytest.raises(RunError, match="--shuffle_buffer_size was 1000 and is 7"):
        went_on(opened(file, shuffle_buffer_size=7), cursors, Share(2, 2, 0, 2))
    with pytest.raises(RunError, match="total batch was 8 and is 4"):
        went_on(opened(file), cursors, Share(2, 2))
    with pytest.raises(RunError, match=r"lacks the files stream\*\.json"):
        went_on(opened(file), cursors[:1], Share(2, 2, 1, 2))
    Path(file).write_text(Path(file).read_text() + "{}\n")
    with pytest.raises(SwiftError, match="files was"):
        went_on(opened(file), cursors, Share(2, 2, 0, 2))
