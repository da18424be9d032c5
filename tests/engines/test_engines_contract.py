"""What every engine promises, whichever it is: one test for each promise, run for all engines that can be built here.

What differs in vLLM by its nature: it draws with random numbers of its own, so draws are compared with its own draws; its
synchronous engine serves one caller, so many answers are streams that take turns; it searches no beams.

SGLang and LMDeploy run on GPUs only. There they are held to the same promises, in their own precision; anywhere else their
words are: a small model of ours is asked, and answers, in the shapes of the real packages (tests/hosts.py).
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace

import pytest
import torch

import hosts
import tiny
from swift.chat.render import Prompt
from swift.core.errors import EngineError
from swift.engines.base import Delta, Request, Sampling, Structure
from swift.engines.detokenizer import decode
from swift.engines.hosted import Hosted
from swift.engines.transformers import Transformers

TEXTS = ["The quick brown", "A", "What is two and two? Four. Thank you", "你好，世界", "def add(a, b):"]
PROMPTS = [Prompt(text, tiny.tokenizer().encode(text)) for text in TEXTS]
GREEDY = Sampling(max_new_tokens=16, temperature=0)
DRAWN = Sampling(max_new_tokens=16, temperature=1.0, seed=5)
OURS = ("continuous", "to the end")
VLLM = ("vllm", "vllm, asynchronous")
WORDS = ("a host", "the words of sglang", "the words of lmdeploy")
REAL = ("sglang", "lmdeploy")
MARKS = {
    **{name: [pytest.mark.vllm] for name in VLLM}, WORDS[1]: [pytest.mark.sglang], WORDS[2]: [pytest.mark.lmdeploy],
    "sglang": [pytest.mark.sglang, pytest.mark.gpu], "lmdeploy": [pytest.mark.lmdeploy, pytest.mark.gpu],
}  # fmt: skip
KINDS = [pytest.param(name, marks=MARKS.get(name, [])) for name in (*OURS, *VLLM, *WORDS, *REAL)]
NEAR = {"sglang": 1e-3, "lmdeploy": 5e-2}
"""How far log-probabilities may be from those of a forward pass on the CPU: SGLang's kernels sum in another order, and LMDeploy
computes in float16. 1e-4 for all others."""
only_ours = pytest.mark.parametrize("kind", OURS, indirect=True, scope="module")


def model_of(kind: str):
    """A model whose rows may come and go; and one whose windowed memory lets a batch only run to its end."""
    if kind == "continuous" or kind in WORDS:
        return tiny.model(seed=3)
    if kind in REAL:
        return tiny.model(seed=3, head_dim=64)  # what kernels of GPUs know
    if kind in VLLM:
        return tiny.model(seed=3, head_dim=32)  # the least that its kernels know
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, eos_token_id=2, pad_token_id=0, bos_token_id=1, sliding_window=64,
        max_position_embeddings=512,
    )  # fmt: skip
    return MistralForCausalLM(config).eval()


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind):
    return model_of(kind)


@pytest.fixture(scope="module")
def build(kind, model, tmp_path_factory):
    """Makes an engine of a kind; all are closed at the end."""
    made = []
    folder = tmp_path_factory.mktemp("contract")
    if kind in VLLM + REAL:
        model.save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)

    def build(max_batch_size=-1, stop_token_ids=()):
        if kind in REAL:
            made.append(real(kind, folder, max_batch_size, stop_token_ids))
            return made[-1]
        if kind not in VLLM:
            settings = {"max_batch_size": max_batch_size, "stop_token_ids": stop_token_ids}
            ours = Transformers(model, tiny.tokenizer(), **settings)
            made.append(hosts.hosted(kind.split()[-1], ours, stop_token_ids) if kind in WORDS else ours)
            return made[-1]
        from swift.engines.vllm import Served, Vllm
        from swift.options.engines import VllmOptions

        options = VllmOptions(vllm_enforce_eager=True, vllm_max_num_seqs=32 if max_batch_size == -1 else max_batch_size)
        settings = {"stop_token_ids": stop_token_ids, "uses_async": kind == VLLM[1]}
        made.append(Vllm(Served(folder, "float32"), tiny.tokenizer(), options, **settings))
        return made[-1]

    yield build
    for each in made:
        each.close()


def real(kind, folder, max_batch_size, stop_token_ids):
    """An engine that needs its package and a GPU."""
    from swift.engines.lmdeploy import lmdeploy_engine
    from swift.engines.others import Served
    from swift.engines.sglang import sglang_engine
    from swift.options.engines import LmdeployOptions, SglangOptions

    places = {} if max_batch_size == -1 else {"max_batch_size": max_batch_size}
    if kind == "lmdeploy":
        options = LmdeployOptions(lmdeploy_cache_max_entry_count=0.1, lmdeploy_engine_kwargs=places)
        return lmdeploy_engine(Served(folder, "float16"), tiny.tokenizer(), options, stop_token_ids, tells=True)
    running = {} if max_batch_size == -1 else {"max_running_requests": max_batch_size}
    more = {"enable_deterministic_inference": True, "attention_backend": "triton", **running}
    options = SglangOptions(sglang_mem_fraction_static=0.1, sglang_engine_kwargs=more)
    return sglang_engine(Served(folder, "float32"), tiny.tokenizer(), options, stop_token_ids)


def is_refused(engine, sampling):
    """Whether an engine of others cannot do what is asked, and says so."""
    if not isinstance(engine, Hosted):
        return False
    try:
        engine.opened(Request(PROMPTS[0], sampling))
    except EngineError as error:
        return re.search("SGLang|LMDeploy", str(error)) is not None
    return False


@pytest.fixture(scope="module")
def engine(build):
    return build()


@pytest.fixture(scope="module")
def near(kind):
    return NEAR.get(kind, 1e-4)


def ids(results):
    return [[completion.token_ids for completion in completions] for completions in results]


def answers(engine, requests):
    """What each of these requests gets when all are asked at once: its deltas, in the order of arrival."""
    if not isinstance(engine, Transformers) and not engine.is_async:
        return in_turns(engine, requests)

    async def one(request):
        return [delta async for delta in engine.answer(request)]

    async def everyone():
        return await asyncio.gather(*(one(request) for request in requests))

    return asyncio.run(everyone())


def in_turns(engine, requests):
    """The same of an engine for one caller, who looks at one stream after the other, a piece of each at a time."""
    streams = [engine.stream(each.prompt, each.sampling) if each.sampling.n == 1 else None for each in requests]
    found = [[] for _ in requests]
    open_ones = {place for place, stream in enumerate(streams) if stream is not None}
    while open_ones:
        for place in sorted(open_ones):
            piece = next(streams[place], None)
            found[place] += [] if piece is None else [piece]
            open_ones -= {place} if piece is None else set()
    for place, request in enumerate(requests):
        if streams[place] is None:
            (whole,) = engine.complete([request])
            found[place] = [Delta(each.text, each, each.logprobs or [], index) for index, each in enumerate(whole)]
    return found


def next_logits(model, token_ids):
    with torch.no_grad():
        return model(torch.tensor([token_ids])).logits[0, -1]


def test_greedy_twice_is_equal_and_is_the_likeliest_token_each_time(engine, model, near):
    first = engine.generate(PROMPTS, GREEDY)
    assert first == engine.generate(PROMPTS, GREEDY)
    said = [*PROMPTS[0].input_ids]
    for token in first[0][0].token_ids:
        logits = next_logits(model, said)
        assert logits[token] >= logits.max() - (near if near > 1e-4 else 0)
        said.append(token)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, replace(DRAWN, n=2, top_p=0.9, top_k=30, repetition_penalty=1.2)])
def test_a_batch_gives_what_each_prompt_gets_alone(engine, sampling):
    together = engine.generate(PROMPTS, sampling)
    for i, prompt in enumerate(PROMPTS):
        seed = None if sampling.seed is None else sampling.seed + i * sampling.n
        assert ids(engine.generate([prompt], replace(sampling, seed=seed))) == ids(together[i : i + 1])


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, replace(DRAWN, stop=("a", "e"), logprobs=True, top_logprobs=2)])
def test_a_stream_and_an_answer_equal_the_whole_reply(engine, sampling):
    for prompt, deltas in zip(PROMPTS, answers(engine, [Request(p, sampling) for p in PROMPTS]), strict=True):
        (whole,) = engine.generate([prompt], sampling)[0]
        for pieces in (deltas, list(engine.stream(prompt, sampling))):
            assert "".join(delta.text for delta in pieces) == whole.text
            assert ids([[pieces[-1].completion]]) == ids([[whole]])
            assert pieces[-1].completion.finish_reason == whole.finish_reason
            assert all(delta.completion is None for delta in pieces[:-1])
            told = [each.token_id for delta in pieces for each in delta.logprobs]
            assert told == ([] if whole.logprobs is None else whole.token_ids)


def test_n_completions_are_told_apart_and_come_in_order(engine):
    sampling = replace(DRAWN, n=3)
    (whole,) = engine.generate(PROMPTS[:1], sampling)
    assert len({tuple(completion.token_ids) for completion in whole}) == 3
    (deltas,) = answers(engine, [Request(PROMPTS[0], sampling)])
    for index, completion in enumerate(whole):
        mine = [delta for delta in deltas if delta.index == index]
        assert "".join(delta.text for delta in mine) == completion.text
        assert mine[-1].completion == completion
        seeded = replace(sampling, n=1, seed=sampling.seed + index)
        assert ids([[completion]]) == ids(engine.generate(PROMPTS[:1], seeded))


def test_greedy_completions_are_all_the_same(engine):
    ((alone,),) = engine.generate(PROMPTS[:1], replace(GREEDY, logprobs=True))
    (deltas,) = answers(engine, [Request(PROMPTS[0], replace(GREEDY, n=2, logprobs=True))])
    whole = engine.generate(PROMPTS[:1], replace(GREEDY, n=2, logprobs=True))[0]
    assert ids([whole]) == ids([[alone, alone]])
    for index in range(2):
        mine = [delta for delta in deltas if delta.index == index]
        assert "".join(delta.text for delta in mine) == alone.text
        assert mine[-1].completion.token_ids == alone.token_ids


def test_seeds_repeat_draws_whatever_else_is_in_the_batch(engine):
    alone = answers(engine, [Request(PROMPTS[2], DRAWN)])[0][-1].completion
    others = [Request(PROMPTS[i], Sampling(12, 1.0 + i / 3, top_k=5 * i)) for i in range(4)]
    crowded = answers(engine, [*others, Request(PROMPTS[2], DRAWN)])[-1][-1].completion
    assert alone.token_ids == crowded.token_ids
    assert ids(engine.generate(PROMPTS[:1], replace(DRAWN, seed=6))) != ids(engine.generate(PROMPTS[:1], DRAWN))


def test_requests_of_all_kinds_share_a_batch_and_get_what_they_ask_for(engine):
    samplings = [
        GREEDY, DRAWN, replace(DRAWN, top_p=0.5), replace(DRAWN, min_p=0.2, top_k=40), replace(GREEDY, frequency_penalty=2.0),
        replace(GREEDY, max_new_tokens=3), replace(DRAWN, n=2, logprobs=True), replace(GREEDY, repetition_penalty=1.5),
        replace(GREEDY, structure=Structure(regex="[ab]{4}")),
        *([replace(GREEDY, num_beams=2)] if isinstance(engine, Transformers) else []),
    ]  # fmt: skip
    samplings = [sampling for sampling in samplings if not is_refused(engine, sampling)]
    requests = [Request(PROMPTS[i % len(PROMPTS)], sampling) for i, sampling in enumerate(samplings)]
    for request, deltas in zip(requests, answers(engine, requests), strict=True):
        found = sorted((delta for delta in deltas if delta.completion is not None), key=lambda delta: delta.index)
        assert ids([[delta.completion for delta in found]]) == ids(engine.complete([request]))


def test_the_end_token_is_cut_and_a_stop_word_stays(build, engine):
    (free,) = engine.generate(PROMPTS[:1], GREEDY)[0]
    ending = build(stop_token_ids=[free.token_ids[2]])
    cut = free.token_ids[: free.token_ids.index(free.token_ids[2])]
    (ended,) = ending.generate(PROMPTS[:1], GREEDY)[0]
    assert (ended.token_ids, ended.finish_reason) == (cut, "stop")
    (drawn,) = engine.generate(PROMPTS[:1], DRAWN)[0]
    words = [decode(tiny.tokenizer(), drawn.token_ids[i : i + 2]) for i in range(len(drawn.token_ids) - 1)]
    place, word = next((i, word) for i, word in enumerate(words) if word.isascii())
    (stopped,) = engine.generate(PROMPTS[:1], replace(DRAWN, stop=(word,)))[0]
    assert stopped.text.endswith(word) or word in stopped.text
    assert stopped.finish_reason == "stop"
    assert len(stopped.token_ids) <= place + 2


def test_a_reply_has_as_many_tokens_as_were_asked_for(engine):
    found = engine.generate(PROMPTS, replace(GREEDY, max_new_tokens=3))
    assert {(len(c.token_ids), c.finish_reason) for (c,) in found} == {(3, "length")}


@pytest.mark.parametrize("sampling", [GREEDY, replace(DRAWN, top_k=9, repetition_penalty=1.3, presence_penalty=1.0)])
def test_logprobs_are_those_of_a_forward_pass_before_all_settings(model, engine, sampling, near):
    asked = replace(sampling, top_logprobs=4)
    if is_refused(engine, asked):
        asked = replace(asked, repetition_penalty=1.0, presence_penalty=0.0)
    for prompt, (completion,) in zip(PROMPTS, engine.generate(PROMPTS, asked), strict=True):
        assert [each.token_id for each in completion.logprobs] == completion.token_ids
        said = [*prompt.input_ids]
        for each in completion.logprobs:
            expected = torch.log_softmax(next_logits(model, said), -1)
            assert each.logprob == pytest.approx(expected[each.token_id].item(), abs=near)
            assert [v for _, _, v in each.top] == pytest.approx(expected.topk(4).values.tolist(), abs=near)
            said.append(each.token_id)


def test_the_tokens_of_a_prompt_have_the_log_probabilities_of_a_forward_pass(model, engine):
    if isinstance(engine, Hosted):
        with pytest.raises(EngineError, match="log-probabilities of a prompt are told by --infer_backend transformers"):
            engine.generate(PROMPTS, replace(GREEDY, prompt_logprobs=3))
        return
    long = Prompt("", [5 + place * 7 % 300 for place in range(290)])  # more than is told of at once
    engine.generate([long], GREEDY)  # its beginning is remembered, and is read again all the same
    asked = [*PROMPTS, long]
    wants = replace(GREEDY, prompt_logprobs=3, n=2, temperature=1.0, seed=2)
    for prompt, completions in zip(asked, engine.generate(asked, wants), strict=True):
        with torch.no_grad():
            logps_TV = torch.log_softmax(model(torch.tensor([prompt.input_ids])).logits[0].float(), -1)
        for completion in completions:
            told = completion.prompt_logprobs
            assert [each.token_id for each in told] == prompt.input_ids[1:]
            expected = [logps_TV[place, token].item() for place, token in enumerate(prompt.input_ids[1:])]
            assert [each.logprob for each in told] == pytest.approx(expected, abs=1e-4)
            top = [value for each in told for _, _, value in each.top]
            assert top == pytest.approx(logps_TV[:-1].topk(3).values.flatten().tolist(), abs=1e-4)
            assert completion.logprobs is None
    plain = engine.generate(asked, replace(wants, prompt_logprobs=None))
    assert ids(plain) == ids(engine.generate(asked, wants))


def test_a_prompt_is_told_of_with_the_first_piece_of_each_reply(engine):
    if isinstance(engine, Hosted):
        pytest.skip("engines that are hosted do not tell of prompts")
    requests = [Request(PROMPTS[2], replace(GREEDY, prompt_logprobs=0)), Request(PROMPTS[0], GREEDY)]
    told, plain = answers(engine, requests)
    assert len(told[0].prompt_logprobs) == len(PROMPTS[2].input_ids) - 1
    assert all(each.top == () for each in told[0].prompt_logprobs)
    assert [each.prompt_logprobs for each in (*told[1:], *plain)] == [None] * (len(told) + len(plain) - 1)


def by_hand(model, prompt, adjust, count=12):
    """Greedy tokens under scores that `adjust` makes of logits and what the reply holds."""
    said = []
    for _ in range(count):
        said.append(int(adjust(next_logits(model, [*prompt.input_ids, *said]).clone(), said).argmax()))
    return said


def test_presence_and_frequency_penalties_are_those_of_the_formula(model, engine):
    def presence(scores, said):
        scores[sorted(set(said))] -= 0.5
        return scores

    def frequency(scores, said):
        for token in said:
            scores[token] -= 0.1
        return scores

    for field, adjust, value in (("presence_penalty", presence, 0.5), ("frequency_penalty", frequency, 0.1)):
        if is_refused(engine, Sampling(12, 0, **{field: value})):
            continue
        found = engine.generate(PROMPTS, Sampling(12, 0, **{field: value}))
        assert ids(found) == [[by_hand(model, prompt, adjust)] for prompt in PROMPTS]
        assert ids(found) != ids(engine.generate(PROMPTS, Sampling(12, 0)))


def test_min_p_draws_only_what_is_likely_enough_beside_the_likeliest(model, engine):
    probabilities = torch.softmax(next_logits(model, PROMPTS[0].input_ids), -1)
    limit = probabilities.topk(9).values[-1] / probabilities.max()
    drawn = engine.generate(PROMPTS[:1], Sampling(1, 1.0, top_k=0, min_p=float(limit) * 0.9999, seed=0, n=300))[0]
    assert {c.token_ids[0] for c in drawn} == set(probabilities.topk(9).indices.tolist())


@only_ours
def test_beams_are_at_least_as_likely_as_greedy_and_length_counts_as_asked(engine, model):
    def likelihood(completion):
        return sum(each.logprob for each in completion.logprobs)

    greedy = engine.generate(PROMPTS, Sampling(8, 0, logprobs=True))
    beams = engine.generate(PROMPTS, Sampling(8, 0, num_beams=4, n=2, logprobs=True))
    for (alone,), (best, second) in zip(greedy, beams, strict=True):
        assert likelihood(best) >= likelihood(alone) - 1e-4
        assert likelihood(best) >= likelihood(second)
    ending = Transformers(model, tiny.tokenizer(), max_batch_size=-1, stop_token_ids=range(5, 150))
    short, long = (
        sum(len(c.token_ids) for (c,) in ending.generate(PROMPTS, Sampling(12, 0, num_beams=4, length_penalty=p)))
        for p in (-4.0, 4.0)
    )
    assert short < long


def test_a_length_penalty_without_beams_is_warned_of(engine, caplog, monkeypatch):
    import logging

    monkeypatch.setattr(logging.getLogger("swift"), "propagate", True)
    engine.generate(PROMPTS[:1], replace(GREEDY, length_penalty=2.0))
    assert "length_penalty 2.0: no effect" in caplog.text


@pytest.mark.parametrize("sampling", [GREEDY, replace(DRAWN, temperature=2.0)])
def test_a_reply_keeps_to_its_structure(engine, sampling):
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "maximum": 99, "minimum": 0}, "ok": {"type": "boolean"}},
        "required": ["age", "ok"],
        "additionalProperties": False,
    }
    asked = [
        replace(sampling, max_new_tokens=200, structure=Structure(json_schema=schema)),
        replace(sampling, max_new_tokens=60, structure=Structure(regex=r"(yes|no), [0-9]{3}\.")),
    ]
    for of_schema, of_regex in zip(*(engine.generate(PROMPTS, each) for each in asked), strict=True):
        said = json.loads(of_schema[0].text)
        assert 0 <= said["age"] <= 99
        assert isinstance(said["ok"], bool)
        assert re.fullmatch(r"(yes|no), [0-9]{3}\.", of_regex[0].text)
        assert of_schema[0].finish_reason == of_regex[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"structure": Structure(regex="(")}, "regular expression"),
        ({"structure": Structure(json_schema={"type": "nothing"})}, "JSON schema"),
        ({"structure": Structure()}, "exactly one"),
        ({"structure": Structure(regex="a"), "num_beams": 2}, "--num_beams 1"),
        ({"prompt_logprobs": 1, "num_beams": 2}, "--num_beams 1"),
        ({"n": 0}, "n must be at least 1"),
        ({"n": 3, "num_beams": 2}, "--num_beams"),
        ({"max_new_tokens": 0}, "--max_new_tokens"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_anything_is_said(engine, change, message):
    with pytest.raises(EngineError, match=message):
        answers(engine, [Request(PROMPTS[0], replace(GREEDY, **change))])
    with pytest.raises(EngineError, match=message):
        engine.generate(PROMPTS[:1], replace(GREEDY, **change))


def test_other_weights_answer_as_an_engine_that_was_started_with_them(kind, model, build, tmp_path):
    torch.manual_seed(11)
    other = type(model)(model.config).eval()
    other.save_pretrained(tmp_path / "other")
    tiny.tokenizer().save_pretrained(tmp_path / "other")
    engine = build()
    before = ids(engine.generate(PROMPTS, GREEDY))
    refused = {
        **dict.fromkeys((WORDS[2], "lmdeploy"), "LMDeploy cannot"),
        **dict.fromkeys(VLLM, "copy of an output layer"),
    }
    if kind in refused:
        with pytest.raises(EngineError, match=refused[kind]):
            engine.load_weights(tmp_path / "other")
        assert ids(engine.generate(PROMPTS, GREEDY)) == before
        return
    engine.load_weights(tmp_path / "other")
    after = ids(engine.generate(PROMPTS, GREEDY))
    expected = Transformers(other, tiny.tokenizer())
    assert after == ids(expected.generate(PROMPTS, GREEDY)) != before
    expected.close()
    with pytest.raises(EngineError):
        engine.load_weights(tmp_path / "nothing")
    engine.close()


def test_leaving_an_answer_frees_its_place(kind, build):
    if kind == "vllm":
        pytest.skip("it serves one caller")
    engine = build(max_batch_size=1)

    async def talk():
        long = engine.answer(Request(PROMPTS[0], Sampling(400, 0)))
        await anext(long)
        waiting = asyncio.ensure_future(anext(engine.answer(Request(PROMPTS[1], Sampling(1, 0)))))
        await asyncio.sleep(0.05)
        waited = not waiting.done()
        await long.aclose()
        return waited, await asyncio.wait_for(waiting, 20)

    waited, delta = asyncio.run(talk())
    assert waited, "with one place the second request has to wait"
    assert delta.completion is None or delta.completion.token_ids
    engine.close()


def test_closing_ends_those_who_wait_and_those_who_are_served(kind, build):
    if kind == "vllm":
        pytest.skip("it serves one caller")
    engine = build(max_batch_size=1)

    async def talk():
        pieces = [engine.answer(Request(prompt, Sampling(400, 0))) for prompt in PROMPTS[:2]]
        await anext(pieces[0])
        second = asyncio.ensure_future(anext(pieces[1]))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(engine.close)
        with pytest.raises(EngineError, match="closed"):
            await second
        with pytest.raises(EngineError, match="closed"):
            async for _ in pieces[0]:
                pass
        with pytest.raises(EngineError, match="closed"):
            await anext(engine.answer(Request(PROMPTS[0], GREEDY)))

    asyncio.run(talk())


# ----------------------------------------------------------------------------------------------------------- adapters


def adapted(kind, method="lora"):
    """The model with two adapters that say something else, and the three by themselves."""
    from peft import IA3Config, LoraConfig, get_peft_model

    if method == "lora":
        config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    else:
        config = IA3Config(
            target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False
        )
    torch.manual_seed(1)
    made = get_peft_model(model_of(kind), config, adapter_name="first")
    made.add_adapter("second", config)
    return made.eval()


@only_ours
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft reads it
@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_requests_with_different_adapters_get_each_its_own(kind, method):
    engine = Transformers(adapted(kind, method), tiny.tokenizer(), max_batch_size=-1, adapters=("first", "second"))
    assert engine.adapters == ("first", "second")
    names = [None, "first", "second", None, "second", "first"]
    requests = [Request(PROMPTS[i % 2], replace(DRAWN, seed=i), name) for i, name in enumerate(names)]
    together = [deltas[-1].completion.token_ids for deltas in answers(engine, requests)]
    assert len({tuple(tokens) for tokens in together}) == len(names)
    base = Transformers(model_of(kind), tiny.tokenizer())
    for request, tokens in zip(requests, together, strict=True):
        assert ids(engine.complete([request])) == [[tokens]]
        if request.adapter is None:
            assert ids(base.generate([request.prompt], request.sampling)) == [[tokens]]
            continue
        alone = adapted(kind, method)
        alone.set_adapter(request.adapter)
        assert ids(Transformers(alone, tiny.tokenizer()).generate([request.prompt], request.sampling)) == [[tokens]]
    with pytest.raises(EngineError, match="no adapter 'third'"):
        engine.complete([Request(PROMPTS[0], GREEDY, "third")])
    with pytest.raises(EngineError, match="no adapter third"):
        Transformers(adapted(kind, method), tiny.tokenizer(), adapters=("third",))
