from __future__ import annotations

from chat_families import chat

from swift.chat.messages import Conversation, Message
from swift.chat.thinking import add_non_thinking_prefix, split_reply, split_thinking, strip_history, thoughts

PREFIX = "<think>\n\n</think>\n\n"


def said(conversation) -> list[str]:
    return [m.content for m in conversation.messages if m.role == "assistant"]


def test_the_prefix_goes_in_front_of_replies_that_neither_think_nor_have_it() -> None:
    talk = chat("Q", "A", "Q", "<think>\nhm\n</think>\n\nA", "Q", PREFIX + "A", "Q", "B")
    edited = add_non_thinking_prefix(talk, PREFIX, last_round=False)
    assert said(edited) == [PREFIX + "A", "<think>\nhm\n</think>\n\nA", PREFIX + "A", PREFIX + "B"]
    assert add_non_thinking_prefix(edited, PREFIX, last_round=False) == edited


def test_in_the_last_round_only_the_reply_after_the_last_user_gets_the_prefix() -> None:
    edited = add_non_thinking_prefix(chat("Q", "A", "Q", "B"), PREFIX, last_round=True)
    assert said(edited) == ["A", PREFIX + "B"]


def test_some_families_have_the_prefix_after_the_user_only_or_in_the_last_reply_only() -> None:
    turns = [Message("user", "Q"), Message("assistant", "A"), Message("tool_response", "R"), Message("assistant", "B")]
    talk = Conversation((*turns, *chat("Q", "C").messages))
    for prefixed, expected in (("all", "ABC"), ("after_user", "AC"), ("last", "C")):
        edited = add_non_thinking_prefix(talk, PREFIX, last_round=False, prefixed=prefixed)
        assert [m for m in said(edited) if m.startswith(PREFIX)] == [PREFIX + letter for letter in expected]


def test_of_past_replies_with_an_answer_in_tags_the_answer_is_kept() -> None:
    talk = chat("Q", "<think>hm</think>\n<answer>\nA\n</answer>", "Q", "B", "Q", "<answer>C</answer>")
    assert said(strip_history(talk, "", ("<answer>", "</answer>"))) == ["A", "B", "<answer>C</answer>"]


def test_a_reply_is_parted_around_its_answer_whatever_stands_around_it() -> None:
    for reply, parts in (
        ("A", ("", "A", "")),
        ("<think>hm</think>\n\nA", ("<think>hm</think>\n\n", "A", "")),
        ("<think>hm</think><response>\nA\n</response>", ("<think>hm</think><response>\n", "A", "\n</response>")),
        ("<|channel|>x<|message|>hm<|end|><|channel|>final<|message|>A",
         ("<|channel|>x<|message|>hm<|end|><|channel|>final<|message|>", "A", "")),
        ("<|channel|>A", ("", "<|channel|>A", "")),
    ):  # fmt: skip
        assert split_reply(reply) == parts
        assert "".join(parts) == reply


def test_past_thinking_goes_and_the_last_stays() -> None:
    thinking = "<think>\nhm\n</think>\n\n A "
    edited = strip_history(chat("Q", thinking, "Q", " B ", "Q", thinking), "")
    assert said(edited) == ["A", " B ", thinking]
    assert strip_history(edited, "") == edited


def test_the_history_prefix_stands_in_front_of_every_past_reply() -> None:
    edited = strip_history(chat("Q", "<think>hm</think>A", "Q", "B", "Q", "C"), "</think>")
    assert said(edited) == ["</think>A", "</think>B", "C"]


def test_a_conversation_to_continue_loses_all_its_thinking() -> None:
    assert said(strip_history(chat("Q", "<think>hm</think>A", "Q"), "")) == ["A"]


def test_a_reply_is_parted_into_thoughts_and_answer_without_loss() -> None:
    for reply in ("A", "<think>\nhm\n</think>\n\nA", "hm\n</think>\n\nA", "<think></think>", "<think>hm"):
        head, answer = split_thinking(reply)
        assert head + answer == reply
    assert split_thinking("<think>\nhm\n</think>\n\nA") == ("<think>\nhm\n</think>\n\n", "A")
    assert thoughts("<think>\n hm \n</think>\n\nA") == ["hm"]
    assert thoughts(PREFIX + "A") == []
