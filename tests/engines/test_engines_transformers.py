"""What an engine promises, on a tiny model: batches change nothing, streams equal replies, log-probabilities are true."""

from __future__ import annotations

import logging
from contextlib import contextmanager

import pytest
import torch

import tiny
from swift.chat.render import Prompt
from swift.core.errors import EngineError
from swift.engines.base import Sampling
from swift.engines.detokenizer import decode
from swift.engines.transformers import Transformers

TEXTS = ["The quick brown", "A", "What is two and two? Four. Thank you", "你好，世界", "def add(a, b):"]
GREEDY = Sampling(max_new_tokens=24, temperature=0)
GREEDY_LONG = Sampling(max_new_tokens=200, temperature=0)


@pytest.fixture(scope="module")
def model():
    return tiny.model(seed=3)


@pytest.fixture(scope="module")
def prompts():
    return [Prompt(text, tiny.tokenizer().encode(text)) for text in TEXTS]


@pytest.fixture
def engine(model):
    return Transformers(model, tiny.tokenizer())


@pytest.fixture
def heard(caplog, monkeypatch):
    """What the logger of Swiftlet says."""
    monkeypatch.setattr(logging.getLogger("swift"), "propagate", True)
    return caplog


def ids(results):
    return [[completion.token_ids for completion in completions] for completions in results]


@contextmanager
def batch_sizes(model):
    """How many rows each forward pass has, in order."""
    rows: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _, __, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        yield rows
    finally:
        handle.remove()


def scripted(text: str, prompt: Prompt) -> Transformers:
    """An engine whose model continues the prompt with this text and an eos token, whatever its weights say."""
    wanted = [*tiny.tokenizer().encode(text), 2]
    built = tiny.model()

    def say(module, args, kwargs, outputs):
        place = kwargs["past_key_values"].get_seq_length() - len(prompt.input_ids)
        outputs.logits = torch.full_like(outputs.logits, -10.0)
        outputs.logits[..., wanted[place]] = 10.0

    built.register_forward_hook(say, with_kwargs=True)
    return Transformers(built, tiny.tokenizer())


def test_greedy_twice_is_equal(engine, prompts):
    assert engine.generate(prompts, GREEDY) == engine.generate(prompts, GREEDY)


@pytest.mark.parameter("max_batch_size")
@pytest.mark.parametrize("max_batch_size", [2, 3, -1])
def test_a_batch_gives_what_each_prompt_gives_alone(model, engine, prompts, max_batch_size):
    batched = Transformers(model, tiny.tokenizer(), max_batch_size=max_batch_size)
    rows: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _, __, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        results = batched.generate(prompts, GREEDY)
    finally:
        handle.remove()
    assert max(rows) == (len(prompts) if max_batch_size == -1 else max_batch_size)
    assert ids(results) == ids(engine.generate(prompts, GREEDY))


def test_a_batch_draws_what_each_prompt_draws_alone(model, prompts):
    sampling = Sampling(max_new_tokens=24, temperature=1.0, seed=5, n=2, repetition_penalty=1.2)
    alone = Transformers(model, tiny.tokenizer()).generate(prompts, sampling)
    together = Transformers(model, tiny.tokenizer(), max_batch_size=-1).generate(prompts, sampling)
    assert ids(alone) == ids(together)


def test_rows_that_end_early_leave_the_batch_and_change_nothing(model, prompts):
    sampling = Sampling(max_new_tokens=60, temperature=1.5, seed=1)
    batched = Transformers(model, tiny.tokenizer(), max_batch_size=-1, stop_token_ids=range(5, 25))
    batched.generate(prompts[:1], GREEDY)  # the first request tries the model out
    with batch_sizes(model) as counts:
        results = batched.generate(prompts, sampling)
    lengths = {len(completion.token_ids) for (completion,) in results}
    assert len(lengths) > 1, "the rows must end at different times for this test to show anything"
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] < counts[0]
    alone = Transformers(model, tiny.tokenizer(), stop_token_ids=range(5, 25))
    one_by_one = [alone.generate([p], Sampling(60, 1.5, seed=1 + i))[0] for i, p in enumerate(prompts)]
    assert ids(results) == ids(one_by_one)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(24, 1.0, seed=4), Sampling(24, 1.0, seed=4, stop=("a", "b"))])
