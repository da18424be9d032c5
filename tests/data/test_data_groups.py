"""Rows whose samples stay together: drawn by row and epoch alone, the same from sets, streams and lazily."""

from __future__ import annotations

import numpy
import pytest

import tiny
from swift.chat.reading import Readings
from swift.chat.render import Renderer, Sample
from swift.data.collate import Padded
from swift.data.collate_tasks import TaskBatch
from swift.data.encode import load_samples
from swift.data.groups import Draw, GroupSet
from swift.data.lazy import load_lazily
from swift.data.packing import PackedSet
from swift.data.samples import SampleStore, pack
from swift.data.sharding import EpochSampler
from swift.data.stream import Dealer, Share, open_stream
from swift.data.tasks import Aim, Classes
from swift.options.data import DataOptions
from swift.options.template import TemplateOptions


def document(number: int, label: int) -> Sample:
    return Sample([number] * (1 + number % 3), [-100] * (1 + number % 3), None, {"label": label})


def groups(draw: Draw | None) -> GroupSet:
    rows = [
        [document(10 * r, 1), document(10 * r + 1, 1), *(document(10 * r + i, 0) for i in range(2, 9))]
        for r in range(1, 5)
    ]
    counts = numpy.array([len(row) for row in rows])
    return GroupSet(SampleStore(pack(rows)), numpy.cumsum(counts) - counts, counts, draw)


def ids(samples: list[Sample]) -> list[int]:
    return [sample.input_ids[0] for sample in samples]


def test_what_is_drawn_of_a_row_depends_on_seed_row_and_epoch_alone():
    rows = groups(Draw(1, 3, 42))
    first = [ids(rows[i]) for i in range(len(rows))]
    assert [ids(groups(Draw(1, 3, 42))[i]) for i in reversed(range(4))] == first[::-1]
    assert [ids(rows[len(rows) + i]) for i in range(len(rows))] != first
    assert [ids(groups(Draw(1, 3, 7))[i]) for i in range(4)] != first
    for row, samples in enumerate(first, 1):
        assert samples[0] in (10 * row, 10 * row + 1)
        assert len(samples) == 4
        assert all(10 * row + 2 <= each < 10 * row + 9 for each in samples[1:])
    assert [sample.extra["label"] for sample in groups(Draw(2, 2, 1))[0]] == [1, 0, 0, 1, 0, 0]
    assert len(groups(None)[0]) == 9


def test_no_draw_is_longer_than_its_row_is_said_to_be():
    rows = groups(Draw(2, 3, 0))
    for row, length in enumerate(rows.lengths):
        assert all(sum(map(len, rows[epoch * len(rows) + row])) <= length for epoch in range(20))
    assert sum(groups(None).lengths) == sum(len(sample) for row in range(4) for sample in groups(None)[row])


def test_a_pack_hands_the_epoch_of_its_index_on():
    rows = groups(Draw(1, 3, 42))
    packs = PackedSet(rows, [[2, 0], [1, 3]])
    assert [ids(group) for group in packs[2 * 5 + 1]] == [ids(rows[4 * 5 + 1]), ids(rows[4 * 5 + 3])]


def test_a_sampler_tells_the_epoch_when_asked():
    plain, telling = EpochSampler(5, 0), EpochSampler(5, 0, tells_epoch=True)
    for each in (plain, telling):
        each.set_epoch(3)
    assert [index - 15 for index in telling] == list(plain)


ROWS = [
    {
        "messages": [{"role": "user", "content": f"query {i}"}],
        "positive_messages": [[{"role": "user", "content": f"match {i}"}]],
        "negative_messages": [[{"role": "assistant", "content": f"other {j}"}] for j in range(1 + i % 4)],
    }
    for i in range(8)
]


@pytest.mark.parametrize("aim", [Aim("embedding"), Aim("reranker", draw=Draw(1, 2, 42))])
@pytest.mark.parameter("lazy_tokenize")
@pytest.mark.parameter("streaming")
def test_sets_lazy_sets_and_streams_give_the_same_groups(tmp_path, aim):
    tiny.jsonl(tmp_path / "rows.jsonl", ROWS)
    options = DataOptions(dataset=[str(tmp_path / "rows.jsonl")], dataset_shuffle=False)
    template = TemplateOptions(max_length=200, truncation_strategy="delete")
    renders = Readings(Renderer(tiny.tokenizer(), template))
    eager = load_samples(options, template, renders, aim=aim).train
    lazy = load_lazily(options, template, renders, aim=aim).train
    assert [lazy[i] for i in range(8)] == [eager[i] for i in range(8)]
    dealer = Dealer(open_stream(options, template, renders, aim=aim), Share(1, 1))
    streamed = [dealer.batch(0)[0] for _ in range(8)]
    sizes = [len(group) for group in streamed]
    assert sizes == [len(eager[i]) for i in range(8)]
    if aim.draw is None:
        assert streamed == [eager[i] for i in range(8)]
    again = Dealer(open_stream(options, template, renders, aim=aim), Share(1, 1))
    assert [again.batch(0)[0] for _ in range(8)] == streamed


def test_a_batch_says_whose_its_samples_are_and_what_they_are_labelled():
    texts = [Sample([5, 6], [-100] * 2), *(Sample([7], [-100], None, {"label": y}) for y in (0.5, 0.0))]
    batch = TaskBatch(Padded(0), Aim("embedding"))([texts, texts[:2]])
    assert batch["labels"].tolist() == [0.5, 0.0, 0.5]
    assert batch["group_sizes"].tolist() == [3, 2]
    assert batch["input_ids"].shape == (5, 2)
    several = Aim("seq_cls", Classes("multi_label_classification", 3))
    row = Sample([5], [-100], None, {"label": [0, 2]})
    assert TaskBatch(Padded(0), several)([row, [row, row]])["labels"].tolist() == [[1, 0, 1]] * 3
