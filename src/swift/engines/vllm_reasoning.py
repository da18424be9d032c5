"""This file knows vLLM's parsers of thinking (`--vllm_reasoning_parser`): a reply is split into what is thought and said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from transformers import PreTrainedTokenizerBase

from swift.core.errors import UsageError
from swift.core.extras import need

WHY = "--vllm_reasoning_parser"


@dataclass(frozen=True)
class Parts:
    """What is thought and what is said in a reply, or in a piece of one; "" where there is nothing of it."""

    thought: str = ""
    said: str = ""


class ReasoningParser:
    """One of vLLM's parsers, by name.

    Raises MissingPackage without vLLM, UsageError for a name that the installed version does not have.
    """

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
        manager: Any = need("vllm.reasoning", WHY).ReasoningParserManager
        names = list(manager.list_registered())
        if name not in names:
            near = get_close_matches(name, names, 1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise UsageError(f"--vllm_reasoning_parser {name} is unknown. {hint}vLLM has: {', '.join(sorted(names))}.")
        self._kind: Any = manager.get_reasoning_parser(name)
        self._tokenizer = tokenizer
        self._request: Any = need("vllm.entrypoints.openai.chat_completion.protocol", WHY).ChatCompletionRequest

    def split(self, text: str) -> Parts:
        """The parts of a whole reply."""
        request = self._request(messages=[], model="")
        thought, said = self._kind(self._tokenizer).extract_reasoning(text, request)
        return Parts(thought or "", said or "")

    def stream(self) -> ReasoningStream:
        """What splits a reply while it grows."""
        return ReasoningStream(self._kind(self._tokenizer))


class ReasoningStream:
    """Splits one reply piece by piece."""

    def __init__(self, parser: Any) -> None:
        self._parser = parser
        self._text = ""
        self._token_ids: list[int] = []

    def add(self, text: str, token_ids: Sequence[int]) -> Parts:
        """The parts of the next piece."""
        before_text, before_ids = self._text, list(self._token_ids)
        self._text += text
        self._token_ids += token_ids
        found = self._parser.extract_reasoning_streaming(
            before_text, self._text, text, before_ids, list(self._token_ids), list(token_ids)
        )
        return Parts() if found is None else Parts(found.reasoning or "", found.content or "")
