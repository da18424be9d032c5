"""This file knows the batch that never ends: rows leave it when they are done, and others enter at the next step.

Axes: A rows that grow, R rows that begin, V vocabulary, S slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from swift.engines.filling import Filling, Text
from swift.engines.forward import Forward
from swift.engines.prefixes import BLOCK, Prefixes, block_keys
from swift.engines.rows import Row
from swift.engines.slots import Slots
from swift.engines.telling import tell_prompt

BOUND = 4096
"""Tokens up to which rows share their steps whatever their lengths; longer ones have steps of their own, by powers of 4.
What a step reads, and the memory of a slot, is as wide as the longest row of it."""


TOLD = 256
"""Tokens of prompts that are told of at once: each has logits of the whole vocabulary."""


class _Group:
    """Rows that take their steps together."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.slots: Slots | None = None


class Continuous:
    """Rows of any age and length in one batch, for models whose memory is keys and values.

    prefixes: beginnings that are remembered when their rows are gone.
    tokenizer: the words of tokens of prompts that are told of.
    """

    joins = True

    def __init__(self, forward: Forward, prefixes: Prefixes, pad_id: int, tokenizer: PreTrainedTokenizerBase) -> None:
        self.prefixes = prefixes
        self.tokenizer = tokenizer
        self._forward = forward
        self._pad_id = pad_id
        self._groups: dict[int, _Group] = {}

    @property
    def mixes(self) -> bool:
        """Whether rows of different adapters may grow together."""
        return self._forward.adapters.mix

    @property
    def rows(self) -> list[Row]:
        """Those that grow, group by group."""
        return [row for group in self._groups.values() for row in group.rows]

    def unread(self, row: Row) -> tuple[int, bytes | None]:
        """How many tokens of its prompt are not known, and the key of the first whole block among them."""
        keys = _keys_to_find(row)
        known = len(self.prefixes.find(keys))
        return len(row.prompt_ids) - BLOCK * known, keys[known] if known < len(keys) else None

    def read(self, requests: Sequence[Sequence[Row]]) -> _Reading:
        """Begin to read what is not known of these prompts."""
        for row in chain.from_iterable(requests):
            row.age = self.prefixes.age
        texts = [
            Text(rows[0].prompt_ids, self.prefixes.find(_keys_to_find(rows[0])), rows[0].adapter) for rows in requests
        ]
        return _Reading(self, Filling(self._forward, texts, self._pad_id), requests)

    def take_in(self, reading: _Reading, rows: Sequence[Row]) -> None:
        """Give rows their slots, and remember the prompts."""
        filling = reading.filling
        for number, text in enumerate(filling.texts):
            if reading.age != self.prefixes.age:
                break
            keys = block_keys(text.token_ids, _world(text.adapter))
            self.prefixes.remember(keys, lambda begin, end, number=number: filling.states(number, begin, end))
        going = {id(row) for row in rows}
        for row, number in zip(reading.rows, reading.source, strict=True):
            if id(row) in going:
                self._add(row, filling.states(number))

    def step(self) -> tuple[list[Row], Tensor]:
        """One forward pass for each group of lengths."""
        for bound, group in list(self._groups.items()):
            for row in list(group.rows):
                if len(row.prompt_ids) + len(row.token_ids) > bound:
                    self._move(row, group)
        rows, logits = [], []
        for group in self._groups.values():
            if group.rows and group.slots is not None:
                rows += group.rows
                logits.append(self._step(group.rows, group.slots))
        return rows, logits[0] if len(logits) == 1 else torch.cat(logits)

    def leave(self, row: Row) -> None:
        """Free a slot, and remember what was said: the next question of a dialogue begins with it."""
        group = next(group for group in self._groups.values() if row in group.rows)
        assert group.slots is not None, "a group with rows has slots"
        place = group.rows.index(row)
        said = row.said[: group.slots.lengths[place]]
        slots = group.slots
        if row.age == self.prefixes.age:
            keys = block_keys(said, _world(row.adapter))
            self.prefixes.remember(keys, lambda begin, end: slots.states(place, begin, end))
        self._remove(group, place)

    def reset(self) -> None:
        """Forget all rows; what prefixes hold was computed before whatever went wrong."""
        self._groups.clear()

    # -------------------------------------------------------------------------------------------------------- slots

    def _step(self, rows: Sequence[Row], slots: Slots) -> Tensor:
        ids_A1 = torch.tensor([[row.token_ids[-1]] for row in rows], device=self._forward.device)
        positions_A1, mask_AW = slots.begin_step()
        logits_AV = self._forward(ids_A1, positions_A1, mask_AW, slots.cache, [row.adapter for row in rows])
        slots.end_step()
        return logits_AV

    def _add(self, row: Row, states: list) -> None:
        needed = len(row.prompt_ids) + len(row.token_ids)
        bound = BOUND
        while bound < needed:
            bound *= 4
        group = self._groups.setdefault(bound, _Group())
        if group.slots is None:
            group.slots = Slots(len(states), self._forward.device)
        group.slots.add(states)
        group.rows.append(row)

    def _move(self, row: Row, group: _Group) -> None:
        assert group.slots is not None, "a group with rows has slots"
        place = group.rows.index(row)
        self._add(row, group.slots.states(place))
        self._remove(group, place)

    def _remove(self, group: _Group, place: int) -> None:
        assert group.slots is not None, "a group with rows has slots"
        group.slots.remove(place)
        last = group.rows.pop()
        if place < len(group.rows):
            group.rows[place] = last


def _world(adapter: str | None) -> str:
    return "base" if adapter is None else f"adapter {adapter}"


def _keys_to_find(row: Row) -> list[bytes]:
    """Of the blocks before the last token, which has to be read for its logits; of none where all tokens have to be."""
    if row.keys is None:
        row.keys = [] if row.prompt_told is not None else block_keys(row.prompt_ids[:-1], _world(row.adapter))
    return row.keys


class _Reading:
    """Prompts read into slots: each once, whatever the number of its rows."""

    def __init__(self, runner: Continuous, filling: Filling, requests: Sequence[Sequence[Row]]) -> None:
        self.rows = [row for rows in requests for row in rows]
        self.filling = filling
        self.source = [number for number, rows in enumerate(requests) for _ in rows]
        self._runner = runner
        self.age = runner.prefixes.age
        self._firsts = [rows[0] for rows in requests]
        self._tells = any(row.prompt_told is not None for row in self._firsts)

    def advance(self, tokens: int) -> Tensor | None:
        logits_BV = self._told(tokens) if self._tells else self.filling.advance(tokens)
        if logits_BV is None or len(self.source) == len(logits_BV):
            return logits_BV
        return logits_BV[torch.tensor(self.source, device=logits_BV.device)]

    def _told(self, tokens: int) -> Tensor | None:
        """Read on as `Filling.advance` does, and tell of the tokens that are read."""
        logits = self.filling.advance_telling(min(tokens, TOLD))
        for row, logits_TV in zip(self._firsts, logits, strict=True):
            if row.prompt_told is not None:
                tell_prompt(self._runner.tokenizer, row, logits_TV)
        return torch.stack([logits_TV[-1] for logits_TV in logits]) if not self.filling.area else None

    def enter(self, rows: Sequence[Row]) -> None:
        self._runner.take_in(self, rows)
