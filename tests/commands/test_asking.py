"""A model asked from Python: what it is given, what it answers, and that the public names say so."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace

import pytest
import torch

import tiny
from swift import AdapterRequest, InferRequest, InferStats, RequestConfig, TransformersEngine
from swift.chat.messages import Conversation, Message
from swift.core.errors import DataError, EngineError, UsageError

QUESTIONS = ["What is two and two?", "The quick brown fox", "你好"]
REQUESTS = [InferRequest([{"role": "user", "content": text}]) for text in QUESTIONS]
GREEDY = RequestConfig(max_tokens=8, temperature=0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("models") / "tiny", seed=3)


@pytest.fixture(scope="module")
def engine(checkpoint):
    built = TransformersEngine(checkpoint, max_batch_size=4, torch_dtype="float32")
    yield built
    built.close()


def contents(responses):
    return [[choice.message.content for choice in response.choices] for response in responses]


def test_answers_have_the_shape_of_openai(engine):
    (response,) = engine.infer(REQUESTS[:1], RequestConfig(max_tokens=5, temperature=0, return_details=True, n=1))
    assert (response.model, response.object) == ("tiny", "chat.completion")
    assert response.id.startswith("chatcmpl-")
    (choice,) = response.choices
    assert (choice.index, choice.message.role, choice.finish_reason) == (0, "assistant", "length")
    assert len(choice.token_ids) == response.usage.completion_tokens == 5
    assert response.usage.prompt_tokens == len(response.prompt_token_ids)
    assert response.usage.total_tokens == response.usage.prompt_tokens + 5
    assert engine.infer(REQUESTS[:1], GREEDY)[0].prompt_token_ids is None


def test_requests_may_be_rows_and_a_model_in_memory_answers_like_its_folder(engine):
    rows = [{"messages": request.messages} for request in REQUESTS]
    expected = contents(engine.infer(REQUESTS, GREEDY))
    assert contents(engine.infer(rows, GREEDY)) == expected
    inside = TransformersEngine(tiny.model(seed=3), tokenizer=tiny.tokenizer())
    assert contents(inside.infer(REQUESTS, GREEDY)) == expected
    with pytest.raises(UsageError, match="tokenizer"):
        TransformersEngine(tiny.model(seed=3))
    with pytest.raises(UsageError, match="A request has messages"):
        engine.infer([{"message": []}], GREEDY)


def test_a_prompt_is_that_of_the_renderer_and_options_are_those_of_the_command(checkpoint):
    plain = TransformersEngine(checkpoint, system="You add numbers.")
    prompt = plain._chat.prompt(Conversation((Message("user", QUESTIONS[0]),)))
    assert "You add numbers." in prompt.text
    with pytest.raises(UsageError, match="max_lenght"):
        TransformersEngine(checkpoint, max_lenght=3)


def test_streams_grow_at_once_and_join_to_the_whole(engine):
    whole = contents(engine.infer(REQUESTS, GREEDY))
    streams = engine.infer(REQUESTS, RequestConfig(max_tokens=8, temperature=0, stream=True))
    pieces = [list(stream) for stream in streams]
    for expected, several in zip(whole, pieces, strict=True):
        assert "".join(piece.choices[0].delta.content for piece in several) == expected[0]
        assert [piece.choices[0].finish_reason for piece in several[:-1]] == [None] * (len(several) - 1)
        assert several[-1].choices[0].finish_reason == "length"
        counts = [piece.usage.completion_tokens for piece in several]
        assert counts == sorted(counts)
        assert counts[-1] == 8
        assert len({piece.id for piece in several}) == 1


def test_many_asked_asynchronously_are_answered_as_in_a_batch(engine):
    async def talk():
        whole = await asyncio.gather(*(engine.infer_async(request, GREEDY) for request in REQUESTS))
        stream = await engine.infer_async(REQUESTS[0], RequestConfig(max_tokens=8, temperature=0, stream=True))
        return whole, "".join([piece.choices[0].delta.content async for piece in stream])

    whole, streamed = asyncio.run(talk())
    assert contents(whole) == contents(engine.infer(REQUESTS, GREEDY))
    assert streamed == whole[0].choices[0].message.content


def test_seeds_and_n_and_logprobs_are_heeded(engine):
    config = RequestConfig(max_tokens=6, temperature=1.0, seed=1, n=2, top_logprobs=2)
    first, again = engine.infer(REQUESTS, config), engine.infer(REQUESTS, config)
    assert contents(first) == contents(again)
    assert all(len(set(texts)) == 2 for texts in contents(first))
    content = first[0].choices[1].logprobs["content"]
    assert content
    assert all(len(each["top_logprobs"]) == 2 for each in content)
    with pytest.raises(UsageError, match="best_of"):
        engine.infer(REQUESTS, RequestConfig(n=1, best_of=3))


def test_stop_words_and_structures_and_prefixes_are_heeded(checkpoint, engine):
    (free,) = contents(engine.infer(REQUESTS[:1], GREEDY))[0]
    word = free[2:4]
    assert contents(engine.infer(REQUESTS[:1], RequestConfig(max_tokens=8, temperature=0, stop=word)))[0][0].endswith(
        word
    )
    config = RequestConfig(max_tokens=20, temperature=0, structured_outputs_regex="(yes|no)!")
    assert all(texts[0] in ("yes!", "no!") for texts in contents(engine.infer(REQUESTS, config)))
    begun = TransformersEngine(checkpoint, response_prefix="Well, ")
    assert contents(begun.infer(REQUESTS[:1], GREEDY))[0][0].startswith("Well, ")
    (pieces,) = begun.infer(REQUESTS[:1], RequestConfig(max_tokens=8, temperature=0, stream=True))
    text = "".join(piece.choices[0].delta.content for piece in pieces)
    assert text == contents(begun.infer(REQUESTS[:1], GREEDY))[0][0]


def test_an_error_is_raised_or_takes_the_place_of_its_answer(checkpoint):
    engine = TransformersEngine(checkpoint, max_length=30)
    requests = [REQUESTS[0], InferRequest([{"role": "user", "content": "long " * 60}]), REQUESTS[2]]
    with pytest.raises(DataError, match="--max_length 30"):
        engine.infer(requests, GREEDY)
    engine.strict = False
    first, error, third = engine.infer(requests, GREEDY)
    assert isinstance(error, DataError)
    assert contents([first, third]) == contents(engine.infer([REQUESTS[0], REQUESTS[2]], GREEDY))


def test_stats_count_each_request_once_and_go_on_until_they_are_reset(engine):
    stats = InferStats()
    responses = engine.infer(REQUESTS, RequestConfig(max_tokens=4, temperature=0, n=2, num_beams=2), metrics=[stats])
    told = stats.compute()
    assert told["num_samples"] == 3
    assert told["num_prompt_tokens"] == sum(response.usage.prompt_tokens for response in responses)
    assert told["num_generated_tokens"] == sum(response.usage.completion_tokens for response in responses)
    assert told["runtime"] > 0
    assert told["tokens/s"] == pytest.approx(told["num_generated_tokens"] / told["runtime"])
    (stream,) = engine.infer(REQUESTS[:1], RequestConfig(max_tokens=4, temperature=0, stream=True), metrics=[stats])
    assert list(stream)
    assert stats.compute()["num_samples"] == 4
    stats.reset()
    assert stats.compute()["num_samples"] == 0


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft reads it
def test_adapters_are_read_when_they_are_first_asked_for_and_chosen_by_request(checkpoint, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        config = LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
        get_peft_model(AutoModelForCausalLM.from_pretrained(checkpoint), config).save_pretrained(tmp_path / name)
    engine = TransformersEngine(checkpoint, max_batch_size=8)
    drawn = RequestConfig(max_tokens=8, temperature=1.0, seed=1)
    base = contents(engine.infer(REQUESTS, drawn))
    wanted = [AdapterRequest(name, str(tmp_path / name)) for name in ("one", "two")]
    adapted = [contents(engine.infer(REQUESTS, drawn, adapter_request=each)) for each in wanted]
    assert base != adapted[0] != adapted[1] != base
    assert contents(engine.infer(REQUESTS, drawn)) == base
    assert engine.engine.adapters == ("one", "two")
    fixed = TransformersEngine(checkpoint, adapters=str(tmp_path / "one"))
    assert contents(fixed.infer(REQUESTS, drawn)) == adapted[0]
    with pytest.raises(EngineError, match="always in effect"):
        fixed.infer(REQUESTS, GREEDY, adapter_request=wanted[1])


def test_calls_of_tools_are_read_and_stay_in_the_text(tmp_path):
    said = '{"name": "add", "arguments": {"a": 1, "b": 2}}'
    call = f"<tool_call>\n{said}\n</tool_call>"
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
    engine = TransformersEngine(tiny.checkpoint(tmp_path, max_position_embeddings=1024), agent_template="hermes")
    request = InferRequest(REQUESTS[0].messages, tools=tools)
    config = RequestConfig(max_tokens=120, temperature=0, structured_outputs_regex=re.escape(call))
    (response,) = engine.infer([request], config)
    message = response.choices[0].message
    assert message.content == call
    assert [(each.function.name, json.loads(each.function.arguments)) for each in message.tool_calls] == [
        ("add", {"a": 1, "b": 2})
    ]
    assert engine.infer(REQUESTS[:1], config)[0].choices[0].message.tool_calls is None


def test_a_hook_sees_what_the_engine_gets(engine):
    def shorter(request):
        return replace(request, sampling=replace(request.sampling, max_new_tokens=2))

    response = asyncio.run(engine.infer_async(REQUESTS[0], GREEDY, pre_infer_hook=shorter))
    assert response.usage.completion_tokens == 2


def test_media_in_base64_are_not_shown_in_full():
    request = InferRequest([{"role": "user", "content": "x" * 2000}], images="A" * 5000)
    shown = request.printable()
    assert shown["images"] == [f"<<<base64:{'A' * 50}..>>>"]
    assert shown["messages"][0]["content"] == "x" * 2000


def test_models_that_read_answer_with_vectors_classes_and_scores(tmp_path):
    from transformers import Qwen3ForSequenceClassification

    embedding = TransformersEngine(tiny.checkpoint(tmp_path / "m", seed=3), task_type="embedding", max_batch_size=2)
    responses = embedding.infer(REQUESTS)
    alone = embedding.infer(REQUESTS[1:2])[0]
    assert [len(response.data[0].embedding) for response in responses] == [64] * 3
    assert responses[1].data[0].embedding == pytest.approx(alone.data[0].embedding, abs=1e-5)
    config = tiny.model(seed=1).config
    config.num_labels = 3
    torch.manual_seed(0)
    Qwen3ForSequenceClassification(config).save_pretrained(tmp_path / "c")
    tiny.tokenizer().save_pretrained(tmp_path / "c")
    classes = TransformersEngine(tmp_path / "c", task_type="seq_cls", max_batch_size=-1)
    told = classes.infer(REQUESTS, RequestConfig(logprobs=True))
    assert {response.choices[0].message.content for response in told} <= {0, 1, 2}
    assert len(told[0].choices[0].logprobs["content"][0]["top_logprobs"]) == 3
    assert told[0].usage.completion_tokens == 1
