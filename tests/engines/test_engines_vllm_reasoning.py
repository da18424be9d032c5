"""Thinking is split from what is said by vLLM's own parsers while replies grow, whoever holds text back."""

from __future__ import annotations

import pytest

import tiny
from swift.core.errors import UsageError

pytestmark = [pytest.mark.vllm, pytest.mark.parameter("vllm_reasoning_parser")]
THOUGHT, SAID = "It is two and two.", "Four. Thank you"
SHUT = "<think>\n\n</think>\n\n"


def split(parser, text, size=1, begun="", **switches):
    """What is thought and said when the reply comes so many tokens at a time."""
    from swift.engines.detokenizer import Detokenizer

    stream, growing = parser.stream(begun, switches), Detokenizer(tiny.tokenizer())
    ids = tiny.tokenizer().encode(text)
    parts = []
    for start in range(0, len(ids), size):
        some = ids[start : start + size]
        parts.append(stream.feed("".join(growing.add(each) for each in some), some))
    parts.append(stream.feed(growing.finish(), [], is_last=True))
    return "".join(part.thought for part in parts), "".join(part.said for part in parts)


@pytest.mark.parametrize("name", ["deepseek_r1", "qwen3", "glm45", "kimi_k2"])
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_a_reply_is_split_however_many_tokens_come_at_a_time(name, size):
    from swift.engines.vllm_reasoning import ReasoningParser

    parser = ReasoningParser(name, tiny.tokenizer())
    assert parser.tags == ("<think>", "</think>")
    assert split(parser, f"<think>{THOUGHT}</think>{SAID}", size) == (THOUGHT, SAID)
    assert split(parser, f"{THOUGHT}</think>{SAID}", size, begun="<think>\n") == (THOUGHT, SAID)
    assert split(parser, SAID, size, begun=SHUT, enable_thinking=False) == ("", SAID)


def test_a_parser_that_asks_the_template_is_told_whether_the_model_thinks():
    from swift.engines.vllm_reasoning import ReasoningParser

    parser = ReasoningParser("deepseek_v3", tiny.tokenizer())
    text = f"<think>{THOUGHT}</think>{SAID}"
    assert split(parser, text, enable_thinking=True) == (THOUGHT, SAID)
    assert split(parser, text, enable_thinking=False) == ("", text)


def test_half_a_character_in_front_of_a_tag_is_not_lost():
    from swift.engines.vllm_reasoning import ReasoningParser

    tokenizer = tiny.tokenizer()
    broken = tokenizer.encode("é")[:1]
    [closing] = tokenizer.encode("</think>")
    stream = ReasoningParser("deepseek_r1", tokenizer).stream()
    held = tokenizer.decode([*broken, closing])
    parts = [
        stream.feed("", broken),
        stream.feed(held, [closing]),
        stream.feed("A", tokenizer.encode("A"), is_last=True),
    ]
    assert "".join(part.thought for part in parts) == held.removesuffix("</think>") != ""
    assert "".join(part.said for part in parts) == "A"


def test_an_unknown_parser_is_named_with_those_there_are():
    from swift.engines.vllm_reasoning import ReasoningParser

    with pytest.raises(UsageError, match=r"qwen33 is unknown. Did you mean qwen3\? vLLM has: .*deepseek_r1"):
        ReasoningParser("qwen33", tiny.tokenizer())
    with pytest.raises(UsageError, match="mistral does not fit this model"):
        ReasoningParser("mistral", tiny.tokenizer())
