from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import tiny
from swift.chat.messages import Conversation, Message
from swift.chat.render import Renderer
from swift.core.errors import DataError
from swift.data.collate import Padded
from swift.data.columns import PARTS
from swift.data.encode import LoadedData, load_samples
from swift.data.files import read_file
from swift.data.formats import ConversationReader, as_row, write_rows
from swift.data.reading import PLAIN, RowReader
from swift.data.rows import Row, RowError
from swift.data.turns import ROLE_NAMES
from swift.options.data import DataOptions
from swift.options.template import TemplateOptions


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
        ([{"role": "user", "content": [{"type": "file"}]}], "messages[0].content[0]", "is no block of type"),
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


def test_blocks_in_the_form_of_anthropic_become_messages_of_their_own():
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    linked = {"type": "image", "source": {"type": "url", "url": "http://b"}}
    reply = [
        {"type": "text", "text": "Let me look."},
        {"type": "tool_use", "id": "1", "name": "f", "input": {"q": "你"}},
        {"type": "tool_use", "id": "2", "name": "g", "input": {}},
    ]
    results = [
        {"type": "tool_result", "tool_use_id": "1", "content": "sunny"},
        {"type": "tool_result", "tool_use_id": "2", "content": [{"type": "text", "text": "see "}, linked]},
        {"type": "text", "text": "And now?"},
    ]
    found = read(
        {
            "messages": [
                {"role": "user", "content": [image, {"type": "text", "text": "Weather?"}]},
                {"role": "assistant", "content": reply, "loss": True},
                {"role": "user", "content": results},
                A,
            ]
        }
    )
    assert [(m.role, m.content, m.loss) for m in found.messages] == [
        ("user", "<image>Weather?", None),
        ("assistant", "Let me look.", True),
        ("tool_call", '{"name": "f", "arguments": {"q": "你"}}', True),
        ("tool_call", '{"name": "g", "arguments": {}}', True),
        ("tool_response", "sunny", None),
        ("tool_response", "see <image>", None),
        ("user", "And now?", None),
        ("assistant", "a", None),
    ]
    assert found.images == ("data:image/png;base64,AAAA", "http://b")
    assert fault({"messages": [{"role": "user", "content": [image]}], "images": ["c.png"]}).key_path == "images"
    assert fault({"messages": [{"role": "user", "content": reply}]}).key_path == "messages[0].content[1]"
    assert fault({"messages": [{"role": "assistant", "content": results}]}).key_path == "messages[0].content[0]"
    assert fault({"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}]}).reason.endswith("a name")


def test_keys_of_messages_that_are_not_read_are_said_once(logged: list[str]):
    reader = RowReader(DataOptions())
    for _ in range(3):
        reader.read(Row({"messages": [{**U, "weight": 1, "name": None}]}, "f", 1), PLAIN)
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
    with pytest.raises(RowError, match=f"'{first}' and '{second}' compete.*--columns") as caught:
        read(values)
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
    reader = RowReader(DataOptions(columns={"qestion": "query"}))
    reader.read(Row({"question": "u"}, "f", 1), PLAIN)
    with pytest.raises(DataError, match=r"--columns names qestion, and no row has such a column. There are: question"):
        reader.finish()


@pytest.mark.parameter("remove_unused_columns")
def test_other_columns_travel_only_when_they_are_wanted():
    row = {"messages": [U, A], "level": 3, "channel": "maths", "margin": 0.5, "note": None}
    assert read(row).extra == {"channel": "maths", "margin": 0.5}
    assert read(row, keep_others=True).extra == {"level": 3, "channel": "maths", "margin": 0.5, "note": None}


@pytest.mark.parameter("remove_unused_columns")
def test_columns_that_are_wanted_reach_the_batch_and_the_rows_held_back(tmp_path: Path):
    rows = [{"query": "u", "response": "a", "level": i, "solution": {"x": i}} for i in range(4)]
    path = tiny.jsonl(tmp_path / "rows.jsonl", rows)
    renderer = Renderer(tiny.tokenizer(), TemplateOptions())

    def load(**options: Any) -> LoadedData:
        data = DataOptions(dataset=[str(path)], dataset_shuffle=False, split_dataset_ratio=0.25, **options)
        return load_samples(data, TemplateOptions(), renderer)

    kept = load(remove_unused_columns=False)
    batch = Padded(0, columns=("level", "solution"))([kept.train[0], kept.train[2]])
    assert (batch["level"], batch["solution"]) == ([0, 2], [{"x": 0}, {"x": 2}])
    assert [row["level"] for row in kept.val_rows] == [3]
    removed = load()
    assert [removed.train[i].extra for i in range(3)] == [{}, {}, {}]
    assert list(removed.val_rows[0]) == ["messages"]


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


def test_the_rejected_side_is_a_conversation_with_another_reply():
    chosen = [U, A, {"role": "user", "content": "u2"}, {"role": "assistant", "content": "good"}]
    bad = Message("assistant", "bad")
    whole = [*chosen[:3], {"role": "assistant", "content": "bad"}]
    for row in (
        {"messages": chosen, "rejected_response": "bad"},
        {"messages": chosen, "rejected_response": whole[3:]},
        {"messages": chosen, "rejected_messages": whole},
    ):
        found = read(row)
        assert found.rejected == Conversation((*found.messages[:3], bad))
    alone = read({"query": "u", "response": "good", "rejected_response": "bad"})
    assert alone.rejected == Conversation((Message("user", "u"), bad))
    assert read({"messages": chosen}).rejected is None
    assert fault({"messages": chosen, "rejected_response": "good"}).reason == "equals the response"
    assert fault({"messages": chosen, "rejected_messages": chosen}).reason == "equals the chosen side"
    assert fault({"messages": chosen, "rejected_response": None}).reason == "is null"
    assert fault({"messages": chosen, "rejected_response": [U]}).key_path == "rejected_response"
    assert fault({"messages": chosen, "rejected_response": "bad", "rejected_messages": whole}).key_path == (
        "rejected_response"
    )
    assert fault({"messages": chosen, "rejected_messages": [U, {"role": "x", "content": ""}]}).key_path == (
        "rejected_messages[1].role"
    )


def test_a_rejected_reply_takes_over_what_the_chosen_side_has_and_a_rejected_conversation_does_not():
    tool = {"type": "function", "function": {"name": "f"}}
    row = {"messages": [U, A], "system": "s", "images": ["a.png"], "tools": [tool], "channel": "c", "label": 1}
    short = read({**row, "rejected_response": "bad"})
    assert short.rejected == replace(short, messages=(*short.messages[:2], Message("assistant", "bad")), rejected=None)
    whole = [U, {"role": "assistant", "content": "bad"}]
    long = read({**row, "rejected_messages": whole, "rejected_images": "b.png", "rejected_tools": json.dumps([tool])})
    assert long.rejected == Conversation(
        (Message("system", "s"), Message("user", "u"), Message("assistant", "bad")), tools=(tool,), images=("b.png",)
    )
    bare = read({**row, "rejected_messages": whole}).rejected
    assert bare is not None
    assert (bare.tools, bare.images, bare.extra) == ((), (), {})


def test_sides_may_differ_in_their_pictures_alone():
    row = {"messages": [U, A], "images": ["a.png"], "rejected_images": ["b.png"]}
    found = read(row)
    assert found.rejected == replace(found, images=("b.png",), rejected=None)
    assert fault({**row, "rejected_images": ["a.png"]}).reason == "equals the chosen side"


def test_a_rejected_reply_follows_the_last_tool_response_unless_it_brings_its_own():
    call, response = {"role": "tool_call", "content": "{}"}, {"role": "tool_response", "content": "4"}
    chosen = [U, call, response, A]
    short = read({"messages": chosen, "rejected_response": "bad"}).rejected
    assert short is not None
    assert [m.role for m in short.messages] == ["user", "tool_call", "tool_response", "assistant"]
    other = [{**call, "content": "[]"}, {**response, "content": "5"}, {**A, "content": "bad"}]
    long = read({"messages": chosen, "rejected_response": other}).rejected
    assert long is not None
    assert [m.content for m in long.messages] == ["u", "[]", "5", "bad"]


def test_documents_are_conversations_with_media_of_their_own():
    row = {
        "messages": [U],
        "positive_messages": [[A]],
        "positive_images": [["p.png"]],
        "negative_messages": [[{**A, "content": "n1"}], [U, {**A, "content": "n2"}]],
        "negative_images": [None, ["n.png"]],
        "negative_videos": None,
    }
    found = read(row)
    assert found.positives == (Conversation((Message("assistant", "a"),), images=("p.png",)),)
    assert [(d.messages[-1].content, d.images) for d in found.negatives] == [("n1", ()), ("n2", ("n.png",))]
    assert read({"messages": [U]}).positives == ()
    assert fault({**row, "negative_images": [None]}).key_path == "negative_images"
    assert fault({**row, "positive_messages": [A]}).key_path == "positive_messages[0]"
    assert fault({**row, "positive_messages": [[{**A, "role": "x"}]]}).key_path == "positive_messages[0][0].role"
    assert fault({"messages": [U], "negative_images": [[]]}).reason.startswith("belongs to no document")


@pytest.mark.parametrize("name", ["label", "channel", "margin", "tools", "rejected_response", "positive_messages"])
def test_two_spellings_of_one_column_compete_unless_one_is_exact(name: str):
    spellings = {name.title(): None, name.upper(): None}
    with pytest.raises(DataError, match=f"'{name.title()}' and '{name.upper()}' compete for the part '{name}'"):
        read({"query": "q", **spellings})
    value = {"label": 1, "margin": 1.0, "channel": "c", "tools": [], "rejected_response": "r", "positive_messages": []}
    read({"query": "q", **spellings, name: value[name]})


def test_media_columns_compete_too():
    with pytest.raises(DataError, match="'image' and 'Image' compete for the part 'images'"):
        read({"query": "q", "image": "a.png", "Image": "b.png"})


def test_margins_are_numbers_and_channels_texts():
    assert read({"query": "q", "margin": "0.5", "channel": 3}).extra == {"margin": 0.5, "channel": "3"}
    assert fault({"query": "q", "margin": "much"}).key_path == "margin"
    assert fault({"query": "q", "margin": True}).key_path == "margin"
    assert fault({"query": "q", "channel": ["a"]}).key_path == "channel"


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


SIDES = st.builds(
    Conversation,
    messages=MESSAGES,
    tools=st.sampled_from([(), ({"type": "function", "function": {"name": "f"}},)]),
    images=st.lists(TEXTS.filter(bool), max_size=2).map(tuple),
)


@given(SIDES, SIDES, st.lists(SIDES, max_size=2), st.lists(SIDES, max_size=2))
def test_every_side_survives_being_written_and_read(
    chosen: Conversation, rejected: Conversation, positives: list[Conversation], negatives: list[Conversation]
):
    assume(chosen != rejected)
    whole = replace(chosen, rejected=rejected, positives=tuple(positives), negatives=tuple(negatives))
    assume([m.as_dict() for m in chosen.messages] != [m.as_dict() for m in rejected.messages])
    assert read(json.loads(json.dumps(as_row(whole)))) == whole


def test_what_json_cannot_say_is_written_as_text(tmp_path: Path):
    write_rows(tmp_path / "rows.jsonl", [{"image": b"\x00\xff", "path": Path("a")}])
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == {"image": "AP8=", "path": "a"}
