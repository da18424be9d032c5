"""Texts continued as they are, by the official client."""

from __future__ import annotations

import openai
import pytest
import torch

import serving
import tiny


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    model = serving.checkpoint(tmp_path_factory.mktemp("model") / "tiny")
    with serving.running("--model", str(model), "--max_batch_size", "16") as made:
        yield made


@pytest.fixture(scope="module")
def client(server):
    with server.client() as made:
        yield made


def go_on(client, server, prompt="The quick brown", **more):
    return client.completions.create(**{"model": server.name, "prompt": prompt, "temperature": 0, **more})


def streamed(client, server, prompt="The quick brown", **more) -> dict[int, str]:
    texts: dict[int, str] = {}
    for chunk in go_on(client, server, prompt, stream=True, **more):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    return texts


def test_a_text_is_continued_without_a_chat_around_it(client, server):
    reply = go_on(client, server)
    assert reply.object == "text_completion"
    assert reply.id.startswith("cmpl-")
    assert reply.usage.prompt_tokens == len(tiny.tokenizer()("The quick brown")["input_ids"])
    assert reply.usage.completion_tokens == 16, "the protocol's default"
    assert reply.choices[0].finish_reason == "length"
    assert streamed(client, server) == {0: reply.choices[0].text}


def test_a_text_and_its_token_ids_are_the_same_prompt(client, server):
    ids = tiny.tokenizer()("The quick brown")["input_ids"]
    text = go_on(client, server).choices[0].text
    assert go_on(client, server, ids).choices[0].text == text
    several = go_on(client, server, [ids, ids[:2]])
    assert several.choices[0].text == text
    assert [choice.index for choice in several.choices] == [0, 1]


def test_several_prompts_are_answered_in_their_order(client, server):
    prompts = ["The quick", "A model learns", "def add(a"]
    alone = [go_on(client, server, prompt).choices[0].text for prompt in prompts]
    together = go_on(client, server, prompts)
    assert [choice.text for choice in together.choices] == alone
    assert streamed(client, server, prompts) == dict(enumerate(alone))
    twice = go_on(client, server, prompts, n=2, temperature=1.0, seed=3)
    assert [choice.index for choice in twice.choices] == list(range(6))
    assert len({choice.text for choice in twice.choices}) > 3


def test_echo_puts_the_prompt_in_front(client, server):
    plain, echoed = go_on(client, server), go_on(client, server, echo=True)
    assert echoed.choices[0].text == "The quick brown" + plain.choices[0].text
    assert streamed(client, server, echo=True)[0] == echoed.choices[0].text
    nothing = go_on(client, server, echo=True, max_tokens=0)
    assert nothing.choices[0].text == "The quick brown"
    assert nothing.usage.completion_tokens == 0


def test_log_probabilities_stand_side_by_side(client, server):
    told = go_on(client, server, logprobs=2, max_tokens=5).choices[0].logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset) == 5
    assert all(len(each) <= 2 for each in told.top_logprobs)
    assert told.text_offset[0] == 0
    assert told.text_offset[1] == len(told.tokens[0])
    pieces = [chunk.choices[0].logprobs for chunk in go_on(client, server, logprobs=2, max_tokens=5, stream=True)]
    assert [token for piece in pieces for token in piece.tokens] == told.tokens


def test_an_echoed_prompt_has_the_log_probabilities_of_a_forward_pass(client, server):
    model = server.opened.served.model.engine.model
    ids = tiny.tokenizer()("The quick brown")["input_ids"]
    with torch.no_grad():
        logps_TV = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
    expected = [logps_TV[place, token].item() for place, token in enumerate(ids[1:])]
    reply = go_on(client, server, echo=True, logprobs=2, max_tokens=4).choices[0]
    told, read = reply.logprobs, len(ids)
    assert "".join(told.tokens) == reply.text
    assert told.token_logprobs[0] is told.top_logprobs[0] is None, "nothing precedes the first token"
    assert told.token_logprobs[1:read] == pytest.approx(expected, abs=1e-4)
    assert [sorted(each.values()) for each in told.top_logprobs[1:read]] == [
        pytest.approx(sorted(row_V.topk(2).values.tolist()), abs=1e-4) for row_V in logps_TV[:-1]
    ]
    assert [
        reply.text[begin : begin + len(word)] for begin, word in zip(told.text_offset, told.tokens, strict=True)
    ] == (told.tokens)
    alone = go_on(client, server, logprobs=2, max_tokens=4).choices[0].logprobs
    assert told.token_logprobs[read:] == pytest.approx(alone.token_logprobs, abs=1e-4)
    only = go_on(client, server, ["The quick brown", ids], echo=True, logprobs=2, max_tokens=0, n=2)
    assert only.usage.completion_tokens == 0
    for choice in only.choices:
        assert choice.text == "The quick brown"
        assert choice.logprobs.token_logprobs[0] is None
        assert choice.logprobs.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)
    pieces = [chunk.choices[0] for chunk in go_on(client, server, echo=True, logprobs=2, max_tokens=4, stream=True)]
    for name in ("tokens", "text_offset"):
        assert [each for piece in pieces for each in getattr(piece.logprobs, name)] == getattr(told, name)


def test_stop_words_end_a_text_and_are_cut(client, server):
    free = go_on(client, server).choices[0].text
    word = free[4:6]
    assert go_on(client, server, stop=word).choices[0].text == free[: free.index(word)]
    assert streamed(client, server, stop=word)[0] == free[: free.index(word)]


def test_usage_of_a_stream_comes_last(client, server):
    chunks = list(go_on(client, server, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 16


@pytest.mark.parametrize(
    "more",
    [
        {"prompt": ""}, {"prompt": [400_000]}, {"prompt": [[]]}, {"suffix": "x"},
        {"echo": True, "logprobs": 1, "extra_body": {"num_beams": 2}},
        {"max_tokens": 0}, {"best_of": 3}, {"prompt": "word " * 2500}, {"prompt": ["x", ""]}, {"logprobs": 21},
    ],
)  # fmt: skip
def test_what_cannot_be_continued_is_refused(client, server, more):
    with pytest.raises(openai.BadRequestError) as caught:
        go_on(client, server, **more)
    assert caught.value.response.json()["error"]["message"]


@pytest.mark.parameter("max_new_tokens", "temperature", "top_k", "stop_words", "logprobs", "top_logprobs", "stream")
def test_what_a_request_leaves_unsaid_is_as_the_server_was_told(server, tmp_path):
    words = ("--model", str(server.opened.info.path), "--max_new_tokens", "5", "--temperature", "0", "--stop_words",
             "never", "--logprobs", "true", "--top_logprobs", "2", "--stream", "true")  # fmt: skip
    with serving.running(*words) as told, told.client() as client:
        body = {"model": told.name, "messages": [{"role": "user", "content": "x"}]}
        chunks = list(client.chat.completions.create(**body, stream_options={"include_usage": True}, stream=True))
        assert chunks[-1].usage.completion_tokens == 5
        top = [each for chunk in chunks for c in chunk.choices if c.logprobs for each in c.logprobs.content]
        assert [len(each.top_logprobs) for each in top] == [2] * 5
        raw = client.chat.completions.with_raw_response.create(**body)
        assert raw.headers["content-type"].startswith("text/event-stream")
        whole = [client.chat.completions.create(**body, stream=False, logprobs=False) for _ in range(2)]
        assert whole[0].choices[0].message.content == whole[1].choices[0].message.content
        assert whole[0].choices[0].logprobs is None
        assert client.chat.completions.create(**body, stream=False, max_tokens=3).usage.completion_tokens == 3
