"""vLLM beside the other engines: the same adapters, heads and texts give the same numbers."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

import tiny
from swift.chat.render import Prompt, Sample
from swift.core.errors import EngineError
from swift.engines.base import Request, Sampling
from swift.engines.scoring import ScoringEngine
from swift.models.heads import Head
from swift.options.engines import VllmOptions

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
OPTIONS = VllmOptions(vllm_enforce_eager=True, vllm_max_num_seqs=16)
TEXTS = ["The quick brown", "A", "What is two and two? Four. Thank you", "你好，世界"]
PROMPTS = [Prompt(text, tiny.tokenizer().encode(text)) for text in TEXTS]
GREEDY = Sampling(max_new_tokens=12, temperature=0, top_logprobs=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("vllm") / "tiny", seed=3, head_dim=32)


def adapter(folder, seed, rank):
    """An adapter that says something else, saved."""
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, target_modules="all-linear", init_lora_weights=False, base_model_name_or_path="tiny")
    made = get_peft_model(tiny.model(3, head_dim=32), config)
    made.save_pretrained(folder)
    return folder


def logprobs(model, prompt, token_ids):
    """[T, V] log-probabilities in front of each token of a reply."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt.input_ids, *token_ids]])).logits[0]
    return torch.log_softmax(logits[len(prompt.input_ids) - 1 : -1], -1)


