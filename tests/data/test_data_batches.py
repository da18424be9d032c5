from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader

import tiny
from swift.chat.render import Sample
from swift.data.collate import Flattened, Padded
from swift.data.sharding import EpochSampler, LengthGroupedSampler
from swift.data.truncate import truncate


def sample(*ids: int, weights: list[float] | None = None, **extra: Any) -> Sample:
    return Sample(list(ids), [-100, *ids[1:]], weights, extra)


RAGGED = [sample(5, 6, 7), sample(8, 9, 10, 11, 12), sample(13, 14), sample(15)]


# ------------------------------------------------------------------------------------------------------------- padded


@pytest.mark.parameter("padding_side")
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_stands_on_its_side_and_is_neither_seen_nor_learnt(side: Any):
    batch = Padded(99, side)(RAGGED)
    assert all(batch[name].shape == (4, 5) for name in ("input_ids", "attention_mask", "labels"))
    for row, one in enumerate(RAGGED):
        place = slice(5 - len(one), 5) if side == "left" else slice(0, len(one))
        real = torch.zeros(5, dtype=torch.bool)
        real[place] = True
        assert batch["input_ids"][row][real].tolist() == one.input_ids
        assert batch["labels"][row][real].tolist() == one.labels
        assert batch["input_ids"][row][~real].eq(99).all()
        assert batch["labels"][row][~real].eq(-100).all()
        assert batch["attention_mask"][row].tolist() == real.long().tolist()


@pytest.mark.parameter("padding_side")
def test_left_and_right_padding_give_every_sample_the_logits_it_has_alone():
    model = tiny.model()
    for side in ("left", "right"):
        batch = Padded(0, side)(RAGGED)
        batch.pop("labels")
        with torch.no_grad():
            logits = model(**batch, use_cache=False).logits
        for row, one in enumerate(RAGGED):
            with torch.no_grad():
                alone = model(input_ids=torch.tensor([one.input_ids]), use_cache=False).logits[0]
            torch.testing.assert_close(logits[row][batch["attention_mask"][row].bool()], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("collate", [Padded(0), Padded(0, "left"), Flattened()])
def test_weights_are_in_the_batch_once_a_sample_has_some(collate: Any):
    assert "loss_weights" not in collate(RAGGED)
    batch = collate([sample(1, 2, 3, weights=[0.0, 2.0, 0.5]), Sample([4, 5, 6], [-100, -100, 6])])
    assert batch["loss_weights"].flatten().tolist() == [0, 2, 0.5, 0, 0, 1]
    assert batch["loss_weights"].dtype == torch.float32


@pytest.mark.parametrize("collate", [Padded, Flattened])
def test_columns_ride_along_only_when_they_are_named(collate: Any):
    rows = [sample(1, 2, channel="a", other=1), sample(3, 4)]
    given = {"pad_token_id": 0} if collate is Padded else {}
    assert "channel" not in collate(**given)(rows)
    batch = collate(**given, columns=("channel",))(rows)
    assert batch["channel"] == ["a", None]
    assert "other" not in batch


# ---------------------------------------------------------------------------------------------------------- flattened


def flat_logits(model: torch.nn.Module, samples: list[Sample]) -> tuple[torch.Tensor, list[int]]:
    batch = Flattened()(samples)
    assert "attention_mask" not in batch
    batch.pop("labels")
    with torch.no_grad():
        return model(**batch, use_cache=False).logits[0], batch["cu_seq_lens_q"].tolist()


@pytest.mark.parameter("padding_free")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_flattened_samples_have_the_logits_they_have_alone(attention: str):
    model = tiny.model(attn_implementation=attention)
    logits, borders = flat_logits(model, RAGGED)
    for one, start, end in zip(RAGGED, borders[:-1], borders[1:], strict=True):
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([one.input_ids]), use_cache=False).logits[0]
        torch.testing.assert_close(logits[start:end], alone, atol=1e-5, rtol=0)


