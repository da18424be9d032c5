"""Compiled layouts against the text that their rows describe, put together without Jinja."""

from __future__ import annotations

from dataclasses import replace

import pytest
from chat_families import chat

import tiny
from swift.catalog.layouts import LAYOUTS, Layout
from swift.chat.layouts import compile_layout, quote, with_default_system
from swift.chat.messages import Conversation

MANY_ROUNDS = sorted(
    name for name in LAYOUTS if LAYOUTS[name].separator is not None and "TODAY" not in LAYOUTS[name].prefix
)
EMPTY = "<think>\n\n</think>\n\n"


def rendered(template: str, conversation: Conversation, **given) -> str:
    messages = [message.as_dict() for message in conversation.messages]
    return tiny.tokenizer().apply_chat_template(messages, chat_template=template, tokenize=False, **given)


def compiled(layout: Layout, default_system: str = "", added: tuple[str, str] = ("", "")) -> str:
    return compile_layout(layout, default_system=default_system, bos="<s>", eos="</s>", added=added)


def described(layout: Layout, conversation: Conversation) -> str:
    """What the row says stands around what was said."""
    system = conversation.system
    turns = [m.content for m in conversation.messages if m.role != "system"]
    front = layout.system_prefix.replace("{{SYSTEM}}", system) if system and layout.system_prefix else layout.prefix
    texts = [front]
    for i in range(0, len(turns), 2):
        user = layout.user.replace("{{ROUND0}}", str(i // 2)).replace("{{ROUND1}}", str(i // 2 + 1))
        texts.append(user.replace("{{QUERY}}", turns[i]))
        if i + 1 < len(turns):
            past = layout.is_thinking and i + 2 < len(turns)
            reply = (layout.history_thinking_prefix if past else "") + turns[i + 1]
            ending = layout.suffix if i + 2 >= len(turns) else layout.separator
            texts += [layout.assistant, layout.lead, reply, ending]
    return "".join(texts).replace("{{BOS}}", "<s>").replace("{{EOS}}", "</s>")


@pytest.mark.parameter("template")
@pytest.mark.parametrize("name", MANY_ROUNDS)
def test_a_compiled_layout_renders_what_its_row_describes(name) -> None:
    layout = LAYOUTS[name]
    template = compiled(layout)
    for system in (None, "", "Be 'good'.\n"):
        for said in (("Q",), ("Q", "A"), ("Q1", "A1", "Q2"), ("Q1", "A1", "Q2", "A2", "Q3 {{ x }}", "A3 \\n")):
            conversation = chat(*said, system=system)
            assert rendered(template, conversation) == described(layout, conversation)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_the_generation_prompt_opens_a_reply_and_thinking_as_the_row_says(name) -> None:
    layout = LAYOUTS[name]
    template = compiled(layout)
    asked = rendered(template, chat("Q"))

    def opened(**given) -> str:
        return rendered(template, chat("Q"), add_generation_prompt=True, **given).removeprefix(asked)

    def expected(prefix: str) -> str:
        return layout.assistant + (layout.lead + prefix if prefix else "")

    on, off = expected(layout.thinking_prefix), expected(layout.non_thinking_prefix)
    assert opened() == (on if layout.is_thinking else off)
    assert opened(enable_thinking=True) == on
    assert opened(enable_thinking=False) == off


def test_the_rows_of_families_say_what_is_known_of_them() -> None:
    assert rendered(compiled(LAYOUTS["qwen3"]), chat("Q", "A", system="S")) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
    )
    assert rendered(compiled(LAYOUTS["llama3"]), chat("Q", "A")) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"
    )
    assert rendered(compiled(LAYOUTS["glm4"]), chat("Q", "A", "Q", "A")) == (
        "[gMASK]<sop><|user|>\nQ<|assistant|>\nA<|user|>\nQ<|assistant|>\nA<|user|>"
    )
    assert rendered(compiled(LAYOUTS["default"]), chat("Q", "A", "Q", "B", system="S")) == (
        "S\n\n### Human:\nQ\n\n### Assistant:\nA\n\n### Human:\nQ\n\n### Assistant:\nB</s>"
    )


def test_past_thinking_is_left_out_unless_it_shall_be_preserved() -> None:
    talk = chat("Q", "<think>\nhm\n</think>\n\nA", "Q", "<think>\nwell\n</think>\n\nB")
    for name, kept in (("qwen3", ""), ("glm4_5", "<think></think>\n"), ("deepseek_v3_1", "</think>")):
        template = compiled(LAYOUTS[name])
        text = rendered(template, talk)
        assert "hm" not in text
        assert "well" in text
        assert LAYOUTS[name].assistant + LAYOUTS[name].lead + kept + "A" in text
        assert "hm" in rendered(template, talk, preserve_thinking=True)
    assert "hm" in rendered(compiled(LAYOUTS["qwen3_nothinking"]), talk)


def test_what_the_tokenizer_adds_stands_around_layouts_that_want_it() -> None:
    added = ("[BOS]", "[END]")
    assert rendered(compiled(LAYOUTS["chatml"], added=added), chat("Q", "A")) == (
        "[BOS]<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA[END]"
    )
    assert "[BOS]" not in rendered(compiled(LAYOUTS["qwen"], added=added), chat("Q", "A"))
    twice = rendered(compiled(LAYOUTS["glm4"], added=("[gMASK]<sop>", "")), chat("Q", "A"))
    assert twice.count("[gMASK]") == 1


def test_any_text_can_be_a_default_system() -> None:
    for text in ("plain", "it's", 'a "b"', "back\\slash \\n", "two\nlines\r\n", "{{ x }} {% if %}", "你好 \U0001f600"):
        assert f"system\n{text}<|im_end|>" in rendered(compiled(LAYOUTS["qwen"], text), chat("Q"))
        wrapped = with_default_system(tiny.CHATML, text, drop_empty=True)
        assert f"system\n{text}<|im_end|>" in rendered(wrapped, chat("Q"))
        assert "\n" not in quote(text)


def test_a_layout_of_ones_own_needs_a_row_only() -> None:
    row = replace(LAYOUTS["qwen"], name="mine", assistant="<|im_start|>poet\n")
    assert "<|im_start|>poet\nA<|im_end|>" in rendered(compiled(row), chat("Q", "A"))