@pytest.mark.parameter("stream")
def test_a_stream_joined_equals_the_whole_reply(engine, prompts, sampling):
    for prompt in prompts:
        (whole,) = engine.generate([prompt], sampling)[0]
        deltas = list(engine.stream(prompt, sampling))
        assert "".join(delta.text for delta in deltas) == whole.text
        assert deltas[-1].completion == whole
        assert all(delta.completion is None for delta in deltas[:-1])


def test_a_stream_speaks_with_every_token_and_never_half_a_character():
    text = "你好，世界！今天天气怎么样？ plain words too"
    prompt = Prompt("", [10, 11, 12])
    deltas = list(scripted(text, prompt).stream(prompt, GREEDY_LONG))
    assert "".join(delta.text for delta in deltas) == text
    assert not any("\ufffd" in delta.text for delta in deltas)
    assert len([delta for delta in deltas if delta.text]) > 10


def test_streaming_several_beams_or_completions_is_refused(engine, prompts):
    with pytest.raises(EngineError, match="--num_beams 1"):
        engine.stream(prompts[0], Sampling(num_beams=2))
    with pytest.raises(EngineError, match="one completion"):
        engine.stream(prompts[0], Sampling(n=2))


def test_n_completions_come_in_order_and_differ(engine, prompts):
    results = engine.generate(prompts[:2], Sampling(16, 1.0, seed=7, n=3))
    assert [len(completions) for completions in results] == [3, 3]
    assert len({tuple(completion.token_ids) for completion in results[0]}) == 3
    for number, completion in enumerate(results[0]):
        assert ids([[completion]]) == ids(engine.generate(prompts[:1], Sampling(16, 1.0, seed=7 + number)))


def test_the_eos_token_is_cut_and_ends_the_reply(prompts):
    (completion,) = scripted("Good-bye.", prompts[0]).generate(prompts[:1], GREEDY_LONG)[0]
    assert completion.text == "Good-bye."
    assert completion.finish_reason == "stop"
    assert completion.token_ids == tiny.tokenizer().encode("Good-bye.")


def test_stop_token_ids_of_the_template_end_a_reply_and_are_cut(model, engine, prompts):
    token = engine.generate(prompts[:1], GREEDY)[0][0].token_ids[0]
    stopped = Transformers(model, tiny.tokenizer(), stop_token_ids=[token])
    (completion,) = stopped.generate(prompts[:1], GREEDY)[0]
    assert (completion.token_ids, completion.text, completion.finish_reason) == ([], "", "stop")


@pytest.mark.parameter("stop_words")
def test_a_stop_word_ends_the_reply_and_stays_in_it(prompts):
    text = "What is two and two? Four. Thank you"
    for word in ("two? Fo", "t", "。", "Four."):
        (completion,) = scripted(text, prompts[0]).generate(prompts[:1], Sampling(200, 0, stop=(word, "never")))[0]
        assert completion.finish_reason == "stop"
        if word not in text:
            assert completion.text == text
            continue
        tokens = completion.token_ids
        assert word in completion.text
        assert word not in decode(tiny.tokenizer(), tokens[:-1]), "it stops with the token that completes the word"


def test_stop_words_end_beams_too(engine, prompts):
    free = engine.generate(prompts[:1], Sampling(12, 0, num_beams=2))[0][0]
    word = decode(tiny.tokenizer(), free.token_ids[2:4])
    (stopped,) = engine.generate(prompts[:1], Sampling(12, 0, num_beams=2, stop=(word,)))[0]
    assert word in stopped.text
    assert len(stopped.token_ids) < len(free.token_ids)


