"""A batch that never ends: who joins it and when, what is read once only, and what a step costs."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import tiny
from swift.chat.render import Prompt
from swift.engines import continuous, schedule, transformers
from swift.engines.base import Request, Sampling
from swift.engines.continuous import Continuous
from swift.engines.prefixes import BLOCK, Prefixes, block_keys
from swift.engines.transformers import Transformers
from swift.engines.whole import Whole

LONG = Prompt("", [7 + i % 300 for i in range(3 * BLOCK + 5)])
SHORT = Prompt("", [302, 396, 398])


@pytest.fixture(scope="module")
def model():
    return tiny.model(seed=3)


def engine_of(model, **settings):
    """An engine whose model has been tried out already."""
    built = Transformers(model, tiny.tokenizer(), **{"max_batch_size": -1, **settings})
    built.generate([SHORT], Sampling(1, 0))
    built.forget()
    return built


def ids(results):
    return [[completion.token_ids for completion in completions] for completions in results]


@contextmanager
def passes(model):
    """The shapes [rows, tokens] of the forward passes meanwhile."""
    shapes: list[tuple[int, int]] = []
    handle = model.register_forward_pre_hook(
        lambda _, __, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        yield shapes
    finally:
        handle.remove()


async def collect(engine, request, log, name):
    async for delta in engine.answer(request):
        log.append((name, delta))
    return [delta for other, delta in log if other == name]


def test_a_request_joins_a_running_batch_and_is_done_before_it(model):
    engine = engine_of(model)
    log = []

    async def talk():
        long = asyncio.ensure_future(collect(engine, Request(SHORT, Sampling(300, 0, logprobs=True)), log, "long"))
        while len(log) < 5:
            await asyncio.sleep(0.001)
        await collect(engine, Request(LONG, Sampling(3, 0)), log, "late")
        said = len([name for name, _ in log if name == "long"])
        await long
        return said

    assert 5 <= asyncio.run(talk()) < 200
    finals = [name for name, delta in log if delta.completion is not None]
    assert finals == ["late", "long"]


def test_a_finished_row_makes_room_at_the_next_step(model):
    engine = engine_of(model, max_batch_size=2)
    requests = [Request(Prompt("", [50 + i, 60 + i]), Sampling(length, 0)) for i, length in enumerate([30, 2, 2, 2, 2])]
    with passes(model) as shapes:
        found = engine.complete(requests)
    assert [len(c.token_ids) for (c,) in found] == [30, 2, 2, 2, 2]
    steps = [rows for rows, tokens in shapes if tokens == 1]
    assert max(steps) == 2, "the bound holds"
    assert len(steps) == 29, "the short ones ran beside the long one"


def test_n_choices_share_one_reading_of_the_prompt(model):
    engine = engine_of(model)
    with passes(model) as shapes:
        engine.generate([LONG], Sampling(4, 1.0, n=5, seed=1))
    assert [shape for shape in shapes if shape[1] > 1] == [(1, len(LONG.input_ids))]
    assert max(rows for rows, _ in shapes) == 5


def test_a_beginning_is_read_once_and_then_remembered(model):
    engine = engine_of(model)
    sampling = Sampling(6, 0)
    fresh = ids(Transformers(model, tiny.tokenizer()).generate([LONG], sampling))
    for count in (len(LONG.input_ids), 5):
        with passes(model) as shapes:
            assert ids(engine.generate([LONG], sampling)) == fresh
        assert shapes[0] == (1, count)
    engine.forget()
    with passes(model) as shapes:
        engine.generate([LONG], sampling)
    assert shapes[0] == (1, len(LONG.input_ids))


def test_what_began_before_the_weights_changed_is_not_remembered_after(model, tmp_path):
    other, sampling = tiny.model(seed=8), Sampling(400, 1.0, seed=5)
    other.save_pretrained(tmp_path)
    engine = engine_of(model)
    old = ids(engine.generate([LONG], sampling))
    pieces = engine.pieces(Request(LONG, sampling))
    next(pieces)
    engine.load_weights(tmp_path)
    *_, last = pieces
    assert last.completion.token_ids != old[0][0], "the reply goes on with the new weights"
    told = [
        each.generate([LONG], Sampling(6, 0, logprobs=True))[0][0].logprobs
        for each in (engine, Transformers(other, tiny.tokenizer()))
    ]
    assert [token.logprob for token in told[0]] == pytest.approx([token.logprob for token in told[1]], abs=1e-5)


def test_prompts_that_come_together_and_begin_alike_read_their_beginning_once(model):
    engine = engine_of(model)
    prompts = [Prompt("", [*LONG.input_ids, 30 + i, 40 + i, 50 + i]) for i in range(6)]
    with passes(model) as shapes:
        together = ids(engine.generate(prompts, Sampling(4, 0)))
    reading = [shape for shape in shapes if shape[1] > 1]
    assert reading == [(1, len(LONG.input_ids) + 3), (5, 8)]
    plain = Transformers(model, tiny.tokenizer())
    assert together == [ids(plain.generate([prompt], Sampling(4, 0)))[0] for prompt in prompts]


def test_the_next_question_of_a_dialogue_reads_only_what_is_new(model):
    engine = engine_of(model)
    (reply,) = engine.generate([LONG], Sampling(40, 0, repetition_penalty=1.5))[0]
    further = Prompt("", [*LONG.input_ids, *reply.token_ids, 33, 34])
    with passes(model) as shapes:
        engine.generate([further], Sampling(2, 0))
    known = BLOCK * ((len(LONG.input_ids) + len(reply.token_ids) - 1) // BLOCK)
    assert shapes[0] == (1, len(further.input_ids) - known)


def test_memory_of_beginnings_is_bounded_and_the_oldest_are_forgotten(model):
    states = [(torch.zeros(2, BLOCK, 4), torch.zeros(2, BLOCK, 4))]
    size = 2 * 2 * BLOCK * 4 * 4
    prefixes = Prefixes(limit=3 * size)
    texts = [[number] * (2 * BLOCK) for number in range(3)]
    for text in texts:
        prefixes.remember(block_keys(text, "base"), lambda *_: states)
        assert prefixes.size <= prefixes.limit
    assert len(prefixes.find(block_keys(texts[2], "base"))) == 2
    assert len(prefixes.find(block_keys(texts[1], "base"))) == 1, "of a text the end is forgotten first"
    assert prefixes.find(block_keys(texts[0], "base")) == []
    assert prefixes.find(block_keys(texts[2], "adapter x")) == [], "an adapter has a memory of its own"


def test_a_long_prompt_is_read_in_pieces_while_others_grow(model):
    engine = engine_of(model)
    engine._schedule._limits = replace(engine._schedule._limits, watched=16)
    log = []

    async def talk():
        growing = asyncio.ensure_future(
            collect(engine, Request(SHORT, Sampling(300, 0, logprobs=True)), log, "growing")
        )
        while len(log) < 3:
            await asyncio.sleep(0.001)
        with passes(model) as shapes:
            late = await collect(engine, Request(LONG, Sampling(2, 0)), log, "late")
        growing.cancel()
        return late[-1].completion.token_ids, shapes

    said, shapes = asyncio.run(talk())
    pieces = [i for i, shape in enumerate(shapes) if shape[1] > 1]
    assert [shapes[i] for i in pieces] == [(1, 16)] * 6 + [(1, 5)]
    assert all(later - earlier == 2 for earlier, later in pairwise(pieces)), "a step between"
    assert [[said]] == ids(Transformers(model, tiny.tokenizer()).generate([LONG], Sampling(2, 0)))


@pytest.mark.parametrize("bound", [4, 16])
def test_rows_of_very_different_lengths_step_apart_and_get_the_same(model, monkeypatch, bound):
    prompts = [Prompt("", [9 + i % 300 for i in range(length)]) for length in (2, 3, 14, 50, 90)]
    expected = ids(Transformers(model, tiny.tokenizer(), max_batch_size=-1).generate(prompts, Sampling(30, 0)))
    monkeypatch.setattr(continuous, "BOUND", bound)
    engine = engine_of(model)
    with passes(model) as shapes:
        assert ids(engine.generate(prompts, Sampling(30, 0))) == expected
    assert len([shape for shape in shapes if shape[1] == 1]) > 29


def test_waiting_requests_of_one_adapter_do_not_overtake_another(model):
    """With adapters that cannot be mixed, the order of arrival holds."""
    from peft import IA3Config, get_peft_model

    config = IA3Config(target_modules=["k_proj"], feedforward_modules=[], init_ia3_weights=False)
    adapted = get_peft_model(tiny.model(seed=3), config, adapter_name="one")
    engine = engine_of(adapted, adapters=("one",))
    log = []

    async def talk():
        names = ["one", None, "one"]
        requests = [Request(SHORT, Sampling(5, 0), name) for name in names]
        await asyncio.gather(*(collect(engine, r, log, i) for i, r in enumerate(requests)))

    asyncio.run(talk())
    assert [name for name, delta in log if delta.completion is not None] == [0, 1, 2]


@pytest.mark.parametrize(
    "settings",
    [
        {"bad_words_ids": [[398], [25]]}, {"no_repeat_ngram_size": 2}, {"min_new_tokens": 7}, {"suppress_tokens": [398]},
        {"do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 1},
    ],
)  # fmt: skip
def test_all_that_a_generation_config_asks_for_is_heeded(settings):
    model = tiny.model(seed=3)
    prompts = [SHORT, Prompt("", [37]), Prompt("", [383, 367, 381, 239])]
    plain = ids(Transformers(model, tiny.tokenizer(), max_batch_size=-1).generate(prompts, Sampling(10, 0)))
    if "min_new_tokens" in settings:
        model.generation_config.eos_token_id = plain[0][0][1]
    model.generation_config.update(**settings)
    found = ids(Transformers(model, tiny.tokenizer(), max_batch_size=-1).generate(prompts, Sampling(10, 0)))
    for prompt, (tokens,) in zip(prompts, found, strict=True):
        ids_1T = torch.tensor([prompt.input_ids])
        expected = model.generate(
            ids_1T, attention_mask=torch.ones_like(ids_1T), max_new_tokens=10, do_sample=False, pad_token_id=0
        )[0, len(prompt.input_ids) :].tolist()
        ends = [i for i, token in enumerate(expected) if token in (2, model.generation_config.eos_token_id)]
        assert tokens == (expected[: ends[0]] if ends else expected)
    assert found != plain


def test_a_model_that_answers_otherwise_side_by_side_runs_its_batches_to_the_end(caplog, monkeypatch):
    """A model that counts the rows of a batch is one whose rows cannot come and go."""
    monkeypatch.setattr(logging.getLogger("swift"), "propagate", True)
    odd = tiny.model(seed=3)
    odd.model.norm.register_forward_hook(lambda _, __, out: out * (1 + 0.1 * (len(out) > 1)) + 0.3 * (len(out) > 1))
    engine = Transformers(odd, tiny.tokenizer(), max_batch_size=4)
    with caplog.at_level("INFO", logger="swift"):
        engine.generate([SHORT, LONG], Sampling(2, 0))
    assert isinstance(engine._schedule._runner, Whole)
    assert "batches run to their end" in caplog.text
    fine = Transformers(tiny.model(seed=3), tiny.tokenizer(), max_batch_size=4)
    fine.generate([SHORT], Sampling(1, 0))
    assert isinstance(fine._schedule._runner, Continuous)


def test_an_error_in_a_step_reaches_those_who_are_served_and_the_next_are_answered(model):
    engine = engine_of(model)
    expected = ids(engine.generate([SHORT], Sampling(4, 0)))
    handle = model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.generate([SHORT, LONG], Sampling(4, 0))
    finally:
        handle.remove()
    assert ids(engine.generate([SHORT], Sampling(4, 0))) == expected


def test_the_thread_ends_when_there_is_nothing_to_do(model, monkeypatch):
    monkeypatch.setattr(schedule, "LINGER", 0.01)
    engine = engine_of(model)
    thread = engine._schedule._thread
    if thread is not None:
        thread.join(5)
        assert not thread.is_alive()
    assert engine.generate([SHORT], Sampling(2, 0))[0][0].token_ids


def test_many_requests_that_come_and_go_at_random_each_get_their_own(model):
    """200 requests of ragged lengths, some of them given up, through 7 places."""
    engine = engine_of(model, max_batch_size=7)
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 60, (200, 2), generator=draw).tolist()
    requests = [
        Request(
            Prompt("", [(5 * i + j) % 390 for j in range(1, 1 + length)]), Sampling(limit, 0, repetition_penalty=1.1)
        )
        for i, (length, limit) in enumerate(lengths)
    ]

    async def one(i, request):
        pieces = engine.answer(request)
        async for delta in pieces:
            if delta.completion is not None:
                return delta.completion.token_ids
            if i % 5 == 0:
                await pieces.aclose()
        return None

    async def everyone():
        return await asyncio.gather(*(one(i, request) for i, request in enumerate(requests)))

    found = asyncio.run(everyone())
    alone = ids(Transformers(model, tiny.tokenizer(), max_batch_size=1).complete(requests))
    assert sum(tokens is None for tokens in found) > 20
    assert all(tokens is None or [tokens] == expected for tokens, expected in zip(found, alone, strict=True))
    assert engine._schedule._running == []
    assert engine._schedule._owner == {}


def test_a_server_batches_by_itself():
    assert transformers.AUTOMATIC_BATCH > 1
