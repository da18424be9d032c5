"""This file knows vLLM's parsers of thinking (`--vllm_reasoning_parser`): a reply is split into what is thought and said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from swift.core.errors import UsageError
from swift.core.extras import need
from swift.core.logs import get_logger
from swift.core.registry import did_you_mean

WHY = "--vllm_reasoning_parser"
TAGS = ("<think>", "</think>")
"""What opens and closes thinking where a parser does not say it."""
FAULTS = (ValueError, LookupError, TypeError, RuntimeError, AttributeError, NotImplementedError)
"""What a parser raises when it does not understand a reply."""


@dataclass(frozen=True)
class Parts:
    """What is thought and what is said in a piece of a reply; "" where there is nothing of it."""

    thought: str = ""
    said: str = ""


class ReasoningParser:
    """One of vLLM's parsers, by name, for the replies of one model.

    Raises MissingPackage without vLLM, UsageError for a name that the installed version does not have, or a parser that
    looks for tokens which the tokenizer does not have.
    """

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
        names = list(need("vllm.reasoning", WHY).ReasoningParserManager.list_registered())
        if name not in names:
            guess = did_you_mean(name, names)
            raise UsageError(f"--vllm_reasoning_parser {name} is unknown.{guess} vLLM has: {', '.join(sorted(names))}.")
        manager: Any = need("vllm.parser.parser_manager", WHY).ParserManager
        try:
            self._kind: Any = manager.get_parser(reasoning_parser_name=name, tokenizer=tokenizer)
        except FAULTS as error:
            raise UsageError(
                f"--vllm_reasoning_parser {name} does not fit this model: {' '.join(str(error.__cause__ or error).split())}"
            ) from error
        self.name = name
        self._tokenizer = tokenizer
        self._request: Any = need("vllm.entrypoints.openai.chat_completion.protocol", WHY).ChatCompletionRequest
        inner = self._kind(tokenizer).reasoning_parser
        self.tags: tuple[str, str] = (inner.reasoning_start_str or TAGS[0], inner.reasoning_end_str or TAGS[1])
        added = tokenizer.added_tokens_decoder
        self._special = {number: str(token.content) for number, token in added.items()}

    def stream(self, begun: str = "", switches: Mapping[str, Any] | None = None) -> ReasoningStream:
        """What splits one reply while it grows.

        begun: what the prompt holds of the reply already. switches: the variables of the chat template.
        """
        parser = self._kind(self._tokenizer, chat_template_kwargs=dict(switches or {}))
        ids = self._tokenizer(begun, add_special_tokens=False)["input_ids"]
        return ReasoningStream(self.name, parser, self._request(messages=[], model=""), list(ids), self._special)


class ReasoningStream:
    """Splits one reply piece by piece.

    prompt_ids: what of the reply the prompt holds. Not more of it: parsers would take the end of thinking in an earlier
    turn for that of this one.
    special: id -> text of the tokens that a parser may look for.
    """

    def __init__(
        self, name: str, parser: Any, request: Any, prompt_ids: Sequence[int], special: Mapping[int, str]
    ) -> None:
        self._name = name
        self._parser = parser
        self._request = request
        self._prompt_ids = list(prompt_ids)
        self._special = special
        self._is_lost = False

    def feed(self, text: str, token_ids: Sequence[int], *, is_last: bool = False) -> Parts:
        """The parts of the next piece, whose tokens are these; the last one brings what was held back.

        A parser that fails is left, with a warning: what follows is said, as it is.
        """
        if self._is_lost:
            return Parts(said=text)
        pieces = list(self._pieces(text, token_ids))
        thought = said = ""
        while pieces:
            piece, ids = pieces.pop(0)
            try:
                found = self._parser.parse_delta(
                    piece, ids, self._request, self._prompt_ids, finished=is_last and not pieces
                )
            except FAULTS as error:
                self._is_lost = True
                get_logger().warning("--vllm_reasoning_parser %s does not understand a reply: %s", self._name, error)
                return Parts(thought, said + piece + "".join(left for left, _ in pieces))
            if found is not None:
                thought, said = thought + (found.reasoning or ""), said + (found.content or "")
        return Parts(thought, said)

    def _pieces(self, text: str, token_ids: Sequence[int]) -> Iterator[tuple[str, list[int]]]:
        """The piece with its special tokens set apart: some parsers only know one that comes alone, and then take it for
        the whole text, of which other tokens may have been held back."""
        ids: list[int] = []
        for token_id in token_ids:
            word = self._special.get(token_id, "")
            place = text.find(word) if word else -1
            if place < 0:
                ids.append(token_id)
                continue
            if place or ids:
                yield text[:place], ids
            yield word, [token_id]
            text, ids = text[place + len(word) :], []
        yield text, ids
