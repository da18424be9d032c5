"""Thinking and calls of tools are told apart in replies, whole and piece by piece: the model is made to write a text."""

from __future__ import annotations

import json
import re

import pytest

import serving
from swift.chat.tool_turns import tool_format
from swift.engines.base import Completion, Delta
from swift.serve.choices import ChoiceReader, Reading, joined
from swift.serve.cutting import StopCutter

HELLO = [{"role": "user", "content": "What is two and two?"}]
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("add", "sub")]
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2, "x"]}}\n</tool_call>'
SECOND = '<tool_call>\n{"name": "sub", "arguments": {}}\n</tool_call>'


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    model = serving.checkpoint(tmp_path_factory.mktemp("model") / "tiny")
    file = model / "tokenizer.json"  # without the tags among its added tokens, which an expression could not spell
    about = json.loads(file.read_text(encoding="utf-8"))
    about["added_tokens"] = [token for token in about["added_tokens"] if "think" not in token["content"]]
    file.write_text(json.dumps(about), encoding="utf-8")
    with serving.running("--model", str(model), "--agent_template", "hermes", "--template", "qwen3") as made:
        yield made


def write(server, text: str, *, stream: bool = False, **more):
    """What the client is told when the model writes this text."""
    extra = {"structured_outputs_regex": re.escape(text), **more.pop("extra_body", {})}
    with server.client() as client:
        reply = client.chat.completions.create(
            model=server.name, messages=HELLO, max_tokens=300, stream=stream, extra_body=extra, **more
        )
        if not stream:
            choice = reply.choices[0]
            return _told(choice.message.content, choice.message, choice.finish_reason)
        said = {"content": "", "reasoning_content": "", "calls": [], "reason": None}
        for chunk in reply:
            delta = chunk.choices[0].delta
            said["content"] += delta.content or ""
            said["reasoning_content"] += getattr(delta, "reasoning_content", None) or ""
            said["calls"] += [(each.index, each.function.name, json.loads(each.function.arguments))
                              for each in delta.tool_calls or ()]  # fmt: skip
            said["reason"] = chunk.choices[0].finish_reason or said["reason"]
        return said


def _told(content, message, reason):
    calls = [
        (index, each.function.name, json.loads(each.function.arguments))
        for index, each in enumerate(message.tool_calls or ())
    ]
    thought = getattr(message, "reasoning_content", None)
    return {"content": content or "", "reasoning_content": thought or "", "calls": calls, "reason": reason}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("<think>\nLet me see.\n</think>\n\nFour.", "Let me see.", "Four."),
        ("Four.", "", "Four."),
        ("<think>\n\n</think>\n\nFour.", "", "Four."),
        ("<thin ice>", "", "<thin ice>"),
    ],
)
def test_what_a_reply_thinks_is_told_apart(server, stream, text, reasoning, content):
    told = write(server, text, stream=stream)
    assert told == {"content": content, "reasoning_content": reasoning, "calls": [], "reason": "stop"}


@pytest.mark.parameter("enable_thinking")
def test_a_request_can_turn_thinking_off(server):
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    told = write(server, "Four.", extra_body=off)
    assert told["content"] == "Four."
    with server.client() as client:
        ask = {"model": server.name, "messages": HELLO, "max_tokens": 1}
        thinking = client.chat.completions.create(**ask).usage.prompt_tokens
        assert client.chat.completions.create(**ask, extra_body=off).usage.prompt_tokens > thinking


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parameter("agent_template")
def test_calls_are_read_from_what_a_model_says(server, stream):
    text = f"<think>\nAdd.\n</think>\n\nI will add.\n{CALL}\n{SECOND}"
    told = write(server, text, stream=stream, tools=TOOLS)
    assert told == {
        "content": "I will add.", "reasoning_content": "Add.", "reason": "tool_calls",
        "calls": [(0, "add", {"a": 1, "b": [2, "x"]}), (1, "sub", {})],
    }  # fmt: skip
    told = write(server, text, stream=stream, tools=TOOLS, parallel_tool_calls=False)
    assert told["calls"] == [(0, "add", {"a": 1, "b": [2, "x"]})]
    assert told["reason"] == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_without_tools_what_looks_like_a_call_is_text(server, stream):
    assert write(server, CALL, stream=stream) == {
        "content": CALL, "reasoning_content": "", "calls": [], "reason": "stop",
    }  # fmt: skip
    told = write(server, CALL, stream=stream, tools=TOOLS, tool_choice="none")
    assert told["content"] == CALL


def test_a_call_that_is_cut_off_is_told_as_text():
    reader = ChoiceReader(Reading(form=tool_format("hermes"), tools=TOOLS))
    pieces = [reader.feed(Delta("Sure.\n" + CALL[:30])), reader.feed(Delta("", Completion([], "", "length")))]
    whole = joined(pieces)
    assert whole.content == "Sure." + CALL[:30]
    assert whole.reason == "length"
    assert whole.calls == ()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_pieces_of_any_size_give_the_same_reply(size):
    text = f"I think.\n</think>\n\nSo: {CALL} STOP never told"
    reading = Reading(prefix="<think>\n", cut=("STOP",), form=tool_format("hermes"), tools=TOOLS)
    reader = ChoiceReader(reading)
    cut = [text[at : at + size] for at in range(0, len(text), size)]
    pieces = [reader.feed(Delta(each)) for each in cut]
    pieces.append(reader.feed(Delta("", Completion([1], text, "stop"))))
    whole = joined(pieces)
    assert (whole.reasoning, whole.content, len(whole.calls)) == ("I think.", "So:", 1)
    assert whole.reason == "tool_calls"


def test_what_may_begin_a_stop_word_is_held_back_and_given_at_the_end():
    cutter = StopCutter(["END", "EEK"])
    assert [cutter.feed(piece) for piece in ("a", "E", "b", "EN", "")] == ["a", "", "Eb", "", ""]
    assert cutter.finish() == "EN"
    cutter = StopCutter(["END"])
    assert [cutter.feed(piece) for piece in ("aE", "ND", "more")] == ["a", "", ""]
    assert cutter.finish() == ""


def test_thoughts_that_a_client_sends_back_are_put_where_the_template_looks_for_them(server):
    from swift.serve.conversations import Conversations

    messages = [*HELLO, {"role": "assistant", "content": "Four.", "reasoning_content": "Let me see."}]
    read = Conversations().read(messages)
    assert read.messages[1].content == "<think>\nLet me see.\n</think>\n\nFour."
