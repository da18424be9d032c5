"""A model that vLLM serves, asked from Python: what it answers is what our own engine answers."""

from __future__ import annotations

import asyncio
import time

import pytest
import torch
from peft import LoraConfig, get_peft_model

import tiny
from swift import AdapterRequest, InferRequest, InferStats, RequestConfig, TransformersEngine, VllmEngine
from swift.core.errors import DataError, EngineError, UsageError

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
QUESTIONS = ["What is two and two?", "The quick brown fox", "你好", "A"]
REQUESTS = [InferRequest([{"role": "user", "content": text}]) for text in QUESTIONS]
GREEDY = RequestConfig(max_tokens=8, temperature=0)
SMALL = {"torch_dtype": "float32", "enforce_eager": True, "max_num_seqs": 16}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("models") / "tiny", seed=3, head_dim=32)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Three that say something else."""
    made = []
    for number, name in enumerate(("one", "two", "three"), 1):
        folder = tmp_path_factory.mktemp("adapters") / name
        torch.manual_seed(number)
        config = LoraConfig(
            r=4 * number, target_modules="all-linear", init_lora_weights=False, base_model_name_or_path="tiny"
        )
        get_peft_model(tiny.model(3, head_dim=32), config).save_pretrained(folder)
        made.append(AdapterRequest(name, str(folder)))
    return made


@pytest.fixture(scope="module")
def expected(checkpoint, adapters):
    """Adapter, or None -> what our engine answers."""
    ours = TransformersEngine(checkpoint, max_batch_size=8, torch_dtype="float32")
    found = {each: contents(ours.infer(REQUESTS, GREEDY, adapter_request=each)) for each in (None, *adapters)}
    ours.close()
    return found


def contents(responses):
    return [[choice.message.content for choice in response.choices] for response in responses]


@pytest.mark.parametrize("uses_async", [True, False], ids=["async", "plain"])
def test_whole_replies_and_streams_and_adapters_are_those_of_our_engine(checkpoint, adapters, expected, uses_async):
    engine = VllmEngine(checkpoint, **SMALL, use_async_engine=uses_async, enable_lora=True, max_loras=2)
    stats = InferStats()
    responses = engine.infer(REQUESTS, GREEDY, metrics=[stats], use_tqdm=True)
    assert contents(responses) == expected[None]
    told = stats.compute()
    assert told["num_samples"] == len(REQUESTS)
    assert told["num_generated_tokens"] == sum(each.usage.completion_tokens for each in responses) > 0

    # Streams grow together, whichever is read; one that is left does not hold the others.
    streams = engine.infer(REQUESTS, RequestConfig(max_tokens=8, temperature=0, stream=True))
    next(streams[0])
    streams[0].close()
    assert contents(engine.infer(REQUESTS[:1], GREEDY)) == expected[None][:1]
    pieces = [list(stream) for stream in reversed(streams[1:])]
    for (text,), several in zip(expected[None][1:], reversed(pieces), strict=True):
        assert "".join(piece.choices[0].delta.content for piece in several) == text
        assert several[-1].choices[0].finish_reason is not None
        assert several[-1].usage.completion_tokens > 0

    # Adapters are read when they are first named, and have their own places beside the model alone.
    first, second, third = adapters
    for each in (first, second):
        assert contents(engine.infer(REQUESTS, GREEDY, adapter_request=each)) == expected[each] != expected[None]
    assert contents(engine.infer(REQUESTS, GREEDY)) == expected[None]
    assert engine.engine.adapters == ("one", "two")
    with pytest.raises(EngineError, match=r"max_loras = 2 of them are taken: there is none for 'three'"):
        engine.infer(REQUESTS, GREEDY, adapter_request=third)
    with pytest.raises(EngineError, match="The adapter 'one' is"):
        engine.infer(REQUESTS, GREEDY, adapter_request=AdapterRequest("one", second.path))

    drawn = RequestConfig(max_tokens=6, temperature=1.0, seed=1, n=2, top_logprobs=2, return_details=True)
    once, again = engine.infer(REQUESTS[:2], drawn), engine.infer(REQUESTS[:2], drawn)
    assert contents(once) == contents(again)
    assert all(len(set(texts)) == 2 for texts in contents(once))
    choice = once[0].choices[1]
    assert choice.token_ids
    assert all(len(each["top_logprobs"]) == 2 for each in choice.logprobs["content"])
    assert once[0].prompt_token_ids

    if not uses_async:
        with pytest.raises(EngineError, match="use_async_engine"):
            asyncio.run(engine.infer_async(REQUESTS[0], GREEDY))
    assert not engine.engine.has_work
    engine.close()


def test_asynchronous_requests_are_answered_beside_each_other_with_each_its_adapter(checkpoint, adapters, expected):
    engine = VllmEngine(checkpoint, adapters[:2], **SMALL)
    assert engine.engine.adapters == ("one", "two")
    names = [None, adapters[0], adapters[1], None]

    async def talk():
        whole = await asyncio.gather(*(
            engine.infer_async(request, GREEDY, adapter_request=name)
            for request, name in zip(REQUESTS, names, strict=True)
        ))  # fmt: skip
        stream = await engine.infer_async(REQUESTS[0], RequestConfig(max_tokens=8, temperature=0, stream=True))
        text = "".join([piece.choices[0].delta.content async for piece in stream])
        left = await engine.infer_async(REQUESTS[0], RequestConfig(max_tokens=200, temperature=0, stream=True))
        await anext(left)
        await left.aclose()
        return whole, text

    whole, streamed = asyncio.run(talk())
    assert contents(whole) == [expected[name][number] for number, name in enumerate(names)]
    assert [streamed] == expected[None][0]
    assert not engine.engine.has_work

    # What is refused leaves nothing behind, and a stream begins before it is read.
    too_many = RequestConfig(max_tokens=8, temperature=0, top_logprobs=30)
    with pytest.raises(EngineError, match="vLLM refuses the request"):
        engine.infer(REQUESTS, too_many)
    (stream,) = engine.infer(REQUESTS[:1], RequestConfig(max_tokens=8, temperature=0, stream=True))
    assert engine.engine.has_work
    del stream
    for _ in range(100):
        if not engine.engine.has_work:
            break
        time.sleep(0.1)
    assert not engine.engine.has_work
    engine.close()


def test_an_adapter_that_is_always_there_answers_who_names_none_and_errors_take_their_places(
    checkpoint, adapters, expected
):
    engine = VllmEngine(
        checkpoint, adapters[0].path, **SMALL, use_async_engine=False, max_model_len=64, strict=False
    )  # fmt: skip
    assert engine.context_length == 64
    long = InferRequest([{"role": "user", "content": "long " * 60}])
    first, error, third = engine.infer([REQUESTS[0], long, REQUESTS[2]], GREEDY)
    assert isinstance(error, DataError)
    assert contents([first, third]) == [expected[adapters[0]][0], expected[adapters[0]][2]]
    engine.close()
    plain = VllmEngine(checkpoint, **SMALL, use_async_engine=False)
    with pytest.raises(EngineError, match="needs enable_lora=True"):
        plain.infer(REQUESTS, GREEDY, adapter_request=adapters[0])
    plain.close()


def test_models_that_read_answer_as_with_our_engine(checkpoint):
    ours = TransformersEngine(checkpoint, task_type="embedding", torch_dtype="float32")
    theirs = VllmEngine(checkpoint, task_type="embedding", **SMALL)
    expected = ours.infer(REQUESTS)

    async def talk():
        return await asyncio.gather(*(theirs.infer_async(request) for request in REQUESTS))

    for found in (theirs.infer(REQUESTS), asyncio.run(talk())):
        for mine, other in zip(expected, found, strict=True):
            assert other.data[0].embedding == pytest.approx(mine.data[0].embedding, abs=1e-3)
    with pytest.raises(UsageError, match="answers no request in pieces"):
        theirs.infer(REQUESTS, RequestConfig(stream=True))
    with pytest.raises(UsageError, match="requests choose adapters of models that write"):
        VllmEngine(checkpoint, [AdapterRequest("one", "nowhere")], task_type="embedding", **SMALL)
    theirs.close()
    ours.close()


def test_thinking_is_told_apart_by_parsers_of_vllm(checkpoint, expected):
    with pytest.raises(UsageError, match="deepseek_r11 is unknown"):
        VllmEngine(checkpoint, **SMALL, use_async_engine=False, reasoning_parser="deepseek_r11")
    engine = VllmEngine(
        checkpoint, **SMALL, use_async_engine=False, reasoning_parser="deepseek_r1", response_prefix="<think>\nWell, "
    )
    plain = TransformersEngine(checkpoint, torch_dtype="float32", response_prefix="<think>\nWell, ")
    ((text,),) = contents(plain.infer(REQUESTS[:1], GREEDY))
    (response,) = engine.infer(REQUESTS[:1], GREEDY)
    message = response.choices[0].message
    assert (message.content, message.reasoning_content.strip()) == ("", text.removeprefix("<think>").strip())
    (stream,) = engine.infer(REQUESTS[:1], RequestConfig(max_tokens=8, temperature=0, stream=True))
    deltas = [piece.choices[0].delta for piece in stream]
    assert "".join(delta.reasoning_content or "" for delta in deltas) == message.reasoning_content
    assert not any(delta.content for delta in deltas)
    held = RequestConfig(max_tokens=8, temperature=0, structured_outputs_regex="yes|no")
    (answer,) = engine.infer(REQUESTS[:1], held)
    assert answer.choices[0].message.reasoning_content is None
    assert answer.choices[0].message.content.endswith(("yes", "no"))
    plain.close()
    engine.close()


def test_the_words_behind_thinking_are_the_content_and_hold_the_calls():
    from swift.chat.tool_turns import tool_format
    from swift.engines.base import Completion, Delta
    from swift.engines.replies import Answering
    from swift.engines.vllm_reasoning import Parts, ReasoningParser

    parser = ReasoningParser("deepseek_r1", tiny.tokenizer())
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    text = f"It adds.</think>{call}"
    ids = tiny.tokenizer().encode(text)

    def answering():
        return Answering("m", [1], tool_format("hermes"), splits=lambda: parser.stream("<think>"), begun=Parts("So: "))

    whole = answering().whole([Completion(ids, text, "stop")]).choices[0].message
    assert (whole.reasoning_content, whole.content) == ("So: It adds.", call)
    assert [each.function.name for each in whole.tool_calls] == ["add"]
    growing, pieces = answering(), []
    for number, each in enumerate(ids):
        last = Completion(ids, text, "stop") if number == len(ids) - 1 else None
        pieces.append(growing.piece(Delta(tiny.tokenizer().decode([each]), last, token_ids=[each])).choices[0].delta)
    assert "".join(each.reasoning_content or "" for each in pieces) == "So: It adds."
    assert "".join(each.content for each in pieces) == call
    assert [each.function.name for each in pieces[-1].tool_calls] == ["add"]
