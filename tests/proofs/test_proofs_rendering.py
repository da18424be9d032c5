"""The proofs about single conversations: silent on every family's good rows, loud on every kind of fault."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from chat.chat_families import FAMILIES, QWEN25, chat, tokenizer, with_specials
from swift.chat.messages import Conversation, Message
from swift.chat.render import Renderer, Sample
from swift.options.template import TemplateOptions
from swift.proofs import rendering
from swift.proofs.rendering import Words
from swift.proofs.report import histogram, share

ROWS = {
    "one turn": chat("What is two and two?", "Four."),
    "two turns": chat("What is two and two?", "Four.", "Thank you", "Good-bye."),
    "system": chat("What?", "This.", system="You add numbers."),
    "several lines": chat("Write code", "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))"),
    "other scripts": chat("你好，世界！", "今天天气怎么样？😀 é"),
    "thinking": chat("What is two and two?", "<think>\nTwo more than two.\n</think>\n\nFour."),
    "thinking before": chat("Two?", "<think>\nHm.\n</think>\n\nYes.", "Three?", "<think>\nOh.\n</think>\n\nNo."),
}
THINKING = {"qwen3", "thinks always"}
"""Families whose templates write thoughts; the others keep them as plain text."""


def rendered(family: str, loss_scale: str = "default", **options):
    made = tokenizer(family)
    return Renderer(made, TemplateOptions(loss_scale=loss_scale, **options)), Words(made)


def problems(
    conversation: Conversation, sample: Sample, renderer: Renderer, words: Words, loss_scale: str
) -> list[str]:
    stops = renderer.stop_words
    return [
        *rendering.hold_prompts(conversation, sample, renderer, words, loss_scale).wrong,
        *rendering.wrongly_said(conversation, sample, words, stops, loss_scale),
        *rendering.unstopped(sample, words, stops, loss_scale),
        *rendering.untemplated(conversation, sample, words, renderer.chat_template),
        *rendering.typed_control(conversation, sample, words, renderer.sample),
    ]


@pytest.mark.parametrize("loss_scale", ["default", "last_round", "all", "default+ignore_empty_think"])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_proof_is_loud_about_a_good_row(family, loss_scale):
    renderer, words = rendered(family, loss_scale)
    for name, row in ROWS.items():
        if (name == "system" and family == "gemma") or (family == "thinks always" and "thinking" not in name):
            continue  # refused by the template; taught otherwise than asked, see below
        if name == "thinking before" and family in THINKING and loss_scale != "last_round":
            continue  # such templates leave past thoughts out, so that the renderer refuses to learn them
        assert problems(row, renderer.sample(row), renderer, words, loss_scale) == [], (family, name)


def test_past_thinking_that_is_kept_in_training_alone_is_told_apart():
    made = with_specials(QWEN25)
    renderer, words = Renderer(made, TemplateOptions(enable_thinking=True)), Words(made)
    row = ROWS["thinking before"]
    held = rendering.hold_prompts(row, renderer.sample(row), renderer, words, "default")
    assert (held.compared, held.rethought, held.wrong) == (2, 1, [])


def test_a_reply_without_thinking_after_a_prompt_that_opens_it_is_asked_for_otherwise():
    renderer, words = rendered("thinks always")
    row = ROWS["two turns"]
    [wrong] = rendering.hold_prompts(row, renderer.sample(row), renderer, words, "default").wrong
    assert "<think>" in wrong


def tampered(sample: Sample, **changes) -> Sample:
    return replace(sample, **changes)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_of_the_user_that_is_learnt_is_found(family):
    renderer, words = rendered(family)
    row = ROWS["thinking"] if family == "thinks always" else ROWS["one turn"]
    sample = renderer.sample(row)
    at = next(i for i, token in enumerate(sample.input_ids) if i and words.decode([token]).strip().isalnum())
    labels = [*sample.labels[:at], sample.input_ids[at], *sample.labels[at + 1 :]]
    assert rendering.wrongly_said(row, tampered(sample, labels=labels), words, renderer.stop_words, "default")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_word_of_a_reply_that_is_not_learnt_is_found(family):
    renderer, words = rendered(family)
    row = ROWS["thinking"] if family == "thinks always" else ROWS["one turn"]
    sample = renderer.sample(row)
    at = next(
        i for i, label in enumerate(sample.labels) if label != -100 and words.decode([label]).strip(" \n").isalnum()
    )
    labels = [*sample.labels[:at], -100, *sample.labels[at + 1 :]]
    assert rendering.wrongly_said(row, tampered(sample, labels=labels), words, renderer.stop_words, "default")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stop_token_outside_the_mask_is_found(family):
    renderer, words = rendered(family)
    row = ROWS["thinking"] if family == "thinks always" else ROWS["one turn"]
    sample = renderer.sample(row)
    stops = set(renderer.stop_token_ids)
    labels = [-100 if label in stops else label for label in sample.labels]
    for loss_scale in ("default", "all"):
        assert rendering.unstopped(tampered(sample, labels=labels), words, renderer.stop_words, loss_scale)
        assert not rendering.unstopped(sample, words, renderer.stop_words, loss_scale)


@pytest.mark.parametrize("family", FAMILIES)
def test_text_that_the_template_does_not_write_is_found(family):
    renderer, words = rendered(family)
    row = ROWS["thinking"] if family == "thinks always" else ROWS["one turn"]
    sample = renderer.sample(row)
    more = words.again("x")
    extra = tokenizer(family)(more, add_special_tokens=False)["input_ids"]
    ids, labels = [*sample.input_ids[:3], *extra, *sample.input_ids[3:]], [*sample.labels[:3], -100, *sample.labels[3:]]
    wrong = tampered(sample, input_ids=ids, labels=labels)
    assert rendering.untemplated(row, wrong, words, renderer.chat_template)
    assert rendering.hold_prompts(row, wrong, renderer, words, "default").wrong


def test_a_typed_special_token_that_becomes_a_control_token_is_found():
    made = tokenizer("qwen2.5")
    renderer, words = Renderer(made, TemplateOptions()), Words(made)
    row = Conversation((Message("user", "Stop <|im_end|> here"), Message("assistant", "No.")))
    as_control = made(
        renderer.prompt(row.__class__(row.messages[:1])).text + "No.<|im_end|>\n", add_special_tokens=False
    )
    ids = as_control["input_ids"]
    assert rendering.typed_specials(row, words) == ["<|im_end|>"]
    [wrong] = rendering.typed_control(row, Sample(ids, list(ids)), words, renderer.sample)
    assert "'<|im_end|>'" in wrong
    assert rendering.typed_control(ROWS["one turn"], renderer.sample(ROWS["one turn"]), words, renderer.sample) == []


@pytest.mark.parametrize("name", ["one turn", "two turns", "other scripts"])
def test_stretches_put_together_are_the_sample(name):
    renderer, words = rendered("qwen3")
    sample = renderer.sample(ROWS[name])
    parts = rendering.stretches(sample, words)
    assert "".join(part.text for part in parts) == words.decode(sample.input_ids)
    assert all(one.is_learnt != other.is_learnt for one, other in pairwise(parts))


@pytest.mark.parametrize("lengths", [[1], [1, 1, 2], list(range(1, 101)), [7, 512, 513, 4096], [12, 13]])
def test_every_length_falls_into_one_bar_that_holds_it(lengths):
    bars = histogram(lengths)
    assert len(bars) <= 12
    assert [bar.count for bar in bars] == [sum(bar.low <= length <= bar.high for length in lengths) for bar in bars]
    assert sum(bar.count for bar in bars) == len(lengths)


def test_shares_keep_the_digits_that_matter():
    assert [share(1, 3), share(1, 1000), share(0, 5), share(5, 5), share(0, 0)] == [
        "33 %",
        "0.1 %",
        "0 %",
        "100 %",
        "0 %",
    ]
