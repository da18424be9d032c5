from __future__ import annotations

from typing import Any

import pytest

from swift.chat.messages import Conversation
from swift.data.formats import ConversationReader
from swift.data.rows import Row, RowError
from swift.data.tasks import TASKS, Part, Task, class_label, parts

U, A = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
S = {"role": "system", "content": "s"}
DOCUMENTS = {
    "positive_messages": [[{**A, "content": "yes"}]],
    "negative_messages": [[{**A, "content": "no 1"}], [{**A, "content": "no 2"}]],
    "negative_images": [None, ["n.png"]],
}


def read(values: dict[str, Any]) -> Conversation:
    return ConversationReader({}, keep_others=True).read(Row(values, "rows.jsonl", 1))


def made(values: dict[str, Any], task: Task) -> list[Part]:
    return parts(read(values), task)


def shape(found: list[Part]) -> list[tuple[str, list[str], Any, bool]]:
    return [(p.name, [m.content for m in p.conversation.messages], p.label, p.learns) for p in found]


def fault(values: dict[str, Any], task: Task) -> tuple[str, str]:
    with pytest.raises(RowError) as caught:
        made(values, task)
    return caught.value.key_path, caught.value.reason


def test_a_supervised_sample_is_the_conversation_that_ends_with_a_reply():
    row = {"messages": [U, A], "rejected_response": "b", "label": 1, **DOCUMENTS}
    assert shape(made(row, "supervised")) == [("sample", ["u", "a"], None, True)]
    assert fault({"messages": [U]}, "supervised") == ("messages", "ends without a reply")


@pytest.mark.parametrize("tail", [[], [A], [A, A], [A, {"role": "tool_call", "content": "{}"}]])
def test_a_prompt_is_what_was_asked_and_keeps_every_column_for_rewards(tail: list[dict]):
    [part] = made({"messages": [S, U, A, U, *tail], "solution": "4", "level": 2}, "prompt")
    assert shape([part]) == [("prompt", ["s", "u", "a", "u"], None, False)]
    assert part.conversation.extra == {"solution": "4", "level": 2}


def test_a_prompt_must_ask_something():
    assert fault({"text": "words"}, "prompt")[0] == "messages"
    assert fault({"messages": [S, A]}, "prompt")[0] == "messages"


def test_a_preference_is_the_chosen_side_and_the_rejected_one():
    row = {"messages": [U, A], "images": ["a.png"], "rejected_response": "b"}
    found = made(row, "preference")
    assert shape(found) == [("chosen", ["u", "a"], None, True), ("rejected", ["u", "b"], None, True)]
    assert [part.conversation.images for part in found] == [("a.png",), ("a.png",)]
    assert fault({"messages": [U, A]}, "preference") == ("rejected_response", "is missing")
    assert fault({"messages": [U, A], "rejected_messages": [U]}, "preference")[0] == "rejected_messages"
    assert fault({"messages": [U], "rejected_response": "b"}, "preference")[0] == "messages"


@pytest.mark.parametrize(("label", "wanted"), [(True, True), (0, False), ("true", True), (1.0, True)])
def test_kto_knows_whether_a_reply_is_wanted(label: Any, wanted: bool):
    [part] = made({"messages": [U, A], "label": label}, "kto")
    assert (part.name, part.learns) == ("sample", True)
    assert part.label is wanted


def test_kto_takes_truth_values_only():
    for label in (None, 2, 0.5, [True]):
        assert fault({"messages": [U, A], "label": label}, "kto")[0] == "label"
    assert fault({"messages": [U], "label": True}, "kto")[0] == "messages"


def test_classification_reads_any_conversation_and_needs_a_label():
    assert shape(made({"query": "u", "label": 2}, "seq_cls")) == [("sample", ["u"], 2, False)]
    assert shape(made({"query": "u", "response": "a", "label": []}, "seq_cls")) == [("sample", ["u", "a"], [], False)]
    assert fault({"query": "u"}, "seq_cls") == ("label", "is missing")


def test_labels_have_the_type_of_their_problem():
    assert class_label(2.0, "single_label_classification", 3) == 2
    assert class_label(True, "single_label_classification", 2) == 1
    assert class_label([0, 2], "multi_label_classification", 3) == [0, 2]
    assert class_label([], "multi_label_classification", 3) == []
    assert class_label(3, "regression", 1) == 3.0
    assert class_label([0.5], "regression", 1) == 0.5
    assert class_label([1, 0.5], "regression", 2) == [1.0, 0.5]


@pytest.mark.parametrize(
    ("label", "problem", "num_labels", "key_path"),
    [
        (None, "regression", 1, "label"),
        (3, "single_label_classification", 3, "label"),
        (-1, "single_label_classification", 3, "label"),
        (0.5, "single_label_classification", 3, "label"),
        ([1], "single_label_classification", 3, "label"),
        (1, "multi_label_classification", 3, "label"),
        ([0, 3], "multi_label_classification", 3, "label[1]"),
        ([0, 0], "multi_label_classification", 3, "label"),
        ([1.0, 2.0], "regression", 3, "label"),
        (1.0, "regression", 2, "label"),
    ],
)
def test_labels_that_do_not_fit_their_problem_are_faults(label: Any, problem: Any, num_labels: int, key_path: str):
    with pytest.raises(RowError) as caught:
        class_label(label, problem, num_labels)
    assert caught.value.key_path == key_path


def test_an_embedding_is_an_anchor_with_one_match_and_any_number_of_others():
    found = made({"messages": [U], **DOCUMENTS}, "embedding")
    assert shape(found) == [
        ("anchor", ["u"], None, False),
        ("positive", ["yes"], 1.0, False),
        ("negative", ["no 1"], 0.0, False),
        ("negative", ["no 2"], 0.0, False),
    ]
    assert found[3].conversation.images == ("n.png",)
    assert made({"messages": [U], "positive_messages": [[A]], "label": 0.25}, "embedding")[1].label == 0.25
    assert fault({"messages": [U]}, "embedding")[0] == "positive_messages"
    assert fault({"messages": [U], "positive_messages": [[A], [A]]}, "embedding")[0] == "positive_messages"
    assert fault({"messages": [U], "positive_messages": [[A]], "label": [1]}, "embedding")[0] == "label"


@pytest.mark.parametrize("task", ["reranker", "generative_reranker"])
def test_a_reranker_joins_the_query_with_every_document(task: Task):
    found = made({"messages": [S, U], "images": ["q.png"], **DOCUMENTS}, task)
    assert shape(found) == [
        ("positive", ["s", "u", "yes"], 1, False),
        ("negative", ["s", "u", "no 1"], 0, False),
        ("negative", ["s", "u", "no 2"], 0, False),
    ]
    assert found[2].conversation.images == ("q.png", "n.png")
    own = {"messages": [S, U], "positive_messages": [[{**S, "content": "of the document"}, A]]}
    assert shape(made(own, task))[0][1] == ["of the document", "u", "a"]
    assert fault({"messages": [U], "negative_messages": []}, task)[0] == "positive_messages"


@pytest.mark.parametrize("task", TASKS)
def test_no_part_has_sides_of_its_own(task: Task):
    row = {"messages": [U, A], "label": 1, "rejected_response": "b", **DOCUMENTS}
    for part in made(row, task):
        assert part.conversation.rejected is None
        assert part.conversation.positives == part.conversation.negatives == ()
