"""This file knows what is told of tokens, of a reply or of its prompt: their log-probabilities under the model itself.

Axes: A rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from swift.engines.base import TokenLogprob
from swift.engines.detokenizer import decode
from swift.engines.rows import Row


def token_logprobs(
    tokenizer: PreTrainedTokenizerBase, logits_AV: Tensor, chosen: Sequence[int], tops: Sequence[int]
) -> list[TokenLogprob]:
    """The log-softmax of raw logits at the chosen tokens, and at the likeliest: as many of them as `tops` says per row."""
    logps_AV = torch.log_softmax(logits_AV.float(), dim=-1)
    chosen_A1 = torch.tensor(chosen, device=logps_AV.device)[:, None]
    chosen_logps = logps_AV.gather(1, chosen_A1).squeeze(1).tolist()
    likeliest = logps_AV.topk(min(max(tops), logps_AV.shape[1]), dim=-1)
    told = []
    for token_id, logp, top, ids, values in zip(
        chosen, chosen_logps, tops, likeliest.indices.tolist(), likeliest.values.tolist(), strict=True
    ):
        others = [(each, decode(tokenizer, [each]), value) for each, value in zip(ids[:top], values[:top], strict=True)]
        told.append(TokenLogprob(token_id, decode(tokenizer, [token_id]), logp, tuple(others)))
    return told


def tell_prompt(tokenizer: PreTrainedTokenizerBase, row: Row, logits_TV: Tensor) -> None:
    """Add to what is told of a row's prompt: the next T logits, each at a token, say how likely the one after it was."""
    told = row.prompt_told
    assert told is not None, "it is asked for"
    begin = len(told.tokens) + 1
    following = row.prompt_ids[begin : begin + len(logits_TV)]
    if following:  # behind the last token of the prompt the reply begins
        tops = [told.top] * len(following)
        told.tokens += token_logprobs(tokenizer, logits_TV[: len(following)], following, tops)
