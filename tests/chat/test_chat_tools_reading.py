"""What holds for the calls of every agent template: what is written is read again, whole or piece by piece."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tool_cases import CALLS, TEXTS, tools_of

from swift.catalog.agents import AGENT_TEMPLATES
from swift.chat.calls import REACT, CallReader, Said, ToolCall, read_calls
from swift.chat.reply import Reply, ReplyReader, read_reply
from swift.chat.tool_turns import tool_format

FORMATS = sorted(AGENT_TEMPLATES)
UNTYPED = [name for name in FORMATS if tool_format(name).syntax.is_untyped]
ENDINGS = {
    "qwen3_coder": "</parameter>", "qwen3_5": "</parameter>", "seed_oss": "</parameter>", "minimax_m2": "</parameter>",
    "glm4_5": "</arg_value>", "glm4_7": "</arg_value>",
}  # fmt: skip
"""What ends an argument where nothing is escaped: no argument can hold it."""
OFTEN = settings(max_examples=120, deadline=None, database=None, suppress_health_check=list(HealthCheck))
every_format = pytest.mark.parametrize("name", FORMATS)


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({place % (len(text) + 1) for place in places} | {len(text)})
    return [text[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def streamed(text: str, places: list[int], syntax, tools=()) -> tuple[Said, list[Said]]:
    reader = CallReader(syntax, tools)
    said = [*(reader.feed(piece) for piece in cut(text, places)), reader.finish()]
    return sum(said[1:], said[0]), said


def assume_expressible(name: str, calls) -> None:
    """An argument between tags cannot hold the tag that ends it; one schema holds for all calls of a tool."""
    if name in UNTYPED:
        assume(all(ENDINGS[name] not in written(value) for made in calls for value in made.arguments.values()))
        assume(len({made.name for made in calls}) == len(calls))


def written(value) -> str:
    return value if isinstance(value, str) else str(value)


def said_by(name: str, words: str, calls) -> str:
    form = tool_format(name)
    return (words + form.glue if words else "") + form.write(calls)


@every_format
@pytest.mark.parameter("agent_template")
@OFTEN
@given(calls=CALLS, words=st.sampled_from(["", "Let me see.", "First: {x}, then <b>.\nNow"]))
def test_calls_that_are_written_are_read_again(name, calls, words) -> None:
    assume_expressible(name, calls)
    said = read_calls(said_by(name, words, calls), tool_format(name).syntax, tools_of(calls))
    assert list(said.calls) == calls
    assert said.content.removesuffix("Observation:").removesuffix("✿RESULT✿:").strip() == words
    assert said.unfinished == ""


@every_format
@OFTEN
@given(calls=CALLS, words=TEXTS, after=TEXTS, places=st.lists(st.integers(0, 400), max_size=12))
def test_a_reply_read_piece_by_piece_says_what_the_whole_says(name, calls, words, after, places) -> None:
    text = said_by(name, words, calls) + after
    syntax, tools = tool_format(name).syntax, tools_of(calls)
    assert streamed(text, places, syntax, tools)[0] == read_calls(text, syntax, tools)
    assert streamed(text, list(range(len(text))), syntax, tools)[0] == read_calls(text, syntax, tools)


@every_format
@OFTEN
@given(calls=CALLS, share=st.floats(0, 0.999))
def test_a_reply_that_ends_within_a_call_gives_nothing_of_it_as_content(name, calls, share) -> None:
    assume_expressible(name, calls)
    words, form = "Let me see.", tool_format(name)
    front = words + form.glue
    body = form.write(calls[:1])
    text = front + body[: int(len(body) * share)]
    said = read_calls(text, form.syntax, tools_of(calls))
    ended = said.calls == (calls[0],) or said.unfinished or len(said.content) <= len(words) + _undecided(name)
    assert said.content.startswith(words)
    assert ended, said


def _undecided(name: str) -> int:
    """How much of a call may be said before it is certain that it is one."""
    return {"glm4": 20, "chatglm4": 20}.get(name, 30)


@every_format
@OFTEN
@given(text=TEXTS, other=TEXTS)
def test_what_is_no_call_is_content_to_the_last_character(name, text, other) -> None:
    said = read_calls(text + other, tool_format(name).syntax)
    if not said.calls and not said.unfinished:
        assert said.content == text + other


def test_content_is_given_out_as_soon_as_it_can_be_no_call() -> None:
    reader = CallReader(tool_format("hermes").syntax)
    assert reader.feed("Hello <").content == "Hello"
    assert reader.feed("b> world ").content == " <b> world"
    assert reader.feed("<tool_").content == ""
    assert reader.feed('call>{"name": "f", "arguments": {"x": "</tool_call>"}}') == Said()
    assert reader.feed("</tool_call>") == Said("", (ToolCall("f", {"x": "</tool_call>"}),))
    assert reader.finish() == Said()


def test_react_is_understood_where_no_call_of_the_format_was_found() -> None:
    text = 'Thought: look\nAction: f\nAction Input: {"x": 1}\nObservation:'
    for name in FORMATS:
        if not name.startswith("qwen_"):
            said = read_calls(text, tool_format(name).syntax)
            assert said.calls == (ToolCall("f", {"x": 1}),)
            assert said.content == "Thought: look"
    plain = "An Action: is a word.\nAction: none"
    assert read_calls(plain, tool_format("hermes").syntax).content == plain


@pytest.mark.parametrize(
    ("name", "text", "calls"),
    [
        ("hermes", '<tool_call>{"name": "f", "parameters": {"a": 1}}</tool_call>', [ToolCall("f", {"a": 1})]),
        ("hermes", "<tool_call>\n{'name': 'f', 'arguments': {'a': True}}\n</tool_call>", [ToolCall("f", {"a": True})]),
        ("hunyuan_hermes", '<tool_calls><tool_call>f\n```json\n{"a": 1}\n```</tool_call></tool_calls>',
         [ToolCall("f", {"a": 1})]),
        ("llama3", '<|python_tag|>{"name": "f", "parameters": {"a": 1}}<|eom_id|>', [ToolCall("f", {"a": 1})]),
        ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]',
         [ToolCall("f", {}), ToolCall("g", {})]),
        ("mistral", '[TOOL_CALLS]f[ARGS]{"a": 1}', [ToolCall("f", {"a": 1})]),
        ("glm4", '\nf\n{"a": 1}', [ToolCall("f", {"a": 1})]),
        ("react_en", "Action: f\nAction Input: just words", [ToolCall("f", "just words")]),
        ("qwen3_coder", "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
         [ToolCall("f", {"a": 1})]),
    ],
)  # fmt: skip
def test_calls_are_read_in_the_ways_models_write_them(name, text, calls) -> None:
    said = read_calls(text, tool_format(name).syntax)
    assert list(said.calls) == calls
    assert said.content == ""


def test_an_argument_that_the_tool_calls_text_stays_text() -> None:
    text = "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>"
    schema = {"function": {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}}
    assert read_calls(text, tool_format("qwen3_coder").syntax, [schema]).calls == (ToolCall("f", {"a": "1"}),)


@pytest.mark.parametrize(
    "text", ["<tool_call>{broken}</tool_call> on", "<tool_call> is a tag", "<tool_call>[1]</tool_call>"]
)
def test_what_only_looks_like_a_call_is_content(text) -> None:
    assert read_calls(text, tool_format("hermes").syntax) == Said(text)


# --------------------------------------------------------------------------------------------------- whole replies


def test_a_reply_is_parted_into_thinking_words_and_calls() -> None:
    text = 'hm <tool_call>\n</think>\n\nWell.\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    expected = Reply("hm <tool_call>", "Well.", (ToolCall("f", {}),))
    assert read_reply("<think>\n" + text, tool_format("hermes")) == expected
    assert read_reply(text, tool_format("hermes"), is_thinking=True) == expected
    assert read_reply("A <think>b</think>") == Reply("", "A <think>b</think>")
    assert read_reply("<think>never ends") == Reply("never ends")


@OFTEN
@given(
    thought=TEXTS, words=TEXTS, calls=CALLS, is_open=st.booleans(), places=st.lists(st.integers(0, 300), max_size=10)
)
def test_a_reply_in_pieces_consists_of_what_the_whole_consists_of(thought, words, calls, is_open, places) -> None:
    text = ("" if is_open else "<think>\n") + thought + "\n</think>\n\n" + said_by("hermes", words, calls)
    form = tool_format("hermes")
    whole = read_reply(text, form, is_thinking=is_open)
    for pieces in (cut(text, places), list(text)):
        reader = ReplyReader(form, is_thinking=is_open)
        parts = [*(reader.feed(piece) for piece in pieces), reader.finish()]
        assert sum(parts[1:], parts[0]) == whole
    assert whole.reasoning == thought.partition("</think>")[0].strip()


def test_react_itself_needs_no_second_way() -> None:
    assert read_calls("Action: f\nAction Input: {}\n", REACT).calls == (ToolCall("f", {}),)
