from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift.core.errors import DataError
from swift.data.mixing import Parts, concatenate, interleave, sample, split

LENGTHS = st.integers(1, 60)
COUNTS = st.one_of(st.none(), st.integers(1, 200))
SEEDS = st.one_of(st.none(), st.integers(1, 5))


def random(seed: int | None) -> Random | None:
    return None if seed is None else Random(seed)


@given(LENGTHS, st.integers(1, 200), SEEDS)
def test_as_many_rows_are_taken_as_were_asked_for_and_none_oftener_than_needed(
    length: int, count: int, seed: int | None
):
    taken = sample(range(length), count, random(seed))
    assert len(taken) == count
    times = Counter(taken)
    assert max(times.values()) <= -(-count // length)
    if count >= length:
        assert min(times[row] for row in range(length)) == count // length


@given(LENGTHS, st.integers(1, 60))
def test_without_chance_the_first_rows_are_taken(length: int, count: int):
    assert sample(range(length), min(count, length), None) == list(range(min(count, length)))


@given(LENGTHS, st.integers(1, 60), st.integers(1, 5))
def test_a_smaller_sample_is_the_beginning_of_a_larger_one(length: int, count: int, seed: int):
    large = sample(range(length), min(count + 1, length - 1 or 1), Random(seed))
    small = sample(range(length), min(count, len(large)), Random(seed))
    assert large[: len(small)] == small


def test_samples_of_different_seeds_differ_and_of_one_seed_agree():
    assert sample(range(100), 10, Random(1)) == sample(range(100), 10, Random(1))
    assert sample(range(100), 10, Random(1)) != sample(range(100), 10, Random(2))


@pytest.mark.parameter("split_dataset_ratio")
@given(LENGTHS, COUNTS, st.floats(0.01, 0.99), SEEDS)
def test_a_split_shares_no_row_and_holds_back_its_share(length: int, count: int | None, ratio: float, seed: int | None):
    wanted = length if count is None else count
    held = max(int(min(length, wanted) * ratio), 1)
    if held >= min(wanted, length):
        with pytest.raises(DataError, match="none remains to train on"):
            split(length, count, ratio, random(seed))
        return
    parts = split(length, count, ratio, random(seed))
    assert len(parts.val) == len(set(parts.val)) == held
    assert len(parts.train) == wanted - held
    assert not set(parts.train) & set(parts.val)
    assert set(parts.train) | set(parts.val) <= set(range(length))


def test_without_chance_the_last_rows_are_held_back():
    assert split(10, None, 0.2, None) == Parts(list(range(8)), [8, 9])


def test_a_ratio_of_one_holds_back_everything_once():
    assert split(5, None, 1, None) == Parts([], [0, 1, 2, 3, 4])
    assert len(set(split(5, 3, 1, Random(1)).val)) == 3
    with pytest.raises(DataError, match="#6 asks for more"):
        split(5, 6, 1, None)


def test_concatenation_keeps_every_row_in_order():
    assert concatenate([2, 0, 1]) == [(0, 0), (0, 1), (2, 0)]


PROBABILITIES = st.sampled_from([[0.5, 0.5], [0.9, 0.1], [0.2, 0.3, 0.5]])


@given(st.lists(LENGTHS, min_size=3, max_size=3), PROBABILITIES, st.integers(1, 5))
def test_interleaving_ends_with_the_first_data_set_or_with_the_last(
    lengths: list[int], probabilities: list[float], seed: int
):
    lengths = lengths[: len(probabilities)]
    first = interleave(lengths, probabilities, "first_exhausted", Random(seed))
    every = interleave(lengths, probabilities, "all_exhausted", Random(seed))
    assert every[: len(first)] == first
    ended = [dataset for dataset, position in first if position == lengths[dataset] - 1]
    assert ended == [first[-1][0]]
    assert {dataset for dataset, position in every if position == lengths[dataset] - 1} == set(range(len(lengths)))
    for dataset, length in enumerate(lengths):
        positions = [position for source, position in every if source == dataset]
        assert positions == [index % length for index in range(len(positions))]


def test_interleaving_follows_the_probabilities():
    order = interleave([1000, 1000], [0.8, 0.2], "first_exhausted", Random(3))
    assert 0.75 < sum(dataset == 0 for dataset, _ in order) / len(order) < 0.85


@pytest.mark.parametrize("probabilities", [[1.0], [0.5, 0.6], [1.0, 0.0], [1.5, -0.5]])
def test_probabilities_that_are_none_are_refused(probabilities: list[float]):
    with pytest.raises(DataError, match="--interleave_prob"):
        interleave([3, 3], probabilities, "all_exhausted", Random(1))


def test_every_process_draws_the_same():
    code = (
        "from random import Random; from swift.data.mixing import interleave, split; "
        "print(split(1000, 300, 0.1, Random(42)), interleave([9, 9], [0.4, 0.6], 'all_exhausted', Random(42)))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, check=True, capture_output=True
        ).stdout
        for seed in ("1", "2")
    }
    here = f"{split(1000, 300, 0.1, Random(42))} {interleave([9, 9], [0.4, 0.6], 'all_exhausted', Random(42))}\n"
    assert outputs == {here.encode()}
