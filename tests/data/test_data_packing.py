"""Packs: every row whole and once, as full as best fit makes them, and nothing but the lengths decides."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift.chat.render import Sample
from swift.core.errors import UsageError
from swift.data.collate import Flattened
from swift.data.packing import PackedSet, efficiency, pack, pack_in_processes, pack_samples
from swift.data.samples import SampleSet, SampleStore
from swift.data.samples import pack as samples_packed

CAPACITIES = st.integers(1, 1500)


@st.composite
def lengths_and_capacity(draw: st.DrawFn) -> tuple[list[int], int]:
    capacity = draw(CAPACITIES)
    return draw(st.lists(st.integers(1, capacity), max_size=80)), capacity


def samples(lengths: list[int]) -> SampleSet:
    rows = [[number + 1] * length for number, length in enumerate(lengths)]
    store = SampleStore(samples_packed([[Sample(ids, [-100, *ids[1:]])] for ids in rows]))
    return SampleSet(store, range(len(lengths)))


def ragged(count: int, capacity: int, seed: int = 0) -> list[int]:
    """Lengths as conversations have them: many short ones, some long ones."""
    draw = random.Random(seed)
    return [min(capacity, max(1, int(draw.lognormvariate(5, 1)))) for _ in range(count)]


def best_fit_one_by_one(lengths: list[int], capacity: int) -> list[int]:
    """The room left in each pack after best fit decreasing, looking through all packs for every row."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [(room, place) for place, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting)[1]] -= length
        else:
            rooms.append(capacity - length)
    return sorted(rooms)


@given(lengths_and_capacity())
def test_every_row_is_in_one_pack_and_no_pack_holds_more_than_its_capacity(given_rows):
    lengths, capacity = given_rows
    packs = pack(lengths, capacity)
    assert sorted(row for rows in packs for row in rows) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in rows) <= capacity for rows in packs)


@given(lengths_and_capacity())
def test_packs_are_those_of_best_fit_decreasing(given_rows):
    lengths, capacity = given_rows
    rooms = sorted(capacity - sum(lengths[row] for row in rows) for rows in pack(lengths, capacity))
    assert rooms == best_fit_one_by_one(lengths, capacity)


@given(lengths_and_capacity())
def test_rows_ascend_within_a_pack_and_packs_by_their_first_row(given_rows):
    packs = pack(*given_rows)
    assert all(rows == sorted(rows) for rows in packs)
    assert [rows[0] for rows in packs] == sorted(rows[0] for rows in packs)
    assert packs == pack(*given_rows)


@pytest.mark.parametrize("capacity", [1024, 4096, 100_000])
@pytest.mark.parametrize("draw", ["conversations", "uniform"])
def test_ragged_rows_fill_their_packs(capacity, draw):
    lengths = (
        ragged(20_000, capacity) if draw == "conversations" else random.Random(1).choices(range(1, capacity), k=20_000)
    )
    assert efficiency(lengths, pack(lengths, capacity), capacity) >= 0.98


def test_a_row_that_does_not_fit_is_refused():
    with pytest.raises(AssertionError, match="a row of 9 tokens does not fit into a pack of 8"):
        pack([3, 9], 8)
    with pytest.raises(AssertionError, match="without tokens"):
        pack([3, 0], 8)
    assert pack([], 8) == []


def test_both_sides_of_a_pair_are_packed_together_as_the_sum_of_their_lengths():
    pairs = [(3, 4), (1, 2), (5, 5), (2, 2), (4, 1)]
    packs = pack([chosen + rejected for chosen, rejected in pairs], 10)
    assert sorted(row for rows in packs for row in rows) == list(range(5))
    assert all(sum(sum(pairs[row]) for row in rows) <= 10 for rows in packs)
    assert len(packs) == 3  # 7 + 3, 10 and 4 + 5


# -------------------------------------------------------------------------------------------------------- packed sets


@pytest.mark.parameter("packing")
def test_an_item_is_the_list_of_the_samples_of_its_pack(logged):
    rows = samples([5, 3, 4, 2, 6])
    packed = pack_samples(rows, 10)
    assert isinstance(packed, PackedSet)
    items = [[sample.input_ids[0] - 1 for sample in packed[index]] for index in range(len(packed))]
    assert items == [packed.pack(index) for index in range(len(packed))] == pack(rows.lengths, 10)
    assert packed.lengths == [sum(len(sample) for sample in packed[index]) for index in range(len(packed))]
    assert len(packed) == 2
    assert logged[-1].startswith(
        "packing: 5 rows in 2 packs of at most 10 tokens, 100.0 % full. An epoch has 2.5 times"
    )


@pytest.mark.parameter("packing_length")
def test_the_length_of_a_pack_is_what_is_asked_for():
    rows = samples(ragged(300, 200))
    small, large = pack_samples(rows, 200), pack_samples(rows, 1000)
    assert max(small.lengths) <= 200 < max(large.lengths) <= 1000
    assert len(large) < len(small) / 4


@pytest.mark.parameter("packing_length")
def test_rows_longer_than_a_pack_are_refused_with_what_to_do():
    with pytest.raises(UsageError, match=r"--packing_length 10 is shorter than 2 of 3 rows, the longest .* 14 tokens"):
        pack_samples(samples([14, 5, 11]), 10)
    with pytest.raises(UsageError, match="Say --max_length or --packing_length"):
        pack_samples(samples([4, 5]), None)


def test_several_packs_are_one_row_of_all_their_samples():
    packed = pack_samples(samples([5, 3, 4, 2, 6]), 10)
    packs = [packed[index] for index in range(len(packed))]
    batch, flat = Flattened()(packs), Flattened()([sample for pack_ in packs for sample in pack_])
    assert batch["input_ids"].tolist() == flat["input_ids"].tolist()
    assert batch["cu_seq_lens_q"].tolist() == flat["cu_seq_lens_q"].tolist()
    assert len(batch["cu_seq_lens_q"]) == 6


@pytest.mark.slow
@pytest.mark.parameter("packing_num_proc")
def test_each_process_packs_its_own_part_of_the_rows():
    lengths = ragged(1001, 2048)
    packs = pack_in_processes(lengths, 2048, 2)
    parts = pack(lengths[:501], 2048), pack(lengths[501:], 2048)
    assert packs == [*parts[0], *([row + 501 for row in rows] for rows in parts[1])]
    assert packs != pack(lengths, 2048) == pack_in_processes(lengths, 2048, 1)
    assert len(pack_samples(samples(lengths), 2048, num_proc=2)) == len(packs)
