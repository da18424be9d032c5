from __future__ import annotations

from collections.abc import Sequence

import pytest
from chat_families import chat

from swift.chat.messages import Message
from swift.chat.spans import assistant_spans, pieces_of

TALK = chat("Hello", "Hi!", "Bye", "So long.").messages


def render_with(reply, *, opening: str = "<a>"):
    """A template that writes users in plain and replies as `reply(content, is_last)`."""

    def render(messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        texts = [
            opening + reply(m.content, i == len(messages) - 1) if m.role == "assistant" else f"<u>{m.content}"
            for i, m in enumerate(messages)
        ]
        return "".join(texts) + (opening if add_generation_prompt else "")

    return render


def flaws(render, messages=TALK) -> list[str | None]:
    return [span.flaw for span in assistant_spans(render, messages, ["</s>"])[1]]


def test_a_span_goes_from_where_sampling_begins_over_the_word_that_ends_it() -> None:
    text, spans = assistant_spans(render_with(lambda said, _: f" {said} \n</s>\n"), TALK, ["</s>"])
    assert [text[span.start : span.end] for span in spans] == [" Hi! \n</s>", " So long. \n</s>"]
    assert flaws(render_with(lambda said, _: said)) == [None, None]


def test_the_longest_of_several_words_that_end_a_reply_is_taken() -> None:
    text, spans = assistant_spans(render_with(lambda said, _: said + "</s></s>"), TALK, ["</s>", "</s></s>"])
    assert text[spans[0].start : spans[0].end] == "Hi!</s></s>"


def test_a_word_that_ends_generation_further_on_is_not_taken() -> None:
    text, spans = assistant_spans(render_with(lambda said, _: said + " # </s>"), TALK, ["</s>"])
    assert text[spans[0].start : spans[0].end] == "Hi!"


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (lambda said, _: said.upper(), "changes what it says"),
        (lambda said, _: said[:2], "changes what it says"),
        (lambda said, _: said + said, "writes it twice"),
        (lambda *_: "", "does not write it"),
        (lambda said, _: f"{len(said)}: {said}", "depends on what it says"),
    ],
)
def test_a_template_that_does_not_write_what_is_said_is_found_out(reply, words) -> None:
    assert all(flaw is not None and words in flaw for flaw in flaws(render_with(reply)))


def test_a_template_that_drops_past_thinking_flaws_the_turns_it_drops_it_from() -> None:
    def reply(said: str, is_last: bool) -> str:
        return said if is_last else said.rpartition("</think>")[2]

    thinking = chat("Q", "<think>why</think>A", "Q", "<think>well</think>A").messages
    first, last = flaws(render_with(reply), thinking)
    assert first is not None
    assert "leaves out what it thinks" in first
    assert last is None


def test_a_template_whose_prompt_is_not_how_the_turn_begins_is_found_out() -> None:
    def render(messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        return f"{len(messages)}: " + "".join(m.content for m in messages)

    assert all("is not the prompt" in str(flaw) for flaw in flaws(render))


def test_pieces_lie_side_by_side_and_hold_the_whole_text() -> None:
    thinking = chat("Q", "<think>\n\n</think>\n\nA", "Q", "B").messages
    text, spans = assistant_spans(render_with(lambda said, _: said + "</s>\n"), thinking, ["</s>"])
    pieces = pieces_of(text, spans)
    assert "".join(text[p.start : p.end] for p in pieces) == text
    assert [a.end for a in pieces[:-1]] == [b.start for b in pieces[1:]]
    assert [text[p.start : p.end] for p in pieces if p.is_empty_thinking] == ["<think>\n\n</think>\n\n"]
