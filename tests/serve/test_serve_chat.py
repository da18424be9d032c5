"""Chats by the official client, against a server on a real port: in one piece, in many, and in every mode."""

from __future__ import annotations

import json

import openai
import pytest

import serving

HELLO = [{"role": "user", "content": "What is two and two?"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    model = serving.checkpoint(tmp_path_factory.mktemp("model") / "tiny")
    with serving.running("--model", str(model), "--max_batch_size", "16", "--agent_template", "hermes") as made:
        yield made


@pytest.fixture(scope="module")
def client(server):
    with server.client() as made:
        yield made


def ask(client, server, **more):
    given = {"model": server.name, "messages": HELLO, "temperature": 0, "max_tokens": 12, **more}
    return client.chat.completions.create(**given)


def collected(stream) -> tuple[dict[int, str], dict[int, str], list]:
    """The contents and reasons of a stream by index, and its chunks."""
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    chunks = list(stream)
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    return texts, reasons, chunks


def test_a_reply_has_the_form_of_the_protocol(client, server):
    reply = ask(client, server)
    assert reply.object == "chat.completion"
    assert reply.id.startswith("chatcmpl-")
    assert len(reply.id) == len("chatcmpl-") + 32
    assert reply.model == server.name == "tiny"
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 12
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 12
    assert reply.choices[0].message.content


@pytest.mark.parameter("stream")
def test_a_stream_says_what_the_whole_reply_says(client, server):
    whole = ask(client, server)
    texts, reasons, chunks = collected(ask(client, server, stream=True))
    assert texts == {0: whole.choices[0].message.content}
    assert reasons == {0: "length"}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)
    _, _, chunks = collected(ask(client, server, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len(chunks) > 4


def test_choices_differ_and_a_seed_repeats_them(client, server):
    asked = {"n": 3, "temperature": 1.0, "seed": 7}
    first, again = ask(client, server, **asked), ask(client, server, **asked)
    said = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(said)) > 1
    assert said == [choice.message.content for choice in again.choices]
    texts, _, _ = collected(ask(client, server, stream=True, **asked))
    assert [texts[index] for index in range(3)] == said


@pytest.mark.parameter("logprobs", "top_logprobs", "max_logprobs")
def test_log_probabilities_are_told_token_by_token(client, server):
    reply = ask(client, server, logprobs=True, top_logprobs=3)
    told = reply.choices[0].logprobs.content
    assert len(told) == 12
    assert all(len(each.top_logprobs) == 3 for each in told)
    assert all(each.logprob == each.top_logprobs[0].logprob for each in told), "greedy takes the likeliest"
    assert "".join(each.token for each in told) == reply.choices[0].message.content
    streamed = [
        each
        for chunk in ask(client, server, logprobs=True, top_logprobs=3, stream=True)
        for choice in chunk.choices
        if choice.logprobs
        for each in choice.logprobs.content
    ]
    assert [each.token for each in streamed] == [each.token for each in told]
    assert ask(client, server).choices[0].logprobs is None
    with pytest.raises(openai.BadRequestError, match="max_logprobs"):
        ask(client, server, logprobs=True, top_logprobs=21)


def test_a_stop_word_ends_a_reply_and_is_cut_from_it(client, server):
    free = ask(client, server).choices[0].message.content
    word = free[3:5]
    for stop in (word, [word, "never said"]):
        reply = ask(client, server, stop=stop)
        assert reply.choices[0].finish_reason == "stop"
        assert reply.choices[0].message.content == free[: free.index(word)]
        texts, reasons, _ = collected(ask(client, server, stop=stop, stream=True))
        assert texts[0] == free[: free.index(word)]
        assert reasons == {0: "stop"}
    kept = ask(client, server, stop=word, extra_body={"include_stop_str_in_output": True})
    assert word in kept.choices[0].message.content


def test_penalties_and_cuts_reach_the_engine(client, server):
    plain = ask(client, server, max_tokens=40).choices[0].message.content
    for more in (
        {"frequency_penalty": 2.0}, {"presence_penalty": 2.0}, {"extra_body": {"repetition_penalty": 5.0}},
        {"temperature": 5.0, "seed": 1},
    ):  # fmt: skip
        assert ask(client, server, max_tokens=40, **more).choices[0].message.content != plain, more
    hot = {"temperature": 5.0, "seed": 1, "max_tokens": 40}
    for more in ({"extra_body": {"top_k": 1}}, {"top_p": 1e-6}, {"extra_body": {"min_p": 1.0}}):
        assert ask(client, server, **hot, **more).choices[0].message.content == plain, more


def test_max_completion_tokens_goes_before_max_tokens(client, server):
    assert ask(client, server, max_completion_tokens=3).usage.completion_tokens == 3
    assert ask(client, server, max_tokens=4).usage.completion_tokens == 4


def test_beams_are_answered_whole_and_not_streamed(client, server):
    reply = ask(client, server, extra_body={"num_beams": 3})
    assert reply.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="num_beams"):
        ask(client, server, stream=True, extra_body={"num_beams": 3})


def test_a_reply_can_be_made_to_match_a_schema_or_an_expression(client, server):
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    reply = ask(client, server, response_format=wanted, max_tokens=60)
    assert set(json.loads(reply.choices[0].message.content)) == {"a"}
    reply = ask(client, server, extra_body={"structured_outputs_regex": "(yes|no), sir"}, max_tokens=30)
    assert reply.choices[0].message.content in ("yes, sir", "no, sir")
    assert reply.choices[0].finish_reason == "stop"
    texts, _, _ = collected(
        ask(client, server, response_format=wanted, max_tokens=60, stream=True)
    )  # fmt: skip
    assert set(json.loads(texts[0])) == {"a"}
    reply = ask(client, server, response_format={"type": "json_object"}, max_tokens=5)
    assert reply.choices[0].message.content.lstrip().startswith("{")


def tools(*names: str) -> list[dict]:
    about = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"],
             "additionalProperties": False}  # fmt: skip
    return [{"type": "function", "function": {"name": name, "parameters": about}} for name in names]


