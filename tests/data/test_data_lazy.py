from __future__ import annotations

import gc
import pickle
import tempfile
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

import tiny
from swift.chat.render import Renderer
from swift.core.errors import DataError, UsageError
from swift.data.encode import load_samples
from swift.data.lazy import LazyData, load_lazily
from swift.options.data import DataOptions
from swift.options.template import TemplateOptions


def load(path: Path, *, template: dict[str, Any] | None = None, **options: Any) -> LazyData:
    chosen = TemplateOptions(**(template or {}))
    return load_lazily(DataOptions(dataset=[str(path)], **options), chosen, Renderer(tiny.tokenizer(), chosen))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return tiny.jsonl(tmp_path / "rows.jsonl", [*tiny.conversations(40), {"messages": []}])


@pytest.mark.parameter("lazy_tokenize")
def test_lazy_and_eager_give_the_same_samples_in_the_same_order(rows: Path):
    options = DataOptions(dataset=[f"{rows}#30"], split_dataset_ratio=0.2)
    eager = load_samples(options, TemplateOptions(), Renderer(tiny.tokenizer(), TemplateOptions()))
    lazy = load_lazily(options, TemplateOptions(), Renderer(tiny.tokenizer(), TemplateOptions()))
    assert lazy.val is not None
    assert eager.val is not None
    assert [lazy.train[i] for i in range(24)] == [eager.train[i] for i in range(24)]
    assert [lazy.val[i] for i in range(6)] == [eager.val[i] for i in range(6)]
    assert lazy.val_rows == eager.val_rows
    assert lazy.report.num_dropped == 1
    assert "tokenized during training" in lazy.train.describe()


@pytest.mark.parameter("lazy_tokenize")
def test_nothing_is_tokenized_before_it_is_asked_for(rows: Path, monkeypatch: pytest.MonkeyPatch):
    template = TemplateOptions()
    renderer = Renderer(tiny.tokenizer(), template)
    rendered = []
    monkeypatch.setattr(Renderer, "samples", lambda _, given: rendered.append(given) or [DataError("no")])
    train = load_lazily(DataOptions(dataset=[str(rows)]), template, renderer).train
    assert (len(train), rendered) == (40, [])
    with pytest.raises(DataError):
        train[0]
    assert len(rendered) == 10


def limited(path: Path, **options: Any) -> LazyData:
    return load(path, template={"max_length": 100}, dataset_shuffle=False, **options)


def test_a_row_that_cannot_be_used_is_named_counted_and_replaced_by_the_next(tmp_path: Path, logged: list[str]):
    long = {"query": "word " * 60, "response": "no"}
    rows = tiny.conversations(6)
    path = tiny.jsonl(tmp_path / "rows.jsonl", [rows[1], long, rows[2], long])
    train = limited(path).train
    assert [train[i] for i in range(4)] == [train[0], train[2], train[2], train[0]]
    assert train[0] != train[2]
    assert train.num_unusable == 2
    named = [message for message in logged if "the next row takes its place" in message]
    assert [f"{path}:2: longer than --max_length 100" in named[0], f"{path}:4: " in named[1], len(named)] == [1, 1, 2]
    with pytest.raises(DataError, match=r"rows.jsonl:2: longer.*--strict true"):
        limited(path, strict=True).train[1]


def test_only_the_first_of_many_such_rows_are_named(tmp_path: Path, logged: list[str]):
    long = {"query": "word " * 60, "response": "no"}
    path = tiny.jsonl(
        tmp_path / "rows.jsonl", [row for good in tiny.conversations(3)[1:] for row in [good, *[long] * 8]] * 3
    )
    train = limited(path).train
    for i in range(len(train)):
        assert len(train[i]) <= 100
    assert train.num_unusable == 48
    assert sum("the next row takes its place" in message for message in logged) == 10
    assert sum("are counted and not named" in message for message in logged) == 1


def test_ten_such_rows_one_after_the_other_are_an_error_that_says_what_to_do(tmp_path: Path):
    long = {"query": "word " * 60, "response": "no"}
    path = tiny.jsonl(tmp_path / "rows.jsonl", [long] * 12 + tiny.conversations(2))
    with pytest.raises(
        DataError, match=r"10 rows one after the other cannot be used.*rows.jsonl:10.*raise --max_length"
    ):
        limited(path).train[0]


@pytest.mark.parameter("truncation_strategy")
def test_long_rows_are_cut_when_they_are_needed(rows: Path):
    template = {"max_length": 60, "truncation_strategy": "right"}
    train = load(rows, template=template, dataset_shuffle=False).train
    whole = load(rows, dataset_shuffle=False).train
    assert train[0].input_ids == whole[0].input_ids[:60]
    with pytest.raises(UsageError, match="--truncation_strategy split"):
        load(rows, template={"max_length": 60, "truncation_strategy": "split", "use_chat_template": False})


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_that_load_batches_share_the_count(tmp_path: Path):
    long = {"query": "word " * 60, "response": "no"}
    path = tiny.jsonl(tmp_path / "rows.jsonl", [row for good in tiny.conversations(12) for row in (long, good)])
    train = pickle.loads(pickle.dumps(limited(path).train))  # as another process of the run gets it
    # Its file went with the one it was made by, so it is taken from a set that lives.
    alive = limited(path)
    train.store.file = alive.train.store.file
    batches = list(DataLoader(train, batch_size=4, num_workers=2, collate_fn=len))
    assert batches == [4] * 6
    assert train.num_unusable >= 12


def test_the_file_of_rows_is_removed_in_the_end(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    loaded = load(rows)
    assert list((tmp_path / "scratch").iterdir())
    del loaded
    gc.collect()
    assert not list((tmp_path / "scratch").iterdir())
