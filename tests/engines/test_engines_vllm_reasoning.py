"""Thinking is split from what is said by vLLM's own parsers, whole and while it grows."""

from __future__ import annotations

import pytest

import tiny
from swift.core.errors import UsageError

pytestmark = pytest.mark.vllm
TEXT = "<think>It is two and two.</think>Four. Thank you"


@pytest.mark.parameter("vllm_reasoning_parser")
@pytest.mark.parametrize("name", ["deepseek_r1", "qwen3"])
def test_a_reply_is_split_the_same_whole_and_in_pieces(name):
    from swift.engines.vllm_reasoning import ReasoningParser

    tokenizer = tiny.tokenizer()
    parser = ReasoningParser(name, tokenizer)
    whole = parser.split(TEXT)
    assert (whole.thought, whole.said) == ("It is two and two.", "Four. Thank you")
    stream, found = parser.stream(), []
    for token_id in tokenizer.encode(TEXT):
        found.append(stream.add(tokenizer.decode([token_id]), [token_id]))
    assert "".join(parts.thought for parts in found) == whole.thought
    assert "".join(parts.said for parts in found) == whole.said


def test_an_unknown_parser_is_named_with_those_there_are():
    from swift.engines.vllm_reasoning import ReasoningParser

    with pytest.raises(UsageError, match=r"qwen33 is unknown. Did you mean qwen3\? vLLM has: .*deepseek_r1"):
        ReasoningParser("qwen33", tiny.tokenizer())
