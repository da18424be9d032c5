"""This file knows how log-probabilities of tokens are written: for chats, and for completions."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
    offsets = []
    for each in tokens:
        offsets.append(offset)
        offset += len(each.token)
    return CompletionLogprobs(
        tokens=[each.token for each in tokens],
        token_logprobs=[max(each.logprob, LOWEST) for each in tokens],
        top_logprobs=[{text: value for _, text, value in each.top if value > -math.inf} for each in tokens],
        text_offset=offsets,
    )


def _bytes(token: str) -> list[int] | None:
    """The bytes of a token in UTF-8; None for one that is a part of a character only."""
    return None if REPLACEMENT in token else list(token.encode())
