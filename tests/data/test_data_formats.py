from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift.chat.messages import Conversation, Message
from swift.core.errors import DataError
from swift.data.columns import PARTS
from swift.data.files import read_file
from swift.data.formats import ConversationReader, as_row, write_rows
from swift.data.rows import Row, RowError
from swift.data.turns import ROLE_NAMES


def read(values: dict[str, Any], columns: dict[str, str] | None = None, keep_others: bool = False) -> Conversation:
    return ConversationReader(columns or {}, keep_others=keep_others).read(Row(values, "rows.jsonl", 7))


def said(values: dict[str, Any], **changes: Any) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in read(values, **changes).messages]


def fault(values: dict[str, Any]) -> RowError:
    with pytest.raises(RowError) as caught:
        read(values)
    return caught.value


U, A = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
BOTH = [("user", "u"), ("assistant", "a")]


# ----------------------------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize("column", ["messages", "conversation", "conversations", "Messages"])
def test_messages_are_read_under_each_of_their_names(column: str):
    assert said({column: [U, A]}) == BOTH


@pytest.mark.parametrize(("name", "role"), ROLE_NAMES.items())
def test_every_name_of_a_role_is_known_with_both_kinds_of_keys(name: str, role: str):
    assert said({"messages": [U, {"role": name, "content": "x"}]})[1] == (role, "x")
    assert said({"conversations": [{"from": "human", "value": "u"}, {"from": name, "value": "x"}]})[1] == (role, "x")
    assert said({"messages": [{"role": name.replace("_", "-"), "content": "x"}]}) == [(role, "x")]


@pytest.mark.parametrize("text", [json.dumps([U, A]), repr([U, A]), " " + repr([U, A])])
def test_messages_may_be_written_as_text_in_json_or_python(text: str):
    assert said({"messages": text}) == BOTH


def test_json_text_is_not_mistaken_for_python():
    assert read({"messages": json.dumps([{**U, "loss": None}, {**A, "loss": True}])}).messages[1].loss is True


def test_pairs_of_sharegpt_become_turns():
    pairs = [{"human": "1", "gpt": "2"}, {"user": "3", "assistant": "4"}]
    assert said({"conversation": pairs, "system": "s"}) == [
        ("system", "s"), ("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4"),
    ]  # fmt: skip
    assert fault({"conversation": [{"human": "1", "gpt": "2"}, {"human": "3"}]}).key_path == "conversation[1]"


def test_a_system_column_gives_way_to_a_system_message():
    assert said({"messages": [U], "system": "s"}) == [("system", "s"), ("user", "u")]
    assert said({"messages": [{"role": "system", "content": "own"}, U], "system_prompt": "s"})[0] == ("system", "own")
    assert said({"messages": [U], "system": None}) == [("user", "u")]
    assert said({"messages": [U], "system": ""}) == [("system", ""), ("user", "u")]


@pytest.mark.parametrize(
    ("messages", "key_path", "reason"),
    [
        ([], "messages", "is empty"),
        (None, "messages", "is null"),
        ("", "messages", "is neither JSON nor"),
        ("hello", "messages", "is neither JSON nor"),
        (3, "messages", "is no list of messages"),
        (["hello"], "messages[0]", "is no object"),
        ([U, {"role": "usr", "content": "x"}], "messages[1].role", "unknown role"),
        ([U, {"from": "User", "value": "x"}], "messages[1].from", "unknown role"),
        ([{"role": 3, "content": "x"}], "messages[0].role", "unknown role"),
        ([U, {"content": "x"}], "messages[1].role", "is missing"),
        ([U, A, {"role": "user", "content": None}], "messages[2].content", "is null"),
        ([{"from": "gpt", "value": None}], "messages[0].value", "is null"),
        ([U, {"role": "assistant"}], "messages[1].content", "is missing"),
        ([{"role": "user", "content": 5}], "messages[0].content", "is no text"),
        ([{"role": "user", "content": [{"type": "file"}]}], "messages[0].content[0]", "is no part of type"),
        ([{**A, "loss": "yes"}], "messages[0].loss", "is neither true nor false"),
        ([{**A, "loss": 0.5}], "messages[0].loss", "is neither true nor false"),
        ([{**U, "loss": True}], "messages[0].loss", "only the assistant's"),
        ([{**U, "tool_calls": [{"function": {"name": "f"}}]}], "messages[0].tool_calls", "belongs to an assistant"),
        ([{**A, "tool_calls": [{"function": {}}]}], "messages[0].tool_calls[0]", "is no call of a function"),
    ],
)
def test_a_fault_in_messages_is_named_with_its_place(messages: Any, key_path: str, reason: str):
    found = fault({"messages": messages})
    assert (found.key_path, reason in found.reason) == (key_path, True), str(found)


