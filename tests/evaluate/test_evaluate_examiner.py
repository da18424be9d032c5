"""What EvalScope asks arrives as a row of ours, what the model says arrives at EvalScope, and nothing is left out unsaid."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.extra, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def scope():
    from types import SimpleNamespace

    from evalscope.api import messages, model, tool

    return SimpleNamespace(**{**vars(messages), **vars(model), **vars(tool)})


def call(scope):
    return scope.ToolCall(id="1", function=scope.ToolFunction(name="add", arguments={"a": 1}))


def test_messages_keep_their_words_calls_and_results_and_lose_past_thinking(scope):
    from swift.evaluate.examiner import question

    thought = [scope.ContentReasoning(reasoning="One."), scope.ContentText(text="I add.")]
    said = [
        scope.ChatMessageSystem(content="Be brief."),
        scope.ChatMessageUser(content=[scope.ContentText(text="What is 1?")]),
        scope.ChatMessageAssistant(content=thought, tool_calls=[call(scope)]),
        scope.ChatMessageTool(content="1", tool_call_id="1"),
    ]
    tool = scope.ToolInfo(name="add", description="Adds.", parameters=scope.ToolParams())
    config = scope.GenerateConfig(max_tokens=7, temperature=0.5, stop_seqs=["\n"], retries=3, batch_size=9)
    asked = question(said, [tool], "auto", config)
    assert asked["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 1?"},
        {"role": "assistant", "content": "I add."},
        {"role": "tool_call", "content": '{"name": "add", "arguments": {"a": 1}}'},
        {"role": "tool_response", "content": "1"},
    ]
    assert asked["tools"][0]["function"]["name"] == "add"
    assert asked["sampling"] == {"max_tokens": 7, "temperature": 0.5, "stop_seqs": ["\n"]}


@pytest.mark.parametrize(
    ("content", "choice", "settings", "why"),
    [
        ("image", "auto", {}, "shows image"),
        ("text", "any", {}, "made to call a tool"),
        ("text", "auto", {"logit_bias": {1: 2.0}}, "asks for logit_bias"),
    ],
)
def test_what_cannot_be_passed_on_is_an_error_with_the_reason(scope, content, choice, settings, why):
    from swift.evaluate.examiner import question

    shown = [scope.ContentImage(image="a.png")] if content == "image" else "What?"
    with pytest.raises(ValueError, match=why):
        question([scope.ChatMessageUser(content=shown)], [], choice, scope.GenerateConfig(**settings))


def test_an_answer_arrives_with_its_thinking_apart_and_its_calls(scope):
    from swift.evaluate.examiner import output

    given = {"text": "It is 1.", "reasoning": "One.", "calls": [], "finish_reason": "length", "prompt_tokens": 4,
             "generated_tokens": 2}  # fmt: skip
    plain = output(given, "tiny")
    assert (plain.completion, plain.stop_reason, plain.usage.total_tokens) == ("It is 1.", "max_tokens", 6)
    assert plain.message.content[0].reasoning == "One."
    called = output({**given, "calls": [{"name": "add", "arguments": {"a": 1}}]}, "tiny")
    assert called.stop_reason == "tool_calls"
    assert called.message.tool_calls[0].function.arguments == {"a": 1}