@pytest.mark.parameter("padding_free")
def test_a_changed_sample_leaves_its_flattened_neighbours_untouched_to_the_bit():
    model = tiny.model()
    changed = [RAGGED[0], sample(*range(100, 105)), *RAGGED[2:]]
    before, borders = flat_logits(model, RAGGED)
    after, _ = flat_logits(model, changed)
    same = torch.ones(len(before), dtype=torch.bool)
    same[borders[1] : borders[2]] = False
    assert torch.equal(before[same], after[same])
    assert not torch.equal(before[~same], after[~same])


@pytest.mark.parameter("padding_free")
def test_a_flattened_batch_holds_no_padding_and_knows_its_borders():
    batch = Flattened()(RAGGED)
    assert batch["input_ids"].tolist() == [list(range(5, 16))]
    assert batch["labels"].tolist() == [[label for one in RAGGED for label in one.labels]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 0]]
    assert batch["cu_seq_lens_k"].tolist() == [0, 3, 8, 10, 11]
    assert batch["cu_seq_lens_k"].dtype == torch.int32
    assert batch["max_length_q"] == batch["max_length_k"] == 5


def test_a_sample_that_would_learn_from_its_neighbour_is_refused():
    with pytest.raises(AssertionError, match="neighbour"):
        Flattened()([Sample([1, 2], [1, 2])])


# ---------------------------------------------------------------------------------------------------------- truncated

IDS = st.lists(st.integers(0, 99), min_size=1, max_size=40)


@given(IDS, st.integers(1, 50), st.sampled_from(["delete", "left", "right", "split"]), st.booleans())
def test_no_piece_is_too_long_and_none_learns_its_first_token(
    ids: list[int], limit: int, strategy: Any, weighted: bool
):
    whole = Sample(ids, [-100, *ids[1:]], [0.0, *[0.5] * (len(ids) - 1)] if weighted else None, {"channel": "a"})
    for piece in truncate(whole, limit, strategy):
        assert len(piece) == len(piece.labels) <= limit
        assert piece.labels[0] == -100
        assert piece.labels[1:] == piece.input_ids[1:]
        assert piece.extra == {"channel": "a"}
        if weighted:
            assert piece.weights == [0.0, *[0.5] * (len(piece) - 1)]


@pytest.mark.parameter("truncation_strategy")
@given(IDS, st.integers(1, 50))
def test_each_strategy_keeps_what_its_name_says(ids: list[int], limit: int):
    whole = Sample(ids, [-100, *ids[1:]])
    if len(ids) <= limit:
        assert all(truncate(whole, limit, strategy) == [whole] for strategy in ("delete", "left", "right", "split"))
        return
    assert truncate(whole, limit, "delete") == []
    assert truncate(whole, limit, "left")[0].input_ids == ids[-limit:]
    assert truncate(whole, limit, "right")[0].input_ids == ids[:limit]
    pieces = truncate(whole, limit, "split")
    assert [token for piece in pieces for token in piece.input_ids] == ids
    assert all(len(piece) == limit for piece in pieces[:-1])


# ------------------------------------------------------------------------------------------------------------ sharded


def epoch(sampler: EpochSampler, number: int) -> list[int]:
    sampler.set_epoch(number)
    return list(sampler)


@given(st.integers(1, 50), st.integers(1, 9), st.integers(0, 3))
def test_an_epoch_reads_every_row_once(length: int, seed: int, number: int):
    assert sorted(epoch(EpochSampler(length, seed), number)) == list(range(length))


@pytest.mark.parameter("data_seed")
def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else():
    sampler = EpochSampler(100, seed=3)
    first = epoch(sampler, 0)
    torch.manual_seed(99)
    torch.rand(5)
    assert epoch(sampler, 1) != first
    assert epoch(sampler, 0) == first == list(EpochSampler(100, seed=3))
    assert epoch(EpochSampler(100, seed=4), 0) != first


def test_without_shuffling_every_epoch_reads_the_rows_in_order():
    sampler = EpochSampler(10, seed=3, shuffle=False)
    assert epoch(sampler, 0) == epoch(sampler, 5) == list(range(10))
    assert epoch(EpochSampler(10, seed=3, shuffle=True), 0) != list(range(10))