@pytest.mark.parametrize(
    ("loss", "kept"), [(True, True), (1, True), (1.0, True), (False, False), (0, False), (None, None)]
)
def test_the_row_says_which_replies_are_learnt(loss: Any, kept: bool | None):
    assert read({"messages": [U, {**A, "loss": loss}]}).messages[1].loss is kept


def test_objects_of_tools_are_written_as_json_and_kept_in_their_script():
    row = [
        U,
        {"role": "tool_call", "content": {"name": "f", "arguments": {"q": "你"}}},
        {"role": "tool", "content": [1]},
    ]
    assert said({"messages": row})[1:] == [
        ("tool_call", '{"name": "f", "arguments": {"q": "你"}}'), ("tool_response", "[1]"),
    ]  # fmt: skip


def test_calls_in_the_form_of_openai_become_messages_of_their_own():
    calls = [
        {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
        {"function": {"name": "g", "arguments": {}}},
    ]
    found = read(
        {"messages": [U, {"role": "assistant", "content": "wait", "tool_calls": calls, "loss": False}]}
    ).messages
    assert [(m.role, m.content, m.loss) for m in found[1:]] == [
        ("assistant", "wait", False),
        ("tool_call", '{"name": "f", "arguments": {"x": 1}}', False),
        ("tool_call", '{"name": "g", "arguments": {}}', False),
    ]
    assert len(read({"messages": [U, {"role": "assistant", "content": None, "tool_calls": calls}]}).messages) == 3


def test_keys_of_messages_that_are_not_read_are_said_once(logged: list[str]):
    reader = ConversationReader({}, keep_others=False)
    for _ in range(3):
        reader.read(Row({"messages": [{**U, "weight": 1, "name": None}]}, "f", 1))
    reader.finish()
    assert logged == ["these keys of messages mean nothing here and were not read: weight"]


def test_media_inside_messages_and_beside_them_are_references():
    parts = [
        {"type": "image", "image": "a.png"},
        {"type": "text", "text": "What?"},
        {"type": "image_url", "image_url": {"url": "http://b"}},
    ]
    found = read({"messages": [{"role": "user", "content": parts}, A]})
    assert found.messages[0].content == "<image>What?<image>"
    assert found.images == ("a.png", "http://b")
    assert fault({"messages": [{"role": "user", "content": parts}], "images": "c.png"}).key_path == "images"
    assert read({"query": "q", "image": "a.png", "videos": [["1.png", "2.png"]], "audio": None}).videos == (
        ["1.png", "2.png"],
    )


# ----------------------------------------------------------------------------------------- query, response and alpaca


@pytest.mark.parametrize("query", PARTS["query"]["query"])
@pytest.mark.parametrize("response", PARTS["query"]["response"])
def test_every_name_of_query_and_response_is_known(query: str, response: str):
    assert said({query: "u", response.upper(): "a"}) == BOTH


def test_the_exact_name_wins_over_similar_ones_and_solution_stays_a_column():
    row = {"query": "u", "prompt": "no", "response": "a", "answer": "no", "solution": "42"}
    assert said(row) == BOTH
    assert read(row, keep_others=True).extra == {"prompt": "no", "answer": "no", "solution": "42"}
    assert read({"query": "u", "solution": "42"}, keep_others=True).extra == {"solution": "42"}
    assert read(row).extra == {}
    assert said({"query": "u", "Query": "no", "Response": "a", "answer": "no"}) == BOTH


@pytest.mark.parametrize("values", [{"q": 1, "answer": "a", "output": "b"}, {"prompt": "u", "question": "v"}])
def test_columns_that_compete_are_an_error_that_says_how_to_choose(values: dict[str, Any]):
    first, second = list(values)[-2:]
    with pytest.raises(DataError, match=f"rows.jsonl:7: .*'{first}' and '{second}' compete.*--columns") as caught:
        read(values)
    assert not isinstance(caught.value, RowError)
    hints = [json.loads(text.split("'")[0]) for text in str(caught.value).split("--columns '")[1:]]
    assert len(hints) == 2
    for hint in hints:
        assert read(values, hint).messages


def test_history_comes_before_the_question_and_null_is_left_out():
    row = {"query": "3", "response": "4", "history": [["1", "2"], [None, "2b"]], "system": "s"}
    assert [content for _, content in said(row)] == ["s", "1", "2", "2b", "3", "4"]
    assert said({**row, "history": repr(row["history"])}) == said(row)
    assert said({**row, "history": json.dumps(row["history"])}) == said(row)
    assert said({**row, "history": None}) == said({**row, "history": ""}) == said({**row, "history": []})
    assert fault({**row, "history": [["1"]]}).key_path == "history[0]"
    assert fault({**row, "history": {"a": 1}}).key_path == "history"


def test_one_side_alone_is_a_conversation():
    assert said({"query": "u", "response": None}) == [("user", "u")]
    assert said({"text": "words"}) == [("assistant", "words")]
    assert said({"content": "words"}) == [("assistant", "words")]
    assert fault({"query": None, "response": None}).reason == "has no message, query or response"
    assert fault({"unknown": "x"}).detail == "columns: unknown"


def test_of_several_replies_the_first_is_taken_and_numbers_are_written_out():
    assert said({"question": "u", "answers": ["a", "b"]}) == BOTH
    assert said({"question": "u", "answer": 42}) == [("user", "u"), ("assistant", "42")]
    assert fault({"question": "u", "answers": []}).key_path == "answers"
    assert fault({"question": "u", "answer": {"text": "a"}}).key_path == "answer"
    assert fault({"question": True, "answer": "a"}).key_path == "question"


@pytest.mark.parametrize(
    ("instruction", "input_", "query"),
    [("i", "x", "i\nx"), ("i", "", "i"), ("i", None, "i"), ("", "x", "x"), ("", "", "")],
)
def test_alpaca_joins_instruction_and_input(instruction: str, input_: str | None, query: str):
    row = {"instruction": instruction, "input": input_, "output": "a", "text": "the whole prompt once more"}
    assert said(row) == [("user", query), ("assistant", "a")]


def test_alpaca_with_another_query_is_an_error():
    with pytest.raises(DataError, match="instruction and input make up the query"):
        read({"instruction": "i", "input": "x", "output": "a", "query": "q"})


# ------------------------------------------------------------------------------------------------------------ columns


@pytest.mark.parameter("columns")
def test_columns_renames_before_anything_is_looked_at_and_hides():
    row = {"text1": "u", "Text2": "a"}
    assert said(row, columns={"text1": "query", "text2": "response"}) == BOTH
    old_and_new = {"messages": [U], "new_messages": [U, A]}
    assert said(old_and_new, columns={"messages": "_", "new_messages": "messages"}) == BOTH
    assert said({"q": "x", "answer": "a", "output": "b", "query": "u"}, columns={"output": "_", "q": "_"}) == BOTH


@pytest.mark.parameter("columns")
def test_columns_that_meet_under_one_name_are_an_error():
    with pytest.raises(DataError, match="two columns under the name 'query': 'query' and 'text1'"):
        read({"query": "u", "text1": "v"}, columns={"text1": "query"})


@pytest.mark.parameter("columns")
def test_columns_that_no_row_has_are_an_error():
    reader = ConversationReader({"qestion": "query"}, keep_others=False)
    reader.read(Row({"question": "u"}, "f", 1))
    with pytest.raises(DataError, match=r"--columns names qestion, and no row has such a column. There are: question"):
        reader.finish()


@pytest.mark.parameter("remove_unused_columns")
def test_other_columns_travel_only_when_they_are_wanted():
    row = {"messages": [U, A], "level": 3, "channel": "maths", "margin": 0.5, "note": None}
    assert read(row).extra == {"channel": "maths", "margin": 0.5}
    assert read(row, keep_others=True).extra == {"level": 3, "channel": "maths", "margin": 0.5, "note": None}


# -------------------------------------------------------------------------------------------- tools, labels, rejected


def test_tools_are_schemas_however_they_are_written():
    bare = {"name": "f", "parameters": {}}
    whole = {"type": "function", "function": bare}
    for written in ([whole], [bare], json.dumps([whole]), [json.dumps(bare)], bare, json.dumps(whole)):
        assert read({"messages": [U], "tools": written}).tools == (whole,), written
    for nothing in (None, "", [], "[]"):
        assert read({"messages": [U], "tools": nothing}).tools == ()
    assert fault({"messages": [U], "tools": [3]}).key_path == "tools[0]"
    assert fault({"messages": [U], "tools": "{"}).key_path == "tools"


@pytest.mark.parametrize(
    ("written", "label"),
    [
        (True, True),
        (3, 3),
        (0.5, 0.5),
        ([1, 2], [1, 2]),
        ([], []),
        ("true", True),
        ("3", 3),
        ("[0.5, 1]", [0.5, 1]),
        (None, None),
    ],
)
def test_labels_are_numbers_truth_values_or_lists(written: Any, label: Any):
    assert read({"query": "q", "label": written}).label == label


@pytest.mark.parametrize("label", ["good", float("nan"), {"a": 1}, ["x"], "NaN"])
def test_other_labels_are_faults(label: Any):
    assert fault({"query": "q", "label": label}).key_path == "label"


def test_the_rejected_side_is_what_stands_after_the_last_question():
    chosen = [U, A, {"role": "user", "content": "u2"}, {"role": "assistant", "content": "good"}]
    bad = Message("assistant", "bad")
    whole = [*chosen[:3], {"role": "assistant", "content": "bad"}]
    assert read({"messages": chosen, "rejected_response": "bad"}).rejected == (bad,)
    assert read({"messages": chosen, "rejected_response": whole[3:]}).rejected == (bad,)
    assert read({"messages": chosen, "rejected_messages": whole}).rejected == (bad,)
    assert read({"query": "u", "response": "good", "rejected_response": "bad"}).rejected == (bad,)
    assert read({"messages": chosen}).rejected is None
    assert fault({"messages": chosen, "rejected_response": "good"}).reason == "equals the response"
    assert fault({"messages": chosen, "rejected_response": None}).reason == "is null"
    assert fault({"messages": chosen, "rejected_response": [U]}).key_path == "rejected_response"
    assert fault({"messages": chosen, "rejected_messages": whole[2:]}).key_path == "rejected_messages"


# ---------------------------------------------------------------------------------------------------------- and back


TEXTS = st.text(max_size=20)
MESSAGES = st.lists(
    st.one_of(
        st.builds(Message, st.sampled_from(["user", "system", "tool_response"]), TEXTS),
        st.builds(Message, st.sampled_from(["assistant", "tool_call"]), TEXTS, st.sampled_from([None, True, False])),
    ),
    min_size=1,
    max_size=5,
).map(tuple)


@given(
    st.builds(
        Conversation,
        messages=MESSAGES,
        tools=st.sampled_from([(), ({"type": "function", "function": {"name": "f"}},)]),
        images=st.lists(TEXTS.filter(bool), max_size=2).map(tuple),
        label=st.one_of(st.none(), st.booleans(), st.integers(-5, 5)),
        extra=st.dictionaries(st.sampled_from(["channel", "note"]), TEXTS),
    )
)
def test_a_conversation_survives_being_written_and_read(
    tmp_path_factory: pytest.TempPathFactory, conversation: Conversation
):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_rows(path, [as_row(conversation)])
    [row] = read_file(path)
    assert isinstance(row, Row)
    assert ConversationReader({}, keep_others=True).read(row) == conversation


def test_rejected_replies_survive_being_written_and_read():
    row = {"query": "u", "response": "good", "rejected_response": "bad"}
    assert read(as_row(read(row))) == read(row)


def test_what_json_cannot_say_is_written_as_text(tmp_path: Path):
    write_rows(tmp_path / "rows.jsonl", [{"image": b"\x00\xff", "path": Path("a")}])
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == {"image": "AP8=", "path": "a"}