@pytest.mark.parameter("adapters")
def test_requests_name_their_adapters_and_the_others_get_the_one_that_is_always_active(folder, tmp_path):
    from swift.engines.vllm import Served, Vllm

    folders = {"first": adapter(tmp_path / "1", 1, 4), "second": adapter(tmp_path / "2", 2, 16)}
    always = adapter(tmp_path / "3", 3, 8)
    engine = Vllm(Served(folder, "float32", adapters=folders, always=always), tiny.tokenizer(), OPTIONS)
    assert engine.adapters == ("first", "second")
    names = ["first", None, "second", "second", None, "first"]
    requests = [Request(PROMPTS[i % len(PROMPTS)], GREEDY, name) for i, name in enumerate(names)]
    replies = engine.complete(requests)
    assert replies == [engine.complete([request])[0] for request in requests]
    for request, (reply,) in zip(requests, replies, strict=True):
        place = folders.get(request.adapter, always)
        model = PeftModel.from_pretrained(tiny.model(3, head_dim=32), place).eval()
        expected = logprobs(model, request.prompt, reply.token_ids)
        assert reply.token_ids == expected.argmax(-1).tolist()
        for row, told in zip(expected, reply.logprobs, strict=True):
            assert [value for _, _, value in told.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
    with pytest.raises(EngineError, match="no adapter 'third'"):
        engine.complete([Request(PROMPTS[0], GREEDY, "third")])
    engine.close()


@pytest.mark.parameter("adapters")
@pytest.mark.parametrize("uses_async", [False, True])
def test_requests_without_an_adapter_are_the_model_alone_whoever_shares_their_batch(folder, tmp_path, uses_async):
    from swift.engines.vllm import Served, Vllm

    folders = {"first": adapter(tmp_path / "1", 1, 4), "second": adapter(tmp_path / "2", 2, 8)}
    served = Served(folder, "float32", adapters=folders)
    engine = Vllm(served, tiny.tokenizer(), OPTIONS, uses_async=uses_async)
    names = [None, "first", None, "second", None, "first", "second", None]
    requests = [Request(PROMPTS[i % len(PROMPTS)], GREEDY, name) for i, name in enumerate(names)]
    replies = engine.complete(requests)
    engine.close()
    for request, (reply,) in zip(requests, replies, strict=True):
        model = tiny.model(3, head_dim=32)
        if request.adapter is not None:
            model = PeftModel.from_pretrained(model, folders[request.adapter]).eval()
        expected = logprobs(model, request.prompt, reply.token_ids)
        assert reply.token_ids == expected.argmax(-1).tolist()
        for row, told in zip(expected, reply.logprobs, strict=True):
            assert [value for _, _, value in told.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)


def test_a_stream_that_is_left_or_looked_at_later_loses_nothing(folder):
    from swift.engines.vllm import Served, Vllm

    engine = Vllm(Served(folder, "float32"), tiny.tokenizer(), OPTIONS)
    whole = engine.generate(PROMPTS, GREEDY)
    left, kept = engine.stream(PROMPTS[0], GREEDY), engine.stream(PROMPTS[1], GREEDY)
    first = [next(kept)]
    next(left)
    left.close()
    assert engine.generate(PROMPTS[2:], GREEDY) == whole[2:]
    pieces = [*first, *kept]
    assert "".join(piece.text for piece in pieces) == whole[1][0].text
    assert pieces[-1].completion == whole[1][0]
    assert not engine.has_work
    engine.close()


# ------------------------------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize("uses_async", [False, True])
def test_other_weights_answer_as_a_model_that_has_them(tmp_path, uses_async):
    from swift.engines.vllm import Served, Vllm

    folders = [
        tiny.checkpoint(tmp_path / str(seed), seed=seed, head_dim=32, tie_word_embeddings=False) for seed in (3, 4)
    ]
    engine = Vllm(Served(folders[0], "float32"), tiny.tokenizer(), OPTIONS, uses_async=uses_async)
    for folder in (folders[0], folders[1], folders[0]):
        engine.load_weights(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
        for prompt, (reply,) in zip(PROMPTS, engine.generate(PROMPTS, GREEDY), strict=True):
            told = logprobs(model, prompt, reply.token_ids)
            likely = torch.tensor([token.logprob for token in reply.logprobs])
            torch.testing.assert_close(likely, told.max(-1).values, rtol=0, atol=1e-3)
    with pytest.raises(EngineError, match="no checkpoint"):
        engine.load_weights(tmp_path / "nothing")
    engine.close()


def head_and_model(task, folder):
    """A checkpoint of a task, its head, and the model of transformers."""
    torch.manual_seed(0)
    base = tiny.model(5, head_dim=32)
    if task == "generative_reranker":
        base.save_pretrained(folder)
        return Head(task, judges=(70, 71)), base
    if task == "embedding":
        base.save_pretrained(folder)
        return Head(task, pooling="last"), AutoModel.from_pretrained(folder).eval()
    labels = {"seq_cls": 3, "reranker": 1, "reward": 1}[task]
    base.save_pretrained(folder)
    made = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels)
    made.config.pad_token_id = 0
    made.save_pretrained(folder)
    kind = "reranker" if task == "reranker" else "seq_cls"
    problem = "regression" if labels == 1 else "single_label_classification"
    return Head(kind, problem, labels, pad_token_id=0), made.eval()


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parameter("task_type")
@pytest.mark.parametrize(
    "task", ["embedding", "mean embedding", "seq_cls", "reward", "reranker", "generative_reranker"]
)
def test_what_is_read_from_texts_is_what_our_engine_reads(task, tmp_path):
    from swift.engines.vllm import Served
    from swift.engines.vllm_scoring import VllmScoring

    head, model = head_and_model(task.removeprefix("mean "), tmp_path)
    if task == "mean embedding":
        head = replace(head, pooling="mean", normalizes=False)
    tiny.tokenizer().save_pretrained(tmp_path)
    texts = [tiny.tokenizer().encode(text) for text in TEXTS]
    ending = [*texts[2], 0, 0] if head.task == "seq_cls" else texts[2]
    samples = [Sample(ids, [-100] * len(ids)) for ids in (*texts, ending)]
    expected = ScoringEngine(model, head, max_batch_size=-1).outputs(samples)
    engine = VllmScoring(Served(tmp_path, "float32"), head, tiny.tokenizer(), OPTIONS)
    found = engine.outputs(samples)
    engine.close()
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    assert expected.std() > 1e-2, "numbers that differ, or nothing is shown"
    if head.task == "seq_cls":
        torch.testing.assert_close(found[-1], found[2])


@pytest.mark.parameter("vllm_speculative_config")
@pytest.mark.parameter("vllm_max_model_len")
def test_guessing_ahead_changes_no_token_and_a_shorter_context_ends_replies(folder):
    # In a process of its own: guessing brings numba, and with it in a process vLLM can start no other engine.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(guess, folder).result()


def guess(folder):
    from swift.engines.vllm import Served, Vllm

    guessing = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    options = OPTIONS.model_copy(update={"vllm_speculative_config": guessing, "vllm_max_model_len": 48})
    plain = Vllm(Served(folder, "float32"), tiny.tokenizer(), OPTIONS)
    prompt = Prompt("", tiny.tokenizer().encode("one two three one two three one two three"))
    asked = [prompt, *PROMPTS]
    expected = plain.generate(asked, replace(GREEDY, max_new_tokens=200, top_logprobs=None))
    plain.close()
    engine = Vllm(Served(folder, "float32"), tiny.tokenizer(), options)
    assert engine.config.speculative_config.method == "ngram"
    assert engine.context_length == 48
    found = engine.generate(asked, replace(GREEDY, max_new_tokens=200, top_logprobs=None))
    for prompt, (short,), (long,) in zip(asked, found, expected, strict=True):
        assert short.token_ids == long.token_ids[: 48 - len(prompt.input_ids)]
        assert short.finish_reason == "length"
    with pytest.raises(EngineError, match="no room for a reply"):
        engine.generate([Prompt("", [5] * 48)], GREEDY)
    engine.close()
