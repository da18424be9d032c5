"""Compiled layouts against the text that their rows describe, put together without Jinja."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest
from chat_families import chat, with_specials

import tiny
from swift.catalog.layouts import LAYOUTS, Layout
from swift.chat.layouts import compile_layout, quote, with_default_system
from swift.chat.messages import Conversation
from swift.chat.template import with_tokens
from swift.core.errors import ModelError

MANY_ROUNDS = sorted(
    name for name in LAYOUTS if LAYOUTS[name].separator is not None and "DAY" not in LAYOUTS[name].prefix
)
EMPTY = "<think>\n\n</think>\n\n"


def rendered(template: str, conversation: Conversation, **given) -> str:
    messages = [message.as_dict() for message in conversation.messages]
    return tiny.tokenizer().apply_chat_template(messages, chat_template=template, tokenize=False, **given)


def compiled(layout: Layout, default_system: str = "", added: tuple[str, str] = ("", "")) -> str:
    return compile_layout(layout, default_system=default_system, bos="<s>", eos="</s>", added=added)


def described(layout: Layout, conversation: Conversation) -> str:
    """What the row says stands around what was said."""
    system = conversation.system if layout.takes_system else None
    turns = [m.content for m in conversation.messages if m.role != "system"]
    in_front = system and layout.system_prefix is not None
    texts = [layout.system_prefix.replace("{{SYSTEM}}", system) if in_front else layout.prefix]
    carrier = {"first": 0, "last": (len(turns) - 1) // 2 * 2}[layout.system_at]
    for i in range(0, len(turns), 2):
        user = layout.user
        if system and layout.system_user is not None and i == carrier:
            user = layout.system_user.replace("{{SYSTEM}}", system)
        user = user.replace("{{ROUND0}}", str(i // 2)).replace("{{ROUND1}}", str(i // 2 + 1))
        texts.append(user.replace("{{QUERY}}", turns[i]))
        if i + 1 < len(turns):
            past = layout.is_thinking and i + 2 < len(turns)
            reply = (layout.history_thinking_prefix if past else "") + turns[i + 1]
            if layout.frame:
                reply = reply.join(layout.frame)
            if layout.opening:
                reply = layout.opening[1] + reply
            ending = layout.suffix if i + 2 >= len(turns) else layout.separator
            texts += [layout.assistant, layout.lead, reply, ending]
    return "".join(texts).replace("{{BOS}}", "<s>").replace("{{EOS}}", "</s>")


@pytest.mark.parameter("template")
@pytest.mark.parametrize("name", MANY_ROUNDS)
def test_a_compiled_layout_renders_what_its_row_describes(name) -> None:
    layout = LAYOUTS[name]
    template = compiled(layout)
    for system in (None, "", "Be 'good'.\n"):
        if system and not layout.takes_system:
            continue
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


# --------------------------------------------------------------------------------- what single rows say beyond the rest


def test_the_system_may_stand_in_the_first_or_in_the_last_turn_of_the_user() -> None:
    talk = chat("Q", "A", "R", system="S")
    assert rendered(compiled(LAYOUTS["mistral_nemo"]), talk) == "<s>[INST] Q[/INST]A</s>[INST] S\n\nR[/INST]"
    assert rendered(compiled(LAYOUTS["gemma3_text"]), talk) == (
        "<bos><start_of_turn>user\nS\n\nQ<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n"
        "<start_of_turn>user\nR<end_of_turn>\n"
    )
    assert rendered(compiled(LAYOUTS["qwen3_emb"]), chat("Q", "", system="S")) == "S Q<|endoftext|>"


def test_newlines_around_replies_are_taken_off_where_the_row_says_so() -> None:
    assert "model\nA b<end_of_turn>" in rendered(compiled(LAYOUTS["gemma3_text"]), chat("Q", "\nA b\n\n"))


def test_a_reply_without_a_channel_is_on_the_final_one_and_dates_are_those_of_rendering() -> None:
    template = compiled(LAYOUTS["gpt_oss"])
    text = rendered(template, chat("Q", "A", "Q", "<|channel|>analysis<|message|>hm", system="S"))
    assert "<|start|>developer<|message|># Instructions\n\nS<|end|><|start|>user<|message|>Q<|end|>" in text
    assert "<|start|>assistant<|channel|>final<|message|>A<|end|>" in text
    assert text.endswith("<|start|>assistant<|channel|>analysis<|message|>hm<|return|>")
    assert f"\nCurrent date: {date.today():%Y-%m-%d}\n" in text
    for name in ("llama3_2", "skywork_o1"):
        assert f"\nToday Date: {date.today():%d %b %Y}\n\n" in rendered(compiled(LAYOUTS[name]), chat("Q"))


def test_an_answer_is_framed_once_and_after_its_thinking() -> None:
    template = compiled(LAYOUTS["ernie_thinking"])
    for said in ("A", "<response>\nA\n</response>"):
        assert rendered(template, chat("Q", said)).endswith("assistant\n<response>\nA\n</response><|im_end|>")
    thinking = "<think>\nhm\n</think>\n\n"
    assert rendered(template, chat("Q", thinking + "A")).endswith(thinking + "<response>\nA\n</response><|im_end|>")


def test_words_are_written_as_the_family_writes_them() -> None:
    text = rendered(compiled(LAYOUTS["seed_oss"]), chat("Q", "<think>hm</think>A"))
    assert text.endswith("<seed:bos>assistant\n<seed:think>hm</seed:think>A<seed:eos>")


def test_of_past_replies_in_tags_the_answer_is_kept() -> None:
    reply = "<think>\nhm\n</think>\n<answer>\nA\n</answer>"
    text = rendered(compiled(LAYOUTS["hunyuan"]), chat("Q", reply, "Q", reply))
    assert text.count("hm") == text.count("<answer>") == 1
    assert "<｜hy_Assistant｜>A<｜hy_place▁holder▁no▁2｜>" in text


def test_a_reranker_reads_the_document_where_a_reply_would_stand() -> None:
    template = compiled(LAYOUTS["qwen3_reranker"])
    plain, instructed = (rendered(template, chat("Q", "D", system=system)) for system in (None, "I"))
    assert plain.endswith(
        "<Query>: Q\n<Document>: D<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )  # fmt: skip
    assert "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n" in plain
    assert instructed == plain.replace(
        "Given a web search query, retrieve relevant passages that answer the query", "I"
    )


def test_tokens_that_a_row_names_by_id_are_looked_up_and_must_be_readable() -> None:
    bare = with_specials(None)
    with pytest.raises(ModelError, match="needs the token 195"):
        with_tokens(LAYOUTS["baichuan"], bare)
    given = replace(LAYOUTS["baichuan"], user="{{ID:1}}{{QUERY}}")
    assert with_tokens(replace(given, assistant="{{ID:2}}"), bare).user == "<|im_start|>{{QUERY}}"


@pytest.mark.parametrize("name", sorted(name for name in LAYOUTS if LAYOUTS[name].default_system))
def test_a_default_system_is_a_whole_text(name) -> None:
    text = LAYOUTS[name].default_system
    assert "…" not in text
    assert "{{" not in text
    assert text in rendered(compiled(LAYOUTS[name], text), chat("Q"))
