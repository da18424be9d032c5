"""This file knows beam search, which transformers does: whole replies, the likeliest of several that grow together.

Axes: B prompts, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from swift.engines.base import Sampling
from swift.engines.rows import Row
from swift.engines.settings import Settings
from swift.engines.telling import token_logprobs
from swift.engines.whole import padded_inputs


class Counted(LogitsProcessor):
    """Presence and frequency penalties for transformers' own loop: by how often a beam's reply holds each token."""

    def __init__(self, prompt_length: int, sampling: Sampling) -> None:
        self.prompt_length = prompt_length
        self.sampling = sampling

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores less the penalties."""
        said = input_ids[:, self.prompt_length :]
        counts = torch.zeros_like(scores).scatter_add_(1, said, torch.ones_like(said, dtype=scores.dtype))
        return scores - self.sampling.frequency_penalty * counts - self.sampling.presence_penalty * (counts > 0)


def search(
    model: Any, tokenizer: PreTrainedTokenizerBase, settings: Settings, requests: Sequence[Sequence[Row]],
    sampling: Sampling,
) -> None:  # fmt: skip
    """Let the rows of each prompt be its `n` best of `num_beams`, the best first. All prompts have the same room."""
    prompts = [rows[0] for rows in requests]
    config = settings.generation_config(prompts, sampling)
    config.num_beams, config.num_return_sequences = sampling.num_beams, sampling.n
    config.length_penalty = sampling.length_penalty
    stop = settings.stop_words(sampling)
    if stop:
        config.stop_strings = [*stop]
    padded = padded_inputs(prompts, settings.pad_id, model.device)
    width = padded["input_ids"].shape[1]
    processors = LogitsProcessorList()
    if sampling.presence_penalty or sampling.frequency_penalty:
        processors.append(Counted(width, sampling))
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, enabled=sampling.seed is not None):
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        found_BT = model.generate(**padded, generation_config=config, tokenizer=tokenizer, logits_processor=processors)
    rows = [row for rows in requests for row in rows]
    for row, ids in zip(rows, found_BT[:, width:].tolist(), strict=True):
        for token_id in ids:
            if row.reason is None:
                row.add(token_id, settings.end_ids)
        row.reason = row.reason or "stop"
        if row.choice.top_logprobs is not None and row.token_ids:
            _score(model, tokenizer, row, row.choice.top_logprobs)


def _score(model: Any, tokenizer: PreTrainedTokenizerBase, row: Row, top: int) -> None:
    """Log-probabilities of a row's tokens, from one forward pass over prompt and reply."""
    ids = torch.tensor([row.said], device=model.device)
    logits_TV = model(input_ids=ids, use_cache=False).logits[0, len(row.prompt_ids) - 1 : -1]
    row.logprobs = token_logprobs(tokenizer, logits_TV, row.token_ids, [top] * len(row.token_ids))