# ------------------------------------------------------------------------------------------------ grouped by length

RAGGED_LENGTHS = [(7 * row) % 101 + (row % 9) * 20 for row in range(1000)]


def batches(sampler: EpochSampler, size: int, number: int = 0) -> list[list[int]]:
    rows = epoch(sampler, number)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


@pytest.mark.parameter("group_by_length")
@given(st.lists(st.integers(1, 500), min_size=1, max_size=150), st.integers(1, 9), st.integers(0, 3))
def test_grouping_reads_every_row_once_and_the_longest_in_the_first_batch(lengths: list[int], batch: int, number: int):
    rows = epoch(LengthGroupedSampler(lengths, batch, seed=5), number)
    assert sorted(rows) == list(range(len(lengths)))
    whole = len(lengths) - len(lengths) % batch
    if whole:
        assert max(lengths[row] for row in rows[:batch]) == max(lengths[row] for row in rows[:whole])


@pytest.mark.parameter("group_by_length")
def test_grouping_saves_most_of_the_padding():
    def padded(sampler: EpochSampler) -> int:
        rows = [[RAGGED_LENGTHS[row] for row in batch] for batch in batches(sampler, 8)]
        return sum(max(lengths) * len(lengths) - sum(lengths) for lengths in rows)

    assert padded(LengthGroupedSampler(RAGGED_LENGTHS, 8, seed=1)) < padded(EpochSampler(1000, seed=1)) / 10


@pytest.mark.parameter("group_by_length")
def test_grouped_batches_come_in_random_order_and_with_other_company_in_each_epoch():
    sampler = LengthGroupedSampler(RAGGED_LENGTHS, 8, seed=1)
    first, second = batches(sampler, 8, 0), batches(sampler, 8, 1)
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}
    assert first == batches(LengthGroupedSampler(RAGGED_LENGTHS, 8, seed=1), 8)
    means = torch.tensor([float(sum(RAGGED_LENGTHS[row] for row in batch)) for batch in first[1:50]])
    falls = int((means.diff() < 0).sum())
    assert 12 < falls < 36  # of 48 steps within a group: neither rising nor falling


@pytest.mark.parameter("group_by_length")
def test_processes_get_rows_of_like_length_at_the_same_time():
    """Two processes with batches of 4 are one batch of 8: neither waits for the other's long rows."""
    sampler = LengthGroupedSampler(RAGGED_LENGTHS, 8, seed=1)
    shards = [list(BatchSamplerShard(BatchSampler(sampler, 4, drop_last=False), 2, rank)) for rank in range(2)]
    together = [one + other for one, other in zip(*shards, strict=True)]
    assert together == batches(sampler, 8)
    spreads = [max(rows) - min(rows) for rows in ([RAGGED_LENGTHS[row] for row in batch] for batch in together)]
    assert sum(spreads) / len(spreads) < 10


# ---------------------------------------------------------------------------------------------------------- processes


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("length", [12, 13, 17])
def test_processes_read_all_rows_between_them_and_as_many_each(processes: int, length: int):
    sampler = EpochSampler(length, seed=3)
    sampler.set_epoch(2)
    shards = [
        list(BatchSamplerShard(BatchSampler(sampler, 4, drop_last=False), processes, rank)) for rank in range(processes)
    ]
    assert {row for shard in shards for batch in shard for row in batch} == set(range(length))
    assert len({len(shard) for shard in shards}) == 1


def test_accelerate_hands_the_epoch_on_to_the_sampler():
    from accelerate.data_loader import prepare_data_loader

    sampler = EpochSampler(12, seed=3)
    loader = prepare_data_loader(
        DataLoader(range(12), batch_size=4, sampler=sampler), num_processes=2, process_index=1, put_on_device=False
    )
    loader.set_epoch(4)
    second = [row for batch in loader for row in batch.tolist()]
    assert second[:4] == epoch(EpochSampler(12, seed=3), 4)[4:8]