@pytest.mark.parameter("agent_template")
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
@pytest.mark.parametrize("names", [("weather",), ("time", "weather")])
def test_a_forced_call_is_a_call_with_arguments_that_fit(client, server, choice, names):
    asked = {"tools": tools(*names), "tool_choice": choice, "max_tokens": 80}
    choice_made = ask(client, server, **asked).choices[0]
    (call,) = choice_made.message.tool_calls
    assert choice_made.finish_reason == "tool_calls"
    assert choice_made.message.content is None
    assert call.type == "function"
    assert call.function.name in (names if choice == "required" else ("weather",))
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")
    chunks = list(ask(client, server, stream=True, **asked))
    told = [each for chunk in chunks for c in chunk.choices for each in c.delta.tool_calls or ()]
    assert [(each.index, each.function.name, each.function.arguments) for each in told] == [
        (0, call.function.name, call.function.arguments)
    ]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_tools_are_told_only_where_they_may_be_called(client, server):
    none = ask(client, server).usage.prompt_tokens
    assert ask(client, server, tools=tools("weather")).usage.prompt_tokens > none
    assert ask(client, server, tools=tools("weather"), tool_choice="none").usage.prompt_tokens == none


def test_a_conversation_with_calls_and_results_is_read(client, server):
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    assert ask(client, server, messages=messages, tools=tools("weather")).choices[0].message is not None
    parts = [{"type": "text", "text": HELLO[0]["content"]}]
    same = ask(client, server, messages=[{"role": "user", "content": parts}])
    assert same.choices[0].message.content == ask(client, server).choices[0].message.content


def test_messages_of_the_user_that_follow_each_other_are_one(client, server):
    two = [{"role": "user", "content": "What is"}, {"role": "user", "content": "two?"}]
    one = [{"role": "user", "content": "What is\n\ntwo?"}]
    assert ask(client, server, messages=two).usage == ask(client, server, messages=one).usage


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://10.0.0.1/x"}}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "word " * 2500}]}, None),
        ({"n": 129}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"extra_body": {"temprature": 1}}, "temprature"),
        ({"extra_body": {"logit_bias": {"1": 1}}}, None),
        ({"max_tokens": 0}, None),
        ({"tool_choice": "required"}, None),
        ({"extra_body": {"max_tokens": "12"}}, "max_tokens"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"extra_body": {"structured_outputs_regex": "(((("}}, None),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_by_name(client, server, more, param):
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, server, **more)
    assert caught.value.status_code == 400
    body = caught.value.response.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    assert body["param"] == param
    assert body["message"]


def test_an_unknown_model_is_not_found(client, server):
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, server, model="other")
    assert caught.value.code == "model_not_found"
    assert "tiny" in str(caught.value)
