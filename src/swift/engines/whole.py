"""This file knows batches that run to their end, with whatever memory a model has: recurrent, windowed, or its own.

Axes: A rows that grow, H rows that the memory holds, T tokens, V vocabulary.

The model prepares each step by itself, as it does in transformers' `generate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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

from swift.core.errors import EngineError
from swift.engines.adapters import Adapters
from swift.engines.rows import Row
from swift.engines.telling import tell_prompt


@dataclass(slots=True)
class Prepared:
    """What transformers makes of prompts and a generation config before the first token is drawn."""

    model: Any
    input_ids: Tensor
    processors: LogitsProcessorList
    criteria: StoppingCriteriaList
    model_inputs: dict[str, Any]


def prepare(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,  # noqa: ARG001 (as `generate` calls it)
    tokenizer: PreTrainedTokenizerBase | None = None,  # noqa: ARG001 (see below)
    **model_kwargs: Any,
) -> Prepared:
    """The `custom_generate` of `model.generate`: hand over what was prepared, so that the loop can be ours.

    `tokenizer` must be a parameter for generate to pass it to stop strings of the generation config.
    """
    # Each row has a limit of its own here; a batch-wide length would stop the short prompts too early.
    criteria = StoppingCriteriaList([each for each in stopping_criteria if not isinstance(each, MaxLengthCriteria)])
    return Prepared(model, input_ids, logits_processor, criteria, model_kwargs)


def padded_inputs(rows: Sequence[Row], pad_id: int, device: torch.device) -> dict[str, Tensor]:
    """Input ids and attention mask [B, T] of prompts, padded on the left so that all end together."""
    width = max(len(row.prompt_ids) for row in rows)
    ids = [[pad_id] * (width - len(row.prompt_ids)) + row.prompt_ids for row in rows]
    mask = [[0] * (width - len(row.prompt_ids)) + [1] * len(row.prompt_ids) for row in rows]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


class Whole:
    """One batch at a time; rows that have ended leave it where the memory allows, and none joins it.

    prepared: transformers' preparation of rows. tokenizer: the words of tokens of prompts that are told of.
    """

    joins = False
    mixes = False

    def __init__(
        self, prepared: Callable[[Sequence[Row]], Prepared], adapters: Adapters, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.tokenizer = tokenizer
        self._prepared = prepared
        self._adapters = adapters
        self._batch: _Batch | None = None
        self.rows: list[Row] = []

    def unread(self, row: Row) -> tuple[int, bytes | None]:
        """All of the prompt."""
        return len(row.prompt_ids), None

    def read(self, requests: Sequence[Sequence[Row]]) -> _Reading:
        """Begin a batch."""
        rows = [row for rows in requests for row in rows]
        self._adapters.use([rows[0].adapter])
        return _Reading(self, rows, _Batch(self._prepared(rows)))

    def take_in(self, batch: _Batch, rows: Sequence[Row]) -> None:
        """Go on with these rows of a batch."""
        self._batch = batch
        self.rows = list(rows)

    def step(self) -> tuple[list[Row], Tensor]:
        """The next token of every row."""
        assert self._batch is not None, "rows that grow have a batch"
        return list(self.rows), self._batch.logits([row.token_ids[-1] for row in self.rows])

    def leave(self, row: Row) -> None:
        """Take a row out, at the next step."""
        assert self._batch is not None, "rows that grow have a batch"
        place = self.rows.index(row)
        self.rows.pop(place)
        self._batch.drop(place)
        if not self.rows:
            self._batch = None

    def reset(self) -> None:
        """Forget all rows."""
        self.rows, self._batch = [], None


class _Batch:
    """The tensors of a batch that is being continued: those of all rows that the memory holds.

    active: which of the H held rows still grow.
    """

    def __init__(self, start: Prepared) -> None:
        self.model = start.model
        self.inputs = start.model_inputs
        self.ids_HT = start.input_ids
        self.active = list(range(len(start.input_ids)))
        self._first = True

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """[A, V] raw logits in float32, after one more token for each active row; none for the first time."""
        if not self._first:
            self._shrink()
            column_H = self.ids_HT[:, -1].clone()  # rows that have ended repeat their last id, unread
            active_A, added_A = torch.tensor([self.active, list(token_ids)], device=column_H.device)
            column_H[active_A] = added_A
            self.ids_HT = torch.cat([self.ids_HT, column_H[:, None]], dim=1)
        logits = self._pass()[:, -1].to(torch.float32, copy=True)
        if len(self.active) == len(logits):
            return logits
        return logits[torch.tensor(self.active, device=logits.device)]

    def every(self) -> Tensor:
        """[A, T, V] raw logits in float32 at every token of the prompts, which are read with this."""
        kept = self.inputs.pop("logits_to_keep", None)
        logits_ATV = self._pass()
        if kept is not None:
            self.inputs["logits_to_keep"] = kept
        if logits_ATV.shape[1] != self.ids_HT.shape[1]:
            raise EngineError(f"{type(self.model).__name__} says nothing of the tokens of its prompts.")
        return logits_ATV.float()

    def _pass(self) -> Tensor:
        """A forward pass over what is new."""
        inputs = self.model.prepare_inputs_for_generation(
            self.ids_HT,
            next_sequence_length=None if self._first or not self.inputs["use_cache"] else 1,
            is_first_iteration=self._first,
            **self.inputs,
        )
        outputs = self.model(**inputs, return_dict=True)
        # The hook through which every architecture carries its cache, mask and positions to the next token.
        self.inputs = self.model._update_model_kwargs_for_generation(outputs, self.inputs)
        self._first = False
        return outputs.logits

    def keep(self, places: list[int]) -> None:
        """Go on with these of the active rows."""
        self.active = [self.active[place] for place in places]

    def drop(self, place: int) -> None:
        """Go on without one of the active rows."""
        self.active.pop(place)

    def _shrink(self) -> None:
        """Take the rows that have ended out of the memory, where it is one of keys and values."""
        if len(self.active) == len(self.ids_HT) or not self._shrinks():
            return
        where = torch.tensor(self.active, device=self.ids_HT.device)
        self.inputs["past_key_values"].batch_select_indices(where)
        for name in ("attention_mask", "position_ids"):
            if self.inputs.get(name) is not None:
                # position ids are [B, T], or [3, B, T] for models that count in three directions
                self.inputs[name] = self.inputs[name].index_select(self.inputs[name].dim() - 2, where)
        self.ids_HT = self.ids_HT[where]
        self.active = list(range(len(self.active)))

    def _shrinks(self) -> bool:
        """Whether rows can be taken out of the cache; a recurrent state, for one, has no such operation."""
        cache = self.inputs.get("past_key_values")
        plain = (DynamicLayer, DynamicSlidingWindowLayer)
        return isinstance(cache, Cache) and all(type(layer) in plain for layer in cache.layers)


class _Reading:
    """Prompts that are read at once, each as often as it has rows."""

    def __init__(self, runner: Whole, rows: list[Row], batch: _Batch) -> None:
        self.rows = rows
        self._runner = runner
        self._batch = batch

    def advance(self, tokens: int) -> Tensor | None:  # noqa: ARG002 (not every memory can be filled in pieces)
        if all(row.prompt_told is None for row in self.rows):
            return self._batch.logits([])
        logits_RTV = self._batch.every()
        told: set[int] = set()
        for row, logits_TV in zip(self.rows, logits_RTV, strict=True):
            if row.prompt_told is not None and id(row.prompt_told) not in told:  # rows of one request share theirs
                told.add(id(row.prompt_told))
                tell_prompt(self._runner.tokenizer, row, logits_TV[-len(row.prompt_ids) :])
        return logits_RTV[:, -1]

    def enter(self, rows: Sequence[Row]) -> None:
        going = {id(row) for row in rows}
        self._batch.keep([place for place, row in enumerate(self.rows) if id(row) in going])
        self._runner.take_in(self._batch, [row for row in self.rows if id(row) in going])
