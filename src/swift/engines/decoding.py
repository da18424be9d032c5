"""This file knows the loop: a batch of prompts gets one token after another, with a key-value cache.

Axes: B rows of the batch, A rows that are still growing, T tokens so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from swift.engines.base import Completion, FinishReason, TokenLogprob
from swift.engines.detokenizer import Detokenizer, decode, text_of


@dataclass(slots=True)
class Row:
    """One completion that grows.

    limit: how many tokens it may have.
    stop: words that end it; with any, or when it is streamed, `text` follows the ids.
    generator: where its draws come from, on the CPU; None is torch's own.
    """

    prompt_ids: list[int]
    limit: int
    stop: tuple[str, ...] = ()
    generator: torch.Generator | None = None
    text: Detokenizer | None = None
    piece: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reason: FinishReason | None = None

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

    def completion(self, tokenizer: PreTrainedTokenizerBase, with_logprobs: bool) -> Completion:
        """What has grown, once it has stopped."""
        assert self.reason is not None, "the row is still growing"
        if self.text is None:
            text = text_of(tokenizer, self.token_ids)
        else:
            self.piece = self.text.finish()
            text = self.text.text
        return Completion(self.token_ids, text, self.reason, self.logprobs if with_logprobs else None)


def contains_stop(text: str, fresh: int, stop: Sequence[str]) -> bool:
    """Whether a stop word ends within the last `fresh` characters of a text."""
    return any(word in text[-(fresh + len(word) - 1) :] for word in stop)


@dataclass(slots=True)
class Prepared:
    """What transformers makes of prompts and a generation config before the first token is drawn."""

    model: Any
    input_ids: Tensor
    processors: LogitsProcessorList
    criteria: StoppingCriteriaList
    config: GenerationConfig
    model_inputs: dict[str, Any]


def prepare(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    tokenizer: PreTrainedTokenizerBase | None = None,  # noqa: ARG001
    **model_kwargs: Any,
) -> Prepared:
    """The `custom_generate` of `model.generate`: hand over what was prepared, so that the loop can be ours.

    `tokenizer` must be a parameter for generate to pass it to stop strings of the generation config.
    """
    # Each row has a limit of its own here; a batch-wide length would stop the short prompts too early.
    criteria = StoppingCriteriaList([each for each in stopping_criteria if not isinstance(each, MaxLengthCriteria)])
    return Prepared(model, input_ids, logits_processor, criteria, generation_config, model_kwargs)


def decode_rows(start: Prepared, rows: Sequence[Row], tokens: Tokens) -> Iterator[None]:
    """Grow all rows to their ends, one token each per turn of the iterator.

    Rows that have ended leave the batch, so that the long ones do not pay for the short.
    """
    batch = _Batch(start)
    while batch.active:
        growing = [rows[index] for index in batch.active]
        logits_AV = batch.logits()
        chosen_A = draw(batch.scores(logits_AV), growing, sample=bool(start.config.do_sample))
        chosen = chosen_A.tolist()
        facts = tokens.logprobs(logits_AV, chosen_A) if tokens.wants_logprobs else None
        for place, (row, token_id) in enumerate(zip(growing, chosen, strict=True)):
            row.add(token_id, tokens.end_ids)
            if facts is not None and token_id not in tokens.end_ids:
                row.logprobs.append(facts[place])
        batch.append(chosen_A)
        for row, ended in zip(growing, batch.ended(), strict=True):
            if ended and row.reason is None:
                row.reason = "stop"
        batch.keep([index for index in batch.active if rows[index].reason is None])
        yield


@dataclass(frozen=True, slots=True)
class Tokens:
    """What has to be known of tokens: which of them end a turn, and what is to be told about each."""

    tokenizer: PreTrainedTokenizerBase
    end_ids: frozenset[int]
    wants_logprobs: bool
    top: int

    def logprobs(self, logits_AV: Tensor, chosen_A: Tensor) -> list[TokenLogprob]:
        """The log-softmax of raw logits at the chosen tokens and at the `top` likeliest."""
        logps_AV = torch.log_softmax(logits_AV.float(), dim=-1)
        chosen_logps = logps_AV.gather(1, chosen_A[:, None]).squeeze(1).tolist()
        likeliest = logps_AV.topk(min(self.top, logps_AV.shape[1]), dim=-1)
        top_logps, top_ids = likeliest.values.tolist(), likeliest.indices.tolist()
        return [
            TokenLogprob(
                token_id,
                decode(self.tokenizer, [token_id]),
                logp,
                tuple((other, decode(self.tokenizer, [other]), value) for other, value in zip(*tops, strict=True)),
            )
            for token_id, logp, *tops in zip(chosen_A.tolist(), chosen_logps, top_ids, top_logps, strict=True)
        ]


def draw(scores_AV: Tensor, rows: Sequence[Row], *, sample: bool) -> Tensor:
    """One token per row: the likeliest, or drawn by inverting the cumulated probabilities.

    Each row gives one number from 0 to 1 of its own, so that a draw depends neither on neighbours nor on the device;
    the sums are in float64, where the tail of a large vocabulary does not drown in rounding.
    """
    if not sample:
        return scores_AV.argmax(dim=-1)
    precise = torch.float32 if scores_AV.device.type == "mps" else torch.float64  # Metal has no float64
    cumulated_AV = torch.softmax(scores_AV.to(precise), dim=-1).cumsum(dim=-1)
    share_A = torch.cat([torch.rand(1, generator=row.generator) for row in rows])
    aim_A1 = share_A.to(cumulated_AV)[:, None] * cumulated_AV[:, -1:]
    return torch.searchsorted(cumulated_AV, aim_A1, right=True).squeeze(1)


class _Batch:
    """The tensors of a batch that is being continued.

    The ids of all rows are kept to the end, because logits processors count rows; the cache and the model's inputs
    shrink to the active ones.
    """

    def __init__(self, start: Prepared) -> None:
        self.model = start.model
        self.processors: Any = start.processors  # annotated for LongTensor only, a type that no tensor has
        self.criteria: Any = start.criteria
        self.inputs = start.model_inputs
        self.ids_BT = start.input_ids
        self.active = list(range(len(start.input_ids)))
        self._everybody = len(self.active)
        self._places = torch.arange(self._everybody, device=self.ids_BT.device)
        self._held = list(self.active)
        self._first = True

    @torch.no_grad()
    def logits(self) -> Tensor:
        """[A, V] raw logits of the next token, in float32."""
        ids_AT = self.ids_BT[torch.tensor(self._held, device=self.ids_BT.device)]
        inputs = self.model.prepare_inputs_for_generation(
            ids_AT,
            next_sequence_length=None if self._first or not self.inputs["use_cache"] else 1,
            is_first_iteration=self._first,
            **self.inputs,
        )
        outputs = self.model(**inputs, return_dict=True)
        # The hook through which every architecture carries its cache, mask and positions to the next token.
        self.inputs = self.model._update_model_kwargs_for_generation(outputs, self.inputs)
        self._first = False
        logits = outputs.logits[:, -1].to(torch.float32, copy=True)
        if self._held == self.active:
            return logits.to(self.ids_BT.device)
        where = [self._held.index(index) for index in self.active]
        return logits[where].to(self.ids_BT.device)

    @torch.no_grad()
    def scores(self, logits_AV: Tensor) -> Tensor:
        """[A, V] logits after penalties, temperature and cuts."""
        if len(self.active) == self._everybody:
            return self.processors(self.ids_BT, logits_AV)
        full_BV = logits_AV.new_zeros(self._everybody, logits_AV.shape[1])
        full_BV[self._places] = logits_AV
        return self.processors(self.ids_BT, full_BV)[self._places]

    def append(self, chosen_A: Tensor) -> None:
        """Put the chosen tokens behind the active rows; rows that have ended repeat their last id, unread."""
        column_B = self.ids_BT[:, -1].clone()
        column_B[self._places] = chosen_A
        self.ids_BT = torch.cat([self.ids_BT, column_B[:, None]], dim=1)

    def ended(self) -> list[bool]:
        """Which active rows the generation config itself wants stopped (eos, max_time, stop_strings)."""
        if not self.criteria:
            return [False] * len(self.active)
        return self.criteria(self.ids_BT, None)[self._places].tolist()

    def keep(self, active: list[int]) -> None:
        """Go on with these rows only."""
        if active == self.active:
            return
        self.active = active
        self._places = torch.tensor(active, dtype=torch.long, device=self.ids_BT.device)
        if active and self._shrinks():
            where = torch.tensor([self._held.index(index) for index in active], device=self.ids_BT.device)
            self.inputs["past_key_values"].batch_select_indices(where)
            for name in ("attention_mask", "position_ids"):
                if self.inputs.get(name) is not None:
                    # position ids are [B, T], or [3, B, T] for models that count in three directions
                    self.inputs[name] = self.inputs[name].index_select(self.inputs[name].dim() - 2, where)
            self._held = active

    def _shrinks(self) -> bool:
        """Whether rows can be taken out of the cache; a recurrent state, for one, has no such operation."""
        cache = self.inputs.get("past_key_values")
        plain = (DynamicLayer, DynamicSlidingWindowLayer)
        return isinstance(cache, Cache) and all(type(layer) in plain for layer in cache.layers)