@pytest.mark.parameter("max_new_tokens")
def test_max_new_tokens_limits_the_reply_and_without_it_the_context_does(model, prompts):
    engine = Transformers(model, tiny.tokenizer(), context_length=50, max_batch_size=-1)
    short = engine.generate(prompts, Sampling(3, 0))
    assert {(len(c.token_ids), c.finish_reason) for (c,) in short} == {(3, "length")}
    full = engine.generate(prompts, Sampling(temperature=0))
    assert [len(p.input_ids) + len(c.token_ids) for p, (c,) in zip(prompts, full, strict=True)] == [50] * len(prompts)


def test_the_context_is_read_from_the_config(model):
    assert Transformers(model, tiny.tokenizer()).context_length == 512


def test_more_new_tokens_than_the_context_holds_are_cut_with_a_warning(model, prompts, heard):
    engine = Transformers(model, tiny.tokenizer(), context_length=20)
    with heard.at_level("WARNING", logger="swift"):
        (completion,) = engine.generate(prompts[1:2], Sampling(1000, 0))[0]
    assert len(completion.token_ids) == 20 - len(prompts[1].input_ids)
    assert "--max_new_tokens 1000 is more than the context of 20" in heard.text


def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers(model):
    engine = Transformers(model, tiny.tokenizer(), context_length=20)
    with pytest.raises(EngineError, match=r"25 tokens and the model's context is 20.*--truncation_strategy left"):
        engine.generate([Prompt("", [7] * 25)], GREEDY)


@pytest.mark.parameter("logprobs")
@pytest.mark.parameter("top_logprobs")
@pytest.mark.parametrize("sampling", [
    Sampling(10, 0, logprobs=True, top_logprobs=4),
    Sampling(10, 0.7, top_k=9, repetition_penalty=1.3, seed=3, top_logprobs=4),
    Sampling(10, 0, num_beams=3, n=2, logprobs=True, top_logprobs=4),
])  # fmt: skip
def test_logprobs_are_those_of_a_forward_pass_one_per_token(model, prompts, sampling):
    engine = Transformers(model, tiny.tokenizer(), max_batch_size=-1)
    for prompt, completions in zip(prompts, engine.generate(prompts, sampling), strict=True):
        for completion in completions:
            assert completion.logprobs is not None
            assert [each.token_id for each in completion.logprobs] == completion.token_ids
            with torch.no_grad():
                logits = model(torch.tensor([prompt.input_ids + completion.token_ids])).logits[0]
            expected = torch.log_softmax(logits, -1)[len(prompt.input_ids) - 1 : -1]
            for row, each in zip(expected, completion.logprobs, strict=True):
                assert each.logprob == pytest.approx(row[each.token_id].item(), abs=1e-4)
                assert each.token == decode(tiny.tokenizer(), [each.token_id])
                values = [value for _, _, value in each.top]
                assert values == sorted(values, reverse=True)
                assert values == pytest.approx(row.topk(4).values.tolist(), abs=1e-4)


def test_without_logprobs_there_are_none(engine, prompts):
    assert engine.generate(prompts[:1], GREEDY)[0][0].logprobs is None


def test_a_stream_carries_logprobs_token_by_token(engine, prompts):
    deltas = list(engine.stream(prompts[0], Sampling(10, 0, logprobs=True)))
    assert [each for delta in deltas for each in delta.logprobs] == deltas[-1].completion.logprobs


def test_the_same_seed_draws_the_same_and_another_does_not(engine, prompts):
    draw = [ids(engine.generate(prompts, Sampling(16, 1.0, seed=seed))) for seed in (1, 1, 2)]
    assert draw[0] == draw[1] != draw[2]


def test_without_a_seed_draws_follow_torch(engine, prompts):
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(ids(engine.generate(prompts, Sampling(16, 1.0))))
    assert draws[0] == draws[1] != draws[2]


def first_tokens(engine, prompt, sampling, count: int = 200) -> list[int]:
    (completions,) = engine.generate([prompt], Sampling(**{**sampling, "max_new_tokens": 1, "n": count, "seed": 0}))
    return [completion.token_ids[0] for completion in completions if completion.token_ids]


def probabilities(model, prompt):
    with torch.no_grad():
        return torch.softmax(model(torch.tensor([prompt.input_ids])).logits[0, -1], -1)


