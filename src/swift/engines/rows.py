"""This file knows one completion that grows: its tokens, its text as far as anyone asks for it, and when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from swift.core.errors import EngineError
from swift.engines.base import Completion, FinishReason, TokenLogprob
from swift.engines.detokenizer import Detokenizer, text_of


@dataclass(frozen=True, slots=True)
class Choice:
    """How the next token of a row is chosen from its logits; everything that was left open is settled.

    samples: whether it is drawn; else it is the likeliest, and temperature and cuts do not matter.
    top_k: 0 looks at the whole vocabulary.
    top_logprobs: how many alternatives are told; None: no log-probabilities at all.
    """

    samples: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_logprobs: int | None = None

    @property
    def counts(self) -> bool:
        """Whether what was said before matters."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


@dataclass(slots=True, eq=False)
class PromptTold:
    """What is told of the tokens of a prompt, all but the first: their log-probabilities, with `top` alternatives."""

    top: int
    tokens: list[TokenLogprob] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Row:
    """One completion that grows.

    limit: how many tokens it may have.
    index: which completion of its request it is.
    stop: words that end it; with any, or when it is streamed, `text` follows the ids.
    generator: where its draws come from, on the CPU; None is torch's own.
    matcher: what allows only tokens that keep to a structure (llguidance).
    processors, criteria: what else the generation config asks for, as transformers makes it of this prompt.
    piece: the text that came with the last token.
    counts: [V] how often each token was said in the reply; made by who needs it.
    keys: of the blocks of its prompt; made by who needs them.
    age: that of what was remembered when its prompt began to be read.
    prompt_told: filled while the prompt is read, and shared by the rows of a request; None tells nothing of it.
    """

    prompt_ids: list[int]
    limit: int
    choice: Choice = field(default_factory=Choice)
    index: int = 0
    adapter: str | None = None
    stop: tuple[str, ...] = ()
    generator: torch.Generator | None = None
    text: Detokenizer | None = None
    matcher: Any = None
    processors: Any = None
    criteria: Any = None
    counts: torch.Tensor | None = None
    keys: list[bytes] | None = None
    age: int = 0
    prompt_told: PromptTold | None = None
    piece: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reason: FinishReason | None = None

    @property
    def prompt_logprobs(self) -> list[TokenLogprob] | None:
        """What is told of its prompt."""
        return None if self.prompt_told is None else self.prompt_told.tokens

    @property
    def said(self) -> list[int]:
        """All tokens so far, of prompt and reply."""
        return self.prompt_ids + self.token_ids

    def add(self, token_id: int, end_ids: frozenset[int]) -> None:
        """Take one more token, and note when it is the last."""
        self.piece = ""
        if token_id in end_ids:
            self.reason = "stop"
            return
        self.token_ids.append(token_id)
        if self.text is not None:
            self.piece = self.text.add(token_id)
            if self.piece and contains_stop(self.text.text, len(self.piece), self.stop):
                self.reason = "stop"
        if self.reason is None and len(self.token_ids) >= self.limit:
            self.reason = "length"

    def follow(self, token_id: int) -> None:
        """Keep to the structure, and to what the generation config wants stopped. Raises EngineError where it cannot."""
        if self.reason is None and self.matcher is not None:
            if not self.matcher.consume_token(token_id):
                raise EngineError(f"The reply cannot keep to its structure: {self.matcher.get_error()}")
            if self.matcher.is_stopped():  # nothing but an end may follow
                self.reason = "stop"
        if (
            self.reason is None
            and self.criteria is not None
            and bool(self.criteria(torch.tensor([self.said]), None).all())
        ):
            self.reason = "stop"

    def completion(self, tokenizer: PreTrainedTokenizerBase) -> Completion:
        """What has grown, once it has stopped; `piece` is the text that was held back until now."""
        assert self.reason is not None, "the row is still growing"
        if self.text is None:
            text = text_of(tokenizer, self.token_ids)
        else:
            self.piece = self.text.finish()
            text = self.text.text
        logprobs = None if self.choice.top_logprobs is None else self.logprobs
        return Completion(self.token_ids, text, self.reason, logprobs, self.prompt_logprobs)


def contains_stop(text: str, fresh: int, stop: Sequence[str]) -> bool:
    """Whether a stop word ends within the last `fresh` characters of a text."""
    return any(word in text[-(fresh + len(word) - 1) :] for word in stop)
