"""This file knows how log-probabilities of tokens are written: for chats, and for completions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from swift.engines.base import TokenLogprob
from swift.engines.detokenizer import REPLACEMENT
from swift.serve.answers import ChoiceLogprobs, CompletionLogprobs, TokenLogprobs, TopLogprob

LOWEST = -9999.0
"""What is written for the logarithm of 0, which JSON has no word for."""


def for_chat(tokens: Sequence[TokenLogprob]) -> ChoiceLogprobs:
    """Token by token, with the bytes of each; likely tokens that are impossible are left out."""
    return ChoiceLogprobs(
        content=[
            TokenLogprobs(
                token=each.token, logprob=max(each.logprob, LOWEST), bytes=_bytes(each.token),
                top_logprobs=[
                    TopLogprob(token=text, logprob=value, bytes=_bytes(text))
                    for _, text, value in each.top if value > -math.inf
                ],
            )
            for each in tokens
        ]
    )  # fmt: skip


def for_completion(tokens: Sequence[TokenLogprob], offset: int) -> CompletionLogprobs:
    """In lists side by side; offset: where the first token begins in the text."""
    words = [each.token for each in tokens]
    return CompletionLogprobs(
        tokens=words,
        token_logprobs=[max(each.logprob, LOWEST) for each in tokens],
        top_logprobs=[{text: value for _, text, value in each.top if value > -math.inf} for each in tokens],
        text_offset=[offset + place for place in accumulate(map(len, words[:-1]), initial=0)][: len(words)],
    )


def for_echo(first: str, prompt: Sequence[TokenLogprob], reply: CompletionLogprobs) -> CompletionLogprobs:
    """Those of a reply behind those of its prompt; first: the word of the token that nothing precedes."""
    told = for_completion(prompt, len(first))
    return CompletionLogprobs(
        tokens=[first, *told.tokens, *reply.tokens],
        token_logprobs=[None, *told.token_logprobs, *reply.token_logprobs],
        top_logprobs=[None, *told.top_logprobs, *reply.top_logprobs],
        text_offset=[0, *told.text_offset, *reply.text_offset],
    )


def _bytes(token: str) -> list[int] | None:
    """The bytes of a token in UTF-8; None for one that is a part of a character only."""
    return None if REPLACEMENT in token else list(token.encode())