@pytest.mark.parameter("temperature")
def test_temperature_zero_is_greedy_and_higher_ones_spread(model, engine, prompts):
    best = int(probabilities(model, prompts[0]).argmax())
    assert set(first_tokens(engine, prompts[0], {"temperature": 0.0}, 3)) == {best}
    assert set(first_tokens(engine, prompts[0], {"temperature": 1e-4}, 20)) == {best}
    cool, hot = (len(set(first_tokens(engine, prompts[0], {"temperature": t, "top_k": 0}))) for t in (0.1, 2.0))
    assert 1 < cool < hot


@pytest.mark.parameter("top_k")
def test_top_k_draws_from_the_k_likeliest_and_zero_from_all(model, engine, prompts):
    likeliest = probabilities(model, prompts[0]).topk(60).indices.tolist()
    assert set(first_tokens(engine, prompts[0], {"temperature": 1.0, "top_k": 3})) == set(likeliest[:3])
    assert set(first_tokens(engine, prompts[0], {"temperature": 1.0, "top_k": 1}, 5)) == {likeliest[0]}
    assert set(first_tokens(engine, prompts[0], {"temperature": 3.0, "top_k": 0})) - set(likeliest)
    assert set(first_tokens(engine, prompts[0], {"temperature": 3.0, "top_k": -1})) - set(likeliest)


@pytest.mark.parameter("top_p")
def test_top_p_draws_from_the_smallest_set_with_that_probability(model, engine, prompts):
    ordered = probabilities(model, prompts[0]).sort(descending=True)
    size = int((ordered.values.cumsum(0) < 0.1).sum()) + 1
    drawn = set(first_tokens(engine, prompts[0], {"temperature": 1.0, "top_p": 0.1, "top_k": 0}))
    assert drawn == set(ordered.indices[:size].tolist())


@pytest.mark.parameter("repetition_penalty")
def test_a_repetition_penalty_breaks_a_loop(model, engine, prompts):
    looping, free = (engine.generate(prompts[:1], Sampling(30, 0, repetition_penalty=p))[0][0] for p in (None, 10.0))
    assert len(set(looping.token_ids)) < 5
    assert len(set(free.token_ids)) == 30
    assert not set(free.token_ids) & set(prompts[0].input_ids), "the prompt counts as said"


@pytest.mark.parameter("num_beams")
def test_beams_find_likelier_replies_than_greedy_does(model, prompts):
    engine = Transformers(model, tiny.tokenizer(), max_batch_size=-1)

    def likelihoods(beams: int) -> list[float]:
        results = engine.generate(prompts, Sampling(8, 0, num_beams=beams, logprobs=True))
        return [sum(each.logprob for each in completion.logprobs) for (completion,) in results]

    gains = [beam - greedy for beam, greedy in zip(likelihoods(6), likelihoods(1), strict=True)]
    assert all(gain >= -1e-4 for gain in gains)
    assert max(gains) > 1e-3


def test_beams_of_a_batch_equal_beams_alone(model, engine, prompts):
    sampling = Sampling(8, 0, num_beams=3, n=2)
    together = Transformers(model, tiny.tokenizer(), max_batch_size=-1).generate(prompts, sampling)
    assert ids(together) == ids(engine.generate(prompts, sampling))


def test_more_completions_than_beams_are_refused(engine, prompts):
    with pytest.raises(EngineError, match="--num_beams"):
        engine.generate(prompts, Sampling(num_beams=2, n=3))


def test_what_is_not_said_is_read_from_the_generation_config(prompts):
    model = tiny.model(seed=3)
    greedy = ids(Transformers(model, tiny.tokenizer()).generate(prompts, Sampling(16, seed=1)))
    assert greedy == ids(Transformers(model, tiny.tokenizer()).generate(prompts, Sampling(16, 0)))
    model.generation_config.update(do_sample=True, temperature=0.9, top_k=5, top_p=0.8, repetition_penalty=1.1)
    engine = Transformers(model, tiny.tokenizer())
    said = Sampling(16, 0.9, top_k=5, top_p=0.8, repetition_penalty=1.1, seed=1)
    assert ids(engine.generate(prompts, Sampling(16, seed=1))) == ids(engine.generate(prompts, said)) != greedy
    quiet = ids(engine.generate(prompts, Sampling(16, 0, repetition_penalty=1.0)))
    assert quiet == greedy


def test_sampling_options_without_sampling_are_warned_of(engine, prompts, heard):
    with heard.at_level("WARNING", logger="swift"):
        engine.generate(prompts, Sampling(2, top_p=0.5))
        engine.generate(prompts, Sampling(2, top_p=0.5))
    assert heard.text.count("--top_p 0.5: no effect") == 1


@pytest.mark.parametrize(
    "changes", [{}, {"max_length": 30}, {"max_new_tokens": 4}, {"max_length": 5, "do_sample": True, "temperature": 0.3}]
)
def test_transformers_has_nothing_to_complain_of(prompts, caplog, changes):
    model = tiny.model(seed=3)
    model.generation_config.update(**changes)
    engine = Transformers(model, tiny.tokenizer(), max_batch_size=-1)
    library = logging.getLogger("transformers")
    library.propagate = True
    try:
        with caplog.at_level("WARNING"):
            results = engine.generate(prompts, Sampling(12, 0))
            engine.generate(prompts, Sampling(12, 0.5, top_p=0.9))
            engine.generate(prompts, Sampling(12, 0, num_beams=2))
    finally:
        library.propagate = False
    assert {len(completion.token_ids) for (completion,) in results} == {12}
    assert caplog.text == ""


def test_debugging_shows_the_ids(engine, prompts, heard, monkeypatch):
    monkeypatch.setenv("SWIFT_DEBUG", "1")
    with heard.at_level("INFO", logger="swift"):
        (completion,) = engine.generate(prompts[:1], Sampling(3, 0))[0]
    assert str(prompts[0].input_ids) in heard.text
    assert str(completion.token_ids) in heard.text


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft reads it
def test_an_adapted_model_generates_like_its_merged_weights(prompts):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    adapted = get_peft_model(
        tiny.model(seed=3), LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    engine = Transformers(adapted, tiny.tokenizer(), max_batch_size=-1)
    before = ids(engine.generate(prompts, GREEDY))
    assert before != ids(Transformers(tiny.model(seed=3), tiny.tokenizer()).generate(prompts, GREEDY))
    merged = Transformers(adapted.merge_and_unload(), tiny.tokenizer())
    assert before == ids(merged.generate(prompts, GREEDY))


@pytest.mark.parametrize("family", ["sliding", "recurrent"])
def test_other_caches_give_the_same_in_batches_and_alone(family, prompts):
    from transformers import AutoModelForCausalLM, FalconH1Config, MistralConfig

    torch.manual_seed(0)
    small = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 1, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 1}  # fmt: skip
    configs = {
        "sliding": lambda: MistralConfig(**small, sliding_window=8),
        "recurrent": lambda: FalconH1Config(**small, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8),
    }
    model = AutoModelForCausalLM.from_config(configs[family]()).eval()
    sampling = Sampling(20, 1.2, seed=2)
    ends = {"stop_token_ids": range(5, 25), "context_length": 512}
    together = Transformers(model, tiny.tokenizer(), max_batch_size=-1, **ends).generate(prompts, sampling)
    alone = Transformers(model, tiny.tokenizer(), **ends).generate(prompts, sampling)
    assert len({len(completion.token_ids) for (completion,) in together}) > 1
    assert ids(together) == ids(alone)


def test_draws_have_the_frequencies_of_the_probabilities(model, engine, prompts):
    count = 4000
    drawn = first_tokens(engine, prompts[0], {"temperature": 1.0, "top_k": 5}, count)
    likeliest = probabilities(model, prompts[0]).topk(5)
    shares = likeliest.values / likeliest.values.sum()
    for token, share in zip(likeliest.indices.tolist(), shares.tolist(), strict=True):
        deviation = (share * (1 - share) / count) ** 0.5
        assert drawn.count(token) / count == pytest.approx(share, abs=4 * deviation)
